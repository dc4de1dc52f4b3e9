"""Postprocessing of SOLO and SOLOv2: cells of grids to ``Instances``."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor

from isda.modeling.matrix_nms import matrix_nms, point_nms
from isda.modeling.postprocessing import maskness, paste_rows
from isda.structures import GridPrediction

__all__ = ["GridSelector"]

_CHUNK = 256  # masks measured at a time, where there are more candidates than may stay


@dataclass(frozen=True)
class GridSelector:
    """The instances that a grid of cells has found (SOLO, arXiv 1912.04488, section 3.4).

    However many candidates there are, only ``max_candidates`` masks are kept at a time.
    """

    # Per level; a mask needs more pixels. At stride 4 it is the level's stride.
    min_pixels: Sequence[float]
    score_threshold: float = 0.1  # a class of a cell above it is a candidate
    max_candidates: int = 500  # that matrix NMS compares
    nms_kernel: str = "gaussian"
    nms_sigma: float = 2.0
    final_threshold: float = 0.05  # of the scores that matrix NMS leaves
    mask_threshold: float = 0.5
    max_instances: int = 100

    def __call__(
        self,
        prediction: GridPrediction,
        image: int,
        *,
        image_size: tuple[int, int],
        padded_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> Instances:
        """
        Args:
            image: its index in the batch.
            image_size: ``(height, width)`` that the model saw, without padding.
            padded_size: the batch's ``(height, width)``.
            output_size: ``(height, width)`` of the masks to return.

        Returns:
            ``pred_boxes`` (XYXY, tight), ``pred_masks`` ``(n, height, width)`` bool, ``scores``
            (class probability × maskness, lowered by matrix NMS; descending), ``pred_classes``.
        """
        scores, classes, rows, probs = self._candidates(prediction, image)
        scores = matrix_nms(
            scores, classes, (probs > self.mask_threshold)[rows], self.nms_kernel, self.nms_sigma
        )
        scores, order = scores.sort(descending=True, stable=True)
        order = order[scores >= self.final_threshold][: self.max_instances]
        scores, classes = scores[: len(order)], classes[order]
        used, rows = rows[order].unique(return_inverse=True)
        sizes = (padded_size, image_size, output_size)
        masks, boxes, occupied = paste_rows(probs[used], rows, sizes, self.mask_threshold)
        return Instances(
            output_size,
            pred_masks=masks,
            pred_boxes=boxes,
            scores=scores[occupied],
            pred_classes=classes[occupied],
        )

    def _candidates(
        self, prediction: GridPrediction, image: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best candidates: scores, descending, classes and rows of the last, ``(n,)`` each;
        and mask probabilities ``(m, h, w)``, one for each cell that is among them."""
        probs = [_scores_of_cells(logits[image]) for logits in prediction.class_logits]
        cells, classes = (torch.cat(probs) > self.score_threshold).nonzero().unbind(dim=1)
        scores = torch.cat(probs)[cells, classes]
        masks = _MasksOfImage(prediction, image)
        unique, rows = cells.unique(return_inverse=True)
        kept = masks.of(unique) if len(unique) <= self.max_candidates else None
        areas, means = self._measured(masks, unique, kept)
        large = areas > masks.per_cell(self.min_pixels)[unique]
        scores = scores * (means * large)[rows]
        count = min(self.max_candidates, int(large[rows].sum()))
        scores, best = scores.topk(count)
        chosen, rows = rows[best].unique(return_inverse=True)
        probs = masks.of(unique[chosen]) if kept is None else kept[chosen]
        return scores, classes[best], rows, probs

    def _measured(
        self, masks: "_MasksOfImage", cells: Tensor, kept: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Pixels above the threshold, and their mean probability, of the cells' masks: ``(m,)``."""
        chunks = map(masks.of, cells.split(_CHUNK)) if kept is None else kept.split(_CHUNK)
        areas, means = [], []
        for probs in chunks:
            areas.append((probs > self.mask_threshold).sum(dim=(1, 2)))
            means.append(maskness(probs, self.mask_threshold))
        return torch.cat(areas), torch.cat(means)


class _MasksOfImage:
    """Masks of one image by the cells' numbers over all levels, at the finest level's stride."""

    def __init__(self, prediction: GridPrediction, image: int):
        self.masks, self.image = prediction.masks, image
        self.counts = [logits.shape[-1] ** 2 for logits in prediction.class_logits]
        self.device = prediction.class_logits[0].device

    def per_cell(self, per_level: Sequence[float]) -> Tensor:
        """What a level has, for each of its cells."""
        values = torch.tensor(per_level, device=self.device)
        return values.repeat_interleave(torch.tensor(self.counts, device=self.device))

    def of(self, cells: Tensor) -> Tensor:
        """Probabilities of ``(n,)`` ascending cells: ``(n, h, w)`` float32."""
        size = self.masks[0].size
        probs, first = [], 0
        for masks, count in zip(self.masks, self.counts, strict=True):
            of_level = cells[(cells >= first) & (cells < first + count)] - first
            first += count
            if len(of_level):
                probs.append(_resized(masks.probs(self.image, of_level), size))
        return torch.cat(probs) if probs else torch.zeros(0, *size, device=self.device)


def _scores_of_cells(logits: Tensor) -> Tensor:
    """``(K, S, S)`` → ``(S·S, K)`` class probabilities, 0 where a neighbour's is larger."""
    return point_nms(logits.float().sigmoid()).flatten(1).T


def _resized(probs: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(probs.shape[-2:]) == tuple(size):
        return probs
    return F.interpolate(probs[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
