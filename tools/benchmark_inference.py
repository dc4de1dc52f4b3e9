#!/usr/bin/env python
"""Seconds per image of models at inference, side by side, and where they go.

All models see the same synthetic image, in turns, so that a change of the machine's mood meets
all of them. No weights are loaded; Detectron2's R-CNNs get a score threshold of 0, so that they
too return as many masks as TEST.DETECTIONS_PER_IMAGE allows.

    python tools/benchmark_inference.py --config-files \\
        configs/COCO-InstanceSegmentation/istr_R_50_FPN_3x.yaml \\
        configs/COCO-InstanceSegmentation/isda_R_50_42ep.yaml
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch
from detectron2.modeling import build_model
from torch import nn

from benchmark_criterion import describe_environment, load_config
from isda.engine.setup import node_with_classes

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"


class Stopwatch:
    """Seconds inside each direct child of a model, and of the whole call."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.device = model.device
        self.seconds: dict[str, float] = defaultdict(float)
        for name, child in model.named_children():
            child.register_forward_pre_hook(lambda *_, name=name: self._add(name, -1))
            child.register_forward_hook(lambda *_, name=name: self._add(name, 1))

    def run(self, inputs: list[dict]) -> tuple[float, dict[str, float], int]:
        """Seconds of the whole, seconds of the children that ran, and how many masks came."""
        self.seconds.clear()
        start = self._now()
        (output,) = self.model(inputs)
        whole = self._now() - start
        return whole, dict(self.seconds), len(output["instances"])

    def _add(self, name: str, sign: int) -> None:
        self.seconds[name] += sign * self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def build(config_file: str, device: str, overrides: list[str]) -> Stopwatch:
    """The model of a config without weights."""
    cfg = load_config(config_file, ["MODEL.DEVICE", device, *overrides])
    if node_with_classes(cfg) == "ROI_HEADS":
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    return Stopwatch(build_model(cfg).eval())


@torch.no_grad()
def measure(stopwatches: dict[str, Stopwatch], image: torch.Tensor, rounds: int) -> list[dict]:
    """One row per model: medians over the rounds, after one round that does not count."""
    height, width = image.shape[1:]
    inputs = [{"image": image, "height": height, "width": width}]
    runs: dict[str, list] = {name: [] for name in stopwatches}
    for turn in range(rounds + 1):
        names = list(stopwatches)
        names = names[turn % len(names) :] + names[: turn % len(names)]
        for name in names:
            result = stopwatches[name].run(inputs)
            if turn:
                runs[name].append(result)
    reference = next(reversed(runs.values()))
    rows = []
    for name, results in runs.items():
        seconds = statistics.median(whole for whole, _, _ in results)
        parts = {
            part: statistics.median(shares[part] / whole for whole, shares, _ in results)
            for part in results[0][1]
        }
        ratios = [whole / other for (whole, _, _), (other, _, _) in zip(results, reference)]
        rows.append(
            {
                "config": name,
                "seconds": seconds,
                "ratio": statistics.median(ratios),
                "ratios": [min(ratios), max(ratios)],
                "masks": results[-1][2],
                "shares": parts,
            }
        )
    return rows


def markdown(report: dict) -> str:
    """A table that says where it comes from."""
    environment = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
    height, width = report["size"]
    lines = [
        f"{height}×{width}, batch 1; {environment}. Medians of {report['rounds']} rounds; ratios "
        "are taken round by round.",
        "",
        f"|Config|Seconds|Times {report['rows'][-1]['config']}|Spread|Masks|Shares|",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in report["rows"]:
        shares = ", ".join(f"{part} {100 * share:.0f} %" for part, share in row["shares"].items())
        low, high = row["ratios"]
        lines.append(
            f"|{row['config']}|{row['seconds']:.2f}|{row['ratio']:.2f}|{low:.2f}–{high:.2f}"
            f"|{row['masks']}|{shares}|"
        )
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-files", nargs="+", required=True)
    parser.add_argument("--reference", default=str(REFERENCE), help="config to compare with")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1333)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        parser.error(f"--rounds must be positive, got {args.rounds}")
    return args


def main(arguments: list[str] | None = None) -> dict:
    args = parse_arguments(arguments)
    files = dict.fromkeys([*args.config_files, args.reference])  # each once, in this order
    stopwatches = {Path(file).stem: build(file, args.device, args.opts) for file in files}
    image = torch.randint(0, 256, (3, args.height, args.width), dtype=torch.uint8)
    report = {
        "size": [args.height, args.width],
        "rounds": args.rounds,
        "environment": describe_environment(torch.device(args.device)),
        "rows": measure(stopwatches, image, args.rounds),
    }
    print(markdown(report))
    if args.output:
        args.output.write_text(json.dumps(report, indent=1))
    return report


if __name__ == "__main__":
    main()
