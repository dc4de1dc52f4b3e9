"""Polygons through the centres of the outermost pixels, which are half a pixel too small all round.

``cv2.findContours`` returns the coordinates of pixels, not of their corners, and supervision and
the converters of Label Studio write them as polygons. The square of 3x3 pixels becomes one of 2x2.
Where the area of the mask is stated beside, it tells.
"""

from collections.abc import Sequence

import numpy as np

__all__ = ["polygons_through_centres"]

_SAMPLED = 2000  # annotations that are looked at, at most
# Pixels that a mask has beyond the area of such a polygon, per pixel of its length: half of the
# outermost pixels, which are 1 apart along rows and the root of 2 along diagonals.
_PER_LENGTH = (0.25, 1.3)
_MANY = 0.05  # of the polygons


def polygons_through_centres(annotations: Sequence[dict]) -> str:
    """A sentence on the share of such polygons, if there are more than a few; else empty.

    Args:
        annotations: usable ones of a COCO file, with ``area`` and ``segmentation``.
    """
    outlines = [a for a in annotations if isinstance(a["segmentation"], list)]
    sample = outlines[:: max(len(outlines) // _SAMPLED, 1)]
    thin = [a for a in sample if _is_too_small(a)]
    if len(thin) <= _MANY * len(sample):
        return ""
    first = thin[0]
    return (
        f"{len(thin) / len(sample):.0%} of the polygons are smaller than the area that is stated "
        f"beside them, by about half a pixel all round (annotation {first['id']}: "
        f"{_area(first['segmentation']):g} of {first['area']:g} pixels): they go through the "
        "centres of the outermost pixels, as those of cv2.findContours, supervision and Label "
        "Studio's converter do; export the masks as RLE instead"
    )


def _is_too_small(annotation: dict) -> bool:
    length = sum(_length(part) for part in annotation["segmentation"])
    beyond = annotation["area"] - _area(annotation["segmentation"])
    return beyond >= 1 and _PER_LENGTH[0] * length <= beyond <= _PER_LENGTH[1] * length


def _points(part: list[float]) -> np.ndarray:
    return np.asarray(part, dtype=np.float64).reshape(-1, 2)


def _length(part: list[float]) -> float:
    points = _points(part)
    return float(np.hypot(*(points - np.roll(points, 1, axis=0)).T).sum())


def _area(polygons: list[list[float]]) -> float:
    """Of the polygons themselves, not of the pixels that are drawn."""
    total = 0.0
    for part in polygons:
        x, y = _points(part).T
        total += abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
    return total
