#!/usr/bin/env python
"""Write a trained model as a graph that runs without this package: ONNX, or PyTorch's .pt2.

    python tools/export_model.py --config-file configs/nuclei/isda_boxes_tiny.yaml \\
        --output isda.onnx isda.pt2 --check datasets/nuclei_mini/images/*.png \\
        --opts MODEL.WEIGHTS output/demo/isda/model_final.pth
    python tools/export_model.py --model nuclei/isda_boxes_mobilenet_v2 --output isda.onnx

What the graph takes and gives, and how it is run: docs/EXPORT.md. With --check its answers are
compared with the model's own on real images; the exit status is 1 if they differ.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from isda import console
from isda.data.images import read_image  # before Detectron2, whose import it makes silent

# isort: split
import numpy as np
import torch
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from isda.checkpoint import WeightsError
from isda.data.errors import DatasetError
from isda.engine.predictor import Predictor
from isda.engine.setup import ConfigError, load_config
from isda.export import ExportError, description, export_program, exportable, save
from run_exported import ExportedModel

MIN_IOU = 0.99
MAX_SCORE_DIFFERENCE = 1e-3
EXCHANGED_SHARE = 0.05
CHUNK_PIXELS = 2**16
CHECKED_SCORE = 0.05  # instances below it are noise that nobody looks at


@dataclass
class Parity:
    """How well an exported graph agrees with its model, over all images so far."""

    tolerated: float = 0.0  # share of instances that may differ, see :func:`tolerated_share`
    instances: int = 0
    worst_iou: float = 1.0
    worst_score: float = 0.0
    apart: int = 0  # instances whose masks or scores differ by more than the limits
    missing: int = 0  # instances that only one of the two found

    @property
    def holds(self) -> bool:
        return self.apart + self.missing <= self.tolerated * self.instances

    def __str__(self) -> str:
        limits = f"an IoU below {MIN_IOU} or scores more than {MAX_SCORE_DIFFERENCE} apart"
        return (
            f"{self.instances} instances with a score of {CHECKED_SCORE} or more, lowest IoU of "
            f"masks {self.worst_iou:.4f}, largest difference of scores {self.worst_score:.1e}"
            + (f", {self.apart} with {limits}" if self.apart else "")
            + (f", {self.missing} found by one of the two only" if self.missing else "")
        )

    def add(self, expected: Instances, found: dict[str, np.ndarray]) -> None:
        """Compare the instances of one image, each with the one that is most like it."""
        expected = expected[expected.scores >= CHECKED_SCORE]
        kept = found["scores"] >= CHECKED_SCORE + MAX_SCORE_DIFFERENCE
        self.missing += max(int(kept.sum()) - len(expected), 0)
        self.instances += len(expected)
        masks = torch.from_numpy(found["masks"])
        scores, classes = (torch.from_numpy(found[name]) for name in ("scores", "classes"))
        ious = mask_ious(expected.pred_masks, masks)
        for index in range(len(expected)):
            differences = (scores - expected.scores[index]).abs()
            alike = (ious[index] - differences) * (classes == expected.pred_classes[index])
            if not len(alike) or alike.max() < 0.5:
                self.missing += 1
                continue
            best = int(alike.argmax())
            iou, difference = float(ious[index, best]), float(differences[best])
            self.worst_iou = min(self.worst_iou, iou)
            self.worst_score = max(self.worst_score, difference)
            self.apart += iou < MIN_IOU or difference > MAX_SCORE_DIFFERENCE


def tolerated_share(model: nn.Module) -> float:
    """The share of instances in which two ways to compute one model may differ.

    A model that chooses its queries gives the contents that it has learned to tokens by their
    rank. Where two tokens' logits differ by less than rounding does, their contents are exchanged.
    """
    transformer = getattr(model, "transformer", None)
    chosen = getattr(transformer, "query_selection", None) is not None
    return EXCHANGED_SHARE if chosen else 0.0


def mask_ious(masks: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Of each of ``(g, H, W)`` with each of ``(n, H, W)``, bool: ``(g, n)``.

    Shared pixels are counted by products of some pixels at a time, as hundreds of masks of either
    are compared.
    """
    masks, others = masks.flatten(1), others.flatten(1)
    shared = torch.zeros(len(masks), len(others))
    for some, same in zip(masks.split(CHUNK_PIXELS, 1), others.split(CHUNK_PIXELS, 1)):
        shared += some.float() @ same.float().T
    unions = masks.sum(1)[:, None] + others.sum(1) - shared
    return shared / unions.clamp(min=1)


def check(predictor: Predictor, path: Path, images: list[Path]) -> Parity:
    """Run both on the images.

    Raises:
        OSError: an image cannot be read.
    """
    exported, parity = ExportedModel(path), Parity(tolerated_share(predictor.model))
    for image in images:
        pixels = read_image(str(image), "RGB")
        found = exported(Image.fromarray(pixels), threshold=CHECKED_SCORE - MAX_SCORE_DIFFERENCE)
        parity.add(predictor(pixels), found)
    return parity


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", metavar="FILE", help="with MODEL.WEIGHTS in --opts")
    source.add_argument("--model", help="a name of isda.model_zoo, or the folder of a training")
    parser.add_argument(
        "--output", nargs="+", type=Path, required=True, metavar="FILE", help=".onnx or .pt2"
    )
    parser.add_argument(
        "--check", nargs="+", type=Path, default=[], metavar="IMAGE", help="compare on these"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs; comes last"
    )
    args = parser.parse_args(arguments)
    if args.model and args.opts:
        parser.error("--opts go with --config-file; a model of --model has its own")
    return args


def export(args: argparse.Namespace) -> bool:
    """Write the files and compare them; whether all agree."""
    source = args.model or load_config(args.config_file, args.opts)
    predictor = Predictor(source, device="cpu", threshold=0)
    program = export_program(exportable(predictor.model, predictor.format))
    info, agree = description(predictor), True
    for path in args.output:
        save(program, path, info)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
        if args.check:
            parity = check(predictor, path, args.check)
            print(f"  {len(args.check)} images, {parity}")
            agree = agree and parity.holds
    return agree


def exit_status(compare: Callable[[], bool], difference: str) -> int:
    """0 if both models agree; else 1, and why. What users can mend is told without a traceback."""
    try:
        agree = compare()
    except (ConfigError, DatasetError, ExportError, WeightsError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not agree:
        print(f"error: {difference}", file=sys.stderr)
    return 0 if agree else 1


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    return exit_status(lambda: export(args), "the exported model differs from the original")


if __name__ == "__main__":
    console.start()
    sys.exit(main())
