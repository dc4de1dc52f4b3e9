"""Sizes of the instances in an image, and how close they come to each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util
import torch
from torchvision.ops import batched_nms

from isda.data.masks import draw_columns, parse_segmentation

__all__ = ["NMS_THRESHOLDS", "Geometry", "measure"]

NMS_THRESHOLDS = (0.5, 0.7)  # of detectors after and before their heads
_SAME = 0.9  # mask IoU above which two annotations are of one object


@dataclass
class Geometry:
    """G instances of one image."""

    areas: np.ndarray  # (G,) pixels
    boxes: np.ndarray  # (G, 4) tight ones, XYWH in pixels
    touching: np.ndarray  # (G,) bool: a pixel of another one is the same or a neighbour (of eight)
    overlapping: np.ndarray  # (G,) bool: shares pixels with another one
    box_iou: np.ndarray  # (G,) with the box of that other instance which is most alike
    mask_iou: np.ndarray  # (G,) likewise
    deleted: dict[float, int]  # NMS threshold: true boxes that it would delete
    same: list[tuple[int, int]]  # pairs whose masks are nearly equal


def measure(rles: Sequence[dict], classes: Sequence[int], size: tuple[int, int]) -> Geometry:
    """What a perfect detector would have to tell apart.

    NMS is that of detectors, by class, on the true boxes, of which larger ones come first.

    Args:
        rles: compressed masks of the image's size.
        classes: of the instances.
        size: (height, width) of the image.
    """
    boxes = np.array(mask_util.toBbox(list(rles)), dtype=np.float64).reshape(-1, 4)
    areas = np.array(mask_util.area(list(rles)), dtype=np.int64).reshape(-1)
    near = _near(boxes)
    touching, overlapping = _contacts(rles, boxes, near, size)
    box_iou = _pairwise(boxes)
    # Of masks whose boxes do not meet it is 0 as well.
    mask_iou = _pairwise(rles) if box_iou.any() else np.zeros_like(box_iou)
    same = [(i, j) for i, j in np.argwhere(mask_iou >= _SAME).tolist() if i < j]
    return Geometry(
        areas=areas,
        boxes=boxes,
        touching=touching,
        overlapping=overlapping,
        box_iou=box_iou.max(axis=1, initial=0),
        mask_iou=mask_iou.max(axis=1, initial=0),
        deleted=_deleted_by_nms(boxes, areas, classes, box_iou.max(initial=0)),
        same=same,
    )


def _pairwise(shapes: Sequence[dict] | np.ndarray) -> np.ndarray:
    """``(G, G)`` IoU of masks or of XYWH boxes, 0 on the diagonal."""
    if len(shapes) == 0:
        return np.zeros((0, 0))
    shapes = shapes if isinstance(shapes, np.ndarray) else list(shapes)
    iou = np.array(mask_util.iou(shapes, shapes, [0] * len(shapes)))
    np.fill_diagonal(iou, 0)
    return iou


def _near(boxes: np.ndarray) -> np.ndarray:
    """``(G,)`` bool: another box meets this one, or is beside it without a pixel between."""
    start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    meets = ((start[:, None] <= end[None]) & (start[None] <= end[:, None])).all(axis=2)
    return meets.sum(axis=1) > 1  # each meets itself


def _deleted_by_nms(
    boxes: np.ndarray, areas: np.ndarray, classes: Sequence[int], largest_iou: float
) -> dict[float, int]:
    """Numbers by threshold; none, and nothing to compute, where no IoU is as large."""
    if largest_iou <= min(NMS_THRESHOLDS):
        return dict.fromkeys(NMS_THRESHOLDS, 0)
    corners = torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))
    scores, indices = torch.from_numpy(areas).double(), torch.tensor(list(classes)).long()
    kept = {t: len(batched_nms(corners, scores, indices, t)) for t in NMS_THRESHOLDS}
    return {threshold: len(boxes) - number for threshold, number in kept.items()}


def _contacts(
    rles: Sequence[dict], boxes: np.ndarray, near: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """``(G,)`` bool each: touching and overlapping; only those ``near`` another box can be."""
    touching, overlapping = np.zeros_like(near), np.zeros_like(near)
    if not near.any():
        return touching, overlapping
    # A border of one pixel, so that every window can be one pixel larger than its box.
    counts = np.zeros((size[0] + 2, size[1] + 2), dtype=np.uint16)
    windows = []
    for index in near.nonzero()[0].tolist():
        mask, window = _window(rles[index], boxes[index].astype(int), size)
        counts[window] += mask
        windows.append((index, mask, window))
    for index, mask, window in windows:
        others = counts[window] > mask
        touching[index] = (others & _grown(mask)).any()
        overlapping[index] = (others & mask).any()
    return touching, overlapping


def _window(
    rle: dict, box: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, tuple[slice, slice]]:
    """The mask in its box and one pixel around, and where that is on the bordered canvas."""
    x, y, width, height = box
    columns = draw_columns(parse_segmentation(rle, size), size[0], x, x + width)
    mask = np.pad(columns[y : y + height], 1)
    return mask, (slice(y, y + height + 2), slice(x, x + width + 2))


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and all neighbours of its pixels; it must not reach the border of the array."""
    rows = mask.copy()
    rows[1:] |= mask[:-1]
    rows[:-1] |= mask[1:]
    grown = rows.copy()
    grown[:, 1:] |= rows[:, :-1]
    grown[:, :-1] |= rows[:, 1:]
    return grown
