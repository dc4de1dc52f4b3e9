"""Masks with holes and of several parts, out of what tools write."""

from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util

from isda.data.formats.annotated import UnusableShapeError, encode, merge
from isda.data.masks import UnusableSegmentationError, usable_rle

__all__ = ["alternating_runs", "even_odd", "joined", "region"]


def region(
    outlines: Sequence[list[float]], holes: Sequence[list[float]], size: tuple[int, int]
) -> list | dict:
    """What lies in one of the outlines and in none of the holes.

    Args:
        outlines, holes: polygons ``[x, y, ...]`` in pixels.
        size: (height, width) of the image.

    Returns:
        COCO's polygons, or, as these have no holes, an RLE.

    Raises:
        UnusableShapeError: nothing is left, or an outline is malformed.
    """
    if not outlines:
        raise UnusableShapeError("without an outline")
    usable = merge([[outline] for outline in outlines], size)
    drawn = [rle for hole in holes if (rle := _drawn(hole, size)) is not None]
    if not drawn:
        return usable
    outer = mask_util.decode(mask_util.merge(mask_util.frPyObjects(usable, *size)))
    return _encoded((outer == 1) & (mask_util.decode(mask_util.merge(drawn)) == 0))


def even_odd(paths: Sequence[list[float]], size: tuple[int, int]) -> list | dict:
    """What lies in an odd number of the paths; all else as of :func:`region`."""
    drawn = [rle for path in paths if (rle := _drawn(path, size)) is not None]
    if not drawn:
        raise UnusableShapeError("of zero area")
    if len(drawn) == 1:
        return merge([[path] for path in paths if _drawn(path, size) is not None], size)
    return _encoded(mask_util.decode(drawn).sum(axis=2) % 2 == 1)


def joined(parts: Sequence[list | dict], size: tuple[int, int]) -> list | dict:
    """One segmentation of the parts of an object; raises as :func:`region`."""
    return merge(list(parts), size)


def alternating_runs(runs: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """``shape`` bool from lengths of runs along the rows, background first.

    Raises:
        UnusableShapeError: they do not add up.
    """
    lengths = np.asarray(runs)
    if lengths.dtype.kind not in "iu" or lengths.ndim != 1 or (lengths < 0).any():
        raise UnusableShapeError("malformed")
    if lengths.sum() != shape[0] * shape[1]:
        raise UnusableShapeError("malformed")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(shape)


def _encoded(mask: np.ndarray) -> dict:
    if not mask.any():
        raise UnusableShapeError("of zero area")
    return encode(mask)


def _drawn(polygon: list[float], size: tuple[int, int]) -> dict | None:
    """The pixels of a polygon; None where it has none."""
    try:
        return usable_rle([polygon], size)
    except UnusableSegmentationError:
        return None
