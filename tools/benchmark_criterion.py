#!/usr/bin/env python
"""Time and memory of a model's criterion against a whole training step.

The step is cut where the network's outputs enter the criterion: its backward pass ends there, and
the rest of the model goes on from those gradients. So each part is measured alone, and together
they are exactly one training step. Images and masks are synthetic; no weights are loaded.

    python tools/benchmark_criterion.py --instances 7 50 200 --output criterion.json
    python tools/benchmark_criterion.py --height 128 --width 160 MODEL.ISDA.NUM_QUERIES 50
    python tools/benchmark_criterion.py \\
        --config-file configs/COCO-InstanceSegmentation/istr_R_50_FPN_3x.yaml
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isda import console, strict_json
from isda.benchmarking.environment import describe_environment
from isda.benchmarking.memory import memory_is_measurable, peak_memory, reset_peak_memory
from isda.benchmarking.workload import (
    Training,
    build_training,
    load_config,
    num_classes,
    synthetic_inputs,
)
from isda.cli import guarded
from isda.files import write_text
from isda.model_zoo import get_config_file

import torch
from detectron2.config import CfgNode
from torch import Tensor

CONFIG = "COCO-InstanceSegmentation/isda_R_50_42ep.yaml"
CRITERION_PARTS = ("targets", "matching", "loss", "loss_backward")
PARTS = ("targets", "forward", "matching", "loss", "loss_backward", "backward", "optimizer")
MEGABYTE = 2**20


@dataclass
class Meter:
    """Seconds of every part of a step, and bytes before and at most during it."""

    device: torch.device
    with_memory: bool
    seconds: dict[str, float] = field(default_factory=dict)
    start_bytes: dict[str, int] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self._synchronise()
        if self.with_memory:
            self.start_bytes[part] = reset_peak_memory(self.device)
        start = time.perf_counter()
        yield
        self._synchronise()
        self.seconds[part] = time.perf_counter() - start
        if self.with_memory:
            self.peak_bytes[part] = peak_memory(self.device)

    def inside(self, part: str, function: Callable) -> Callable:
        """The function; the seconds of its calls add up, within another part and its memory."""
        self.seconds[part] = 0.0

        def timed(*args):
            self._synchronise()
            start = time.perf_counter()
            result = function(*args)
            self._synchronise()
            self.seconds[part] += time.perf_counter() - start
            return result

        return timed

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class TrainingStep(Training):
    """One step of the recipe, part by part."""

    def __call__(self, inputs: list[dict], meter: Meter) -> dict[str, Tensor]:
        """The losses; gradients stay in the parameters until the next step."""
        self.optimizer.zero_grad()
        with meter("targets"):
            targets = self.model.targets(inputs)
        with meter("forward"), self.autocast():
            outputs = self.model.outputs(self.model.preprocess(inputs), targets)
        leaves: dict[Tensor, Tensor] = {}
        losses = self._criterion(cut(outputs, leaves), targets, meter)
        used = {tensor: leaf.grad for tensor, leaf in leaves.items() if leaf.grad is not None}
        with meter("backward"):
            torch.autograd.backward(list(used), list(used.values()))
        with meter("optimizer"):
            self.update()
        return losses

    def _criterion(self, outputs: Any, targets: list, meter: Meter) -> dict[str, Tensor]:
        """Everything between what the network gives and its gradients, which are left there."""
        criterion = self.model.criterion
        matcher = criterion.matcher
        try:
            criterion.matcher = meter.inside("matching", matcher)
            with meter("loss"):
                losses = self.model.compare(outputs, targets)
        finally:
            criterion.matcher = matcher
        meter.seconds["loss"] -= meter.seconds["matching"]
        with meter("loss_backward"):
            sum(losses.values()).backward()
        return losses


def cut(outputs: Any, leaves: dict[Tensor, Tensor]) -> Any:
    """The same outputs on leaves of a graph of their own; what parts share stays shared.

    Args:
        outputs: tensors in lists, tuples and dataclasses.
        leaves: receives, for each tensor that has a gradient, the one in its place.
    """
    if isinstance(outputs, Tensor):
        if not outputs.requires_grad:
            return outputs
        if outputs not in leaves:
            leaves[outputs] = outputs.detach().requires_grad_()
        return leaves[outputs]
    if isinstance(outputs, list | tuple):
        return type(outputs)(cut(part, leaves) for part in outputs)
    if dataclasses.is_dataclass(outputs):
        parts = {f.name: cut(getattr(outputs, f.name), leaves) for f in dataclasses.fields(outputs)}
        return type(outputs)(**parts)
    return outputs


def build_step(cfg: CfgNode) -> TrainingStep:
    return TrainingStep(**vars(build_training(cfg)))


def measure(step: TrainingStep, inputs: list[dict], repeats: int) -> dict:
    """Memory of one step, then median times of ``repeats`` more."""
    device = step.model.device
    first = Meter(device, with_memory=memory_is_measurable(device))
    step(inputs, first)
    meters = [Meter(device, with_memory=False) for _ in range(repeats)]
    for meter in meters:
        step(inputs, meter)
    seconds = {part: statistics.median(m.seconds[part] for m in meters) for part in PARTS}
    criterion = sum(seconds[part] for part in CRITERION_PARTS)
    return {
        "instances": len(inputs[0]["instances"]),
        "seconds": seconds,
        "criterion_seconds": criterion,
        "step_seconds": sum(seconds.values()),
        "criterion_share": criterion / sum(seconds.values()),
        **_memory(first),
    }


def _memory(meter: Meter) -> dict[str, float | None]:
    if not meter.with_memory:
        return dict.fromkeys(("criterion_added_mb", "criterion_peak_mb", "step_peak_mb"))
    criterion = max(meter.peak_bytes[part] for part in ("loss", "loss_backward"))
    # Targets are there before the forward pass, because noised queries are made of them.
    targets = max(meter.start_bytes["forward"] - meter.start_bytes["targets"], 0)
    return {
        "criterion_added_mb": (criterion - meter.start_bytes["loss"] + targets) / MEGABYTE,
        "criterion_peak_mb": criterion / MEGABYTE,
        "step_peak_mb": max(meter.peak_bytes.values()) / MEGABYTE,
    }


def markdown(report: dict) -> str:
    """A table that says where it comes from."""
    height, width = report["size"]
    environment = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
    lines = [
        f"`{report['config']}` {' '.join(report['overrides'])}".strip()
        + f", {height}×{width}, batch {report['batch']}; {environment}. Seconds are medians of "
        f"{report['repeats']}; the criterion is targets, matching, loss and the loss's backward "
        "pass up to the predictions.",
        "",
        "| G | targets | matching | loss | its backward | criterion | whole step | share "
        "| added by the criterion | peak in the criterion | peak of the step |",
        "|---:" * 11 + "|",
    ]
    for row in report["rows"]:
        times = [*(row["seconds"][part] for part in CRITERION_PARTS)]
        times += [row["criterion_seconds"], row["step_seconds"]]
        cells = [str(row["instances"]), *(f"{seconds:.3f} s" for seconds in times)]
        cells.append(f"{100 * row['criterion_share']:.1f} %")
        for key in ("criterion_added_mb", "criterion_peak_mb", "step_peak_mb"):
            cells.append("not measured" if row[key] is None else f"{row[key]:.0f} MB")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default=get_config_file(CONFIG))
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1216)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--instances", type=int, nargs="+", default=[7, 50, 200])
    parser.add_argument("--repeats", type=int, default=3, help="timed steps per G")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    return parser.parse_args(arguments)


def measured(args: argparse.Namespace) -> dict:
    """The report of all numbers of instances; written to ``--output`` after each of them."""
    cfg = load_config(args.config_file, [*args.overrides, "MODEL.DEVICE", args.device])
    step = build_step(cfg)
    report = {
        "config": Path(args.config_file).name,
        "overrides": args.overrides,
        "size": [args.height, args.width],
        "batch": args.batch,
        "repeats": args.repeats,
        "environment": describe_environment(step.model.device),
        "rows": [],
    }
    for count in args.instances:
        inputs = synthetic_inputs(args.batch, args.height, args.width, count, num_classes(cfg))
        if not report["rows"]:
            step(inputs, Meter(step.model.device, with_memory=False))  # makes AdamW's moments
        report["rows"].append(measure(step, inputs, args.repeats))
        if args.output:
            write_text(args.output, strict_json.dumps(report, indent=2) + "\n")
    return report


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    return guarded(lambda: print(markdown(measured(args))), expected=(OSError, ValueError))


if __name__ == "__main__":
    console.start()
    sys.exit(main())
