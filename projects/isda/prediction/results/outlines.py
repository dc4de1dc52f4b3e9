"""Masks as polygons along the edges of their pixels, which lose nothing."""

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from isda.structures import RLEMasks

if TYPE_CHECKING:
    from isda.prediction.prediction import Prediction

__all__ = ["Polygon", "masks_of", "polygons_of", "window_of"]


class Polygon(NamedTuple):
    """A connected part of a mask: rings of corners ``(n, 2)`` int64 as (x, y), not closed.

    Corners are those of pixels: pixel (x, y) spans [x, x + 1] × [y, y + 1]. The outline has a
    positive area by the shoelace formula, holes a negative one; no ring touches itself.
    """

    outline: np.ndarray
    holes: list[np.ndarray]


def masks_of(prediction: "Prediction") -> list[np.ndarray]:
    """``(H, W)`` bool of each instance, decoded one at a time where they are encoded.

    Raises:
        ValueError: the model predicts boxes alone.
    """
    if not prediction.has("pred_masks"):
        raise ValueError("the model predicts no masks, so these cannot be written: use .json")
    masks = prediction.pred_masks
    masks = masks if isinstance(masks, RLEMasks) else masks.cpu()
    return (mask.numpy().astype(bool) for mask in masks)


def window_of(mask: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """The part of a mask that is not empty, and the (top, left) of it."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return mask[:0, :0], (0, 0)
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], (rows[0], columns[0])


def polygons_of(mask: np.ndarray) -> list[Polygon]:
    """The parts of a mask, whose pixels share sides; those that share corners alone are apart.

    Args:
        mask: ``(H, W)`` bool.
    """
    from scipy import ndimage  # a second, for outlines alone

    window, (top, left) = window_of(mask)
    padded = np.pad(window, 1)
    parts, count = ndimage.label(padded)
    outlines: dict[int, np.ndarray] = {}
    holes = defaultdict(list)
    for ring in _rings(padded):
        part = parts[_inside(ring)]
        corners = _corners(ring) + (left - 1, top - 1)
        if _area(ring) > 0:
            assert part not in outlines, part
            outlines[part] = corners
        else:
            holes[part].append(corners)
    assert len(outlines) == count, (len(outlines), count)
    return [Polygon(outlines[part], holes[part]) for part in sorted(outlines)]


def _rings(mask: np.ndarray) -> list[np.ndarray]:
    """Closed walks along the sides between pixels inside and outside, ``(n, 2)`` as (x, y).

    Every step is one pixel long and has the inside on its right (y grows downwards).
    """
    ahead: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for (dy, dx), start, step in (
        ((-1, 0), (0, 0), (1, 0)),  # above is outside: to the right along the upper side
        ((0, 1), (1, 0), (0, 1)),
        ((1, 0), (1, 1), (-1, 0)),
        ((0, -1), (0, 1), (0, -1)),
    ):
        neighbour = np.roll(mask, (-dy, -dx), axis=(0, 1))  # the margin of the mask is empty
        for y, x in np.argwhere(mask & ~neighbour).tolist():
            ahead[x + start[0], y + start[1]].append(step)
    rings = []
    while ahead:
        point = next(iter(ahead))
        step, walk = ahead[point][0], []
        while point in ahead:
            choices = ahead[point]
            # Where two pixels share a corner alone, the right turn stays with the same pixel.
            right = (-step[1], step[0])
            step = right if right in choices else choices[0]
            choices.remove(step)
            if not choices:
                del ahead[point]
            walk.append(point)
            point = (point[0] + step[0], point[1] + step[1])
        rings += _simple(walk)
    return rings


def _simple(walk: list[tuple[int, int]]) -> list[np.ndarray]:
    """The walk cut where it comes to a point again, so that no part touches itself."""
    rings, path, places = [], [], {}
    for point in walk:
        if point in places:
            start = places[point]
            rings.append(np.array(path[start:]))
            for left in path[start + 1 :]:
                del places[left]
            path = path[: start + 1]
        else:
            places[point] = len(path)
            path.append(point)
    return [*rings, np.array(path)]


def _inside(ring: np.ndarray) -> tuple[int, int]:
    """(row, column) of the pixel on the right of the first step."""
    (x, y), (dx, dy) = ring[0].tolist(), (ring[1] - ring[0]).tolist()
    return y - (-1 in (dx, dy)), x - (dx == -1 or dy == 1)


def _corners(ring: np.ndarray) -> np.ndarray:
    """The points at which a walk turns."""
    steps = np.roll(ring, -1, axis=0) - ring
    return ring[(steps != np.roll(steps, 1, axis=0)).any(axis=1)]


def _area(ring: np.ndarray) -> float:
    """By the shoelace formula."""
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2
