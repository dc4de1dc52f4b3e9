#!/usr/bin/env python
"""Time and memory of a model's criterion against a whole training step.

The step is cut where predictions enter the criterion: its backward pass ends there, and the rest
of the model goes on from those gradients. So each part is measured alone, and together they are
exactly one training step. Images and masks are synthetic; no weights are loaded.

    python tools/benchmark_criterion.py --instances 7 50 200 --output criterion.json
    python tools/benchmark_criterion.py --height 128 --width 160 MODEL.ISDA.NUM_QUERIES 50
    python tools/benchmark_criterion.py \\
        --config-file configs/COCO-InstanceSegmentation/istr_R_50_FPN_3x.yaml
"""

import argparse
import copy
import ctypes
import dataclasses
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import detectron2
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from torch import Tensor, nn

from isda import add_isda_config, add_istr_config
from isda.engine.setup import node_with_classes
from isda.training.optimizer import build_gradient_clipper, build_optimizer

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/COCO-InstanceSegmentation/isda_R_50_42ep.yaml"
CRITERION_PARTS = ("targets", "matching", "loss", "loss_backward")
PARTS = ("forward", *CRITERION_PARTS, "backward", "optimizer")
CLASSES_OF_COCO = 80
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

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def memory_is_measurable(device: torch.device) -> bool:
    """CUDA counts for itself; on a CPU the kernel does, where it is Linux and lets us reset."""
    if device.type == "cuda":
        return True
    try:
        reset_peak_memory(device)
    except OSError:
        return False
    return True


def reset_peak_memory(device: torch.device) -> int:
    """Forget the peak so far; return the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # what is freed must not hide what is needed next
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def peak_memory(device: torch.device) -> int:
    """Most bytes in use since the last reset: allocated by PyTorch, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _resident("VmHWM")


def _resident(entry: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {entry}")


def synthetic_inputs(
    batch: int, height: int, width: int, num_instances: int, num_classes: int
) -> list[dict]:
    """Noise with overlapping ellipses of 3 to 30 % of the image's sides."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    inputs = []
    for _ in range(batch):
        masks = torch.zeros(num_instances, height, width, dtype=torch.bool)
        for mask, (y, x, h, w) in zip(masks, torch.rand(num_instances, 4, generator=generator)):
            radii = (0.03 + 0.27 * torch.stack([h, w])) * torch.tensor([height, width]) / 2
            distance = ((rows - y * height) / radii[0]) ** 2 + (
                (columns - x * width) / radii[1]
            ) ** 2
            torch.le(distance, 1, out=mask)
        instances = Instances((height, width))
        instances.gt_masks = BitMasks(masks)
        instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        instances.gt_classes = torch.randint(num_classes, (num_instances,), generator=generator)
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        inputs.append({"image": image, "instances": instances})
    return inputs


@dataclass
class TrainingStep:
    """One step of the recipe, part by part."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    clip: Callable
    autocast_dtype: torch.dtype | None

    def __call__(self, inputs: list[dict], meter: Meter) -> dict[str, Tensor]:
        """The losses; gradients stay in the parameters until the next step."""
        self.optimizer.zero_grad()
        with meter("forward"), self._autocast():
            predictions = self.model.predict(self.model.preprocess(inputs))
        leaves = cut(predictions)
        losses = self._criterion(leaves, inputs, meter)
        with meter("backward"):
            torch.autograd.backward(
                tensors_of(predictions), [leaf.grad for leaf in tensors_of(leaves)]
            )
        with meter("optimizer"):
            self.clip(p for p in self.model.parameters() if p.requires_grad)
            self.optimizer.step()
        return losses

    def _criterion(self, leaves: list, inputs: list[dict], meter: Meter) -> dict[str, Tensor]:
        """Everything between the predictions and their gradients, which it leaves there."""
        criterion = self.model.criterion
        with meter("targets"):
            targets = self.model.targets(inputs)
        with meter("matching"):
            matches = criterion.matcher(leaves, targets)
        matched = copy.copy(criterion)
        matched.matcher = lambda *_: matches
        with meter("loss"):
            losses = matched(leaves, targets)
        with meter("loss_backward"):
            sum(losses.values()).backward()
        return losses

    def _autocast(self) -> torch.autocast:
        enabled = self.autocast_dtype is not None
        return torch.autocast(self.model.device.type, self.autocast_dtype, enabled=enabled)


def cut(predictions: list) -> list:
    """The same predictions as leaves of a graph of their own; what layers share stays shared."""
    leaves = {id(t): t.detach().requires_grad_() for t in tensors_of(predictions)}
    return [
        type(p)(*(leaves[id(getattr(p, field.name))] for field in dataclasses.fields(p)))
        for p in predictions
    ]


def tensors_of(predictions: list) -> list[Tensor]:
    """Each tensor once."""
    tensors = [getattr(p, field.name) for p in predictions for field in dataclasses.fields(p)]
    return list({id(tensor): tensor for tensor in tensors}.values())


def load_config(path: str, overrides: list[str]) -> CfgNode:
    cfg = get_cfg()
    add_isda_config(cfg)
    add_istr_config(cfg)
    cfg.merge_from_file(path)
    cfg.merge_from_list(overrides)
    cfg.MODEL.WEIGHTS = ""
    node = cfg.MODEL[node_with_classes(cfg)]
    node.NUM_CLASSES = node.NUM_CLASSES or CLASSES_OF_COCO
    return cfg


def build_step(cfg: CfgNode) -> TrainingStep:
    torch.manual_seed(0)
    model = build_model(cfg).train()
    clipping, amp = cfg.SOLVER.CLIP_GRADIENTS, cfg.SOLVER.AMP
    return TrainingStep(
        model,
        build_optimizer(cfg, model),
        build_gradient_clipper(
            clipping.CLIP_TYPE if clipping.ENABLED else None,
            clipping.CLIP_VALUE,
            clipping.NORM_TYPE,
        ),
        getattr(torch, amp.DTYPE) if amp.ENABLED else None,
    )


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
    criterion = max(meter.peak_bytes[part] for part in CRITERION_PARTS)
    return {
        "criterion_added_mb": (criterion - meter.start_bytes["targets"]) / MEGABYTE,
        "criterion_peak_mb": criterion / MEGABYTE,
        "step_peak_mb": max(meter.peak_bytes.values()) / MEGABYTE,
    }


def describe_environment(device: torch.device) -> dict:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


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
    parser.add_argument("--config-file", default=str(ROOT / CONFIG))
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1216)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--instances", type=int, nargs="+", default=[7, 50, 200])
    parser.add_argument("--repeats", type=int, default=3, help="timed steps per G")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict:
    args = parse_arguments(arguments)
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
        num_classes = cfg.MODEL[node_with_classes(cfg)].NUM_CLASSES
        inputs = synthetic_inputs(args.batch, args.height, args.width, count, num_classes)
        if not report["rows"]:
            step(inputs, Meter(step.model.device, with_memory=False))  # makes AdamW's moments
        report["rows"].append(measure(step, inputs, args.repeats))
        if args.output:
            args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(markdown(report))
    return report


if __name__ == "__main__":
    main()
