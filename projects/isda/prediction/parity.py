"""Parity of a model with its graph or compiled form: do both find the same instances?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from isda.data.images import read_image
from isda.exported import ExportedModel
from isda.prediction.predictor import Predictor

__all__ = ["Parity", "compare_exported", "mask_ious", "tolerated_share"]

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


def compare_exported(predictor: Predictor, path: Path, images: list[Path]) -> Parity:
    """Run a model and the file that was exported of it on the images.

    Raises:
        OSError: an image cannot be read.
    """
    exported, parity = ExportedModel(path), Parity(tolerated_share(predictor.model))
    for image in images:
        pixels = read_image(str(image), "RGB", predictor.image_options)
        found = exported(Image.fromarray(pixels), threshold=CHECKED_SCORE - MAX_SCORE_DIFFERENCE)
        parity.add(predictor(pixels), found)
    return parity
