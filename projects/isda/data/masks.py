"""Segmentations of all formats of one image, taken through its transforms together.

Polygons are moved by their vertices and drawn last, at the final size; RLEs and bitmaps are
resampled by nearest neighbour, eight to a byte. Work and memory beside the result follow the
extents of the instances, not their number times the image.
"""

from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data.transforms import Transform

__all__ = [
    "BitmapStack",
    "PolygonStack",
    "UnusableSegmentationError",
    "compressed_rle",
    "draw_columns",
    "parse_segmentation",
    "usable_rle",
]

# Vertices farther than this many image sides outside are no annotation, and pycocotools, which
# crashes on some malformed segmentations, does not check them.
_FAR = 10


class UnusableSegmentationError(ValueError):
    """A segmentation that cannot be trained on; its text is the reason, to be counted."""


def parse_segmentation(
    segmentation: object, image_size: tuple[int, int]
) -> list[np.ndarray] | np.ndarray:
    """Check one segmentation of a dataset dict, so that nothing behind it can crash.

    Args:
        segmentation: COCO's polygons ``[[x, y, ...], ...]``, compressed or uncompressed RLE, or
            an ``(H, W)`` array.
        image_size: (height, width) of the image as it is on disk.

    Returns:
        Polygons as ``(n, 2)`` float64 arrays, or the run lengths of a column-major bitmap
        (background first).

    Raises:
        UnusableSegmentationError: malformed, of zero area, or wholly outside the image.
        ValueError: an RLE or array of another size than the image.
    """
    if isinstance(segmentation, dict):
        return _parse_rle(segmentation, image_size)
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        _check_size(segmentation.shape, image_size)
        segmentation = mask_util.encode(np.asfortranarray(segmentation != 0, dtype=np.uint8))
        return _parse_rle(segmentation, image_size)
    if isinstance(segmentation, list | tuple):
        return _parse_polygons(segmentation, image_size)
    reason = "without segmentation" if segmentation is None else "malformed"
    raise UnusableSegmentationError(reason)


def _parse_polygons(parts: Sequence, image_size: tuple[int, int]) -> list[np.ndarray]:
    polygons = []
    for part in parts:
        try:
            numbers = np.array(part, dtype=np.float64)  # a copy: it will be moved in place
        except (TypeError, ValueError) as error:
            raise UnusableSegmentationError("malformed") from error
        if numbers.ndim != 1 or len(numbers) % 2 or not np.isfinite(numbers).all():
            raise UnusableSegmentationError("malformed")
        if len(numbers) >= 6:  # fewer than three vertices cover nothing
            polygons.append(numbers.reshape(-1, 2))
    if not polygons:
        raise UnusableSegmentationError("of zero area")
    lowest = np.min([p.min(axis=0) for p in polygons], axis=0)
    highest = np.max([p.max(axis=0) for p in polygons], axis=0)
    extent = np.array(image_size[::-1])
    if (np.maximum(-lowest, highest - extent) > _FAR * max(image_size)).any():
        raise UnusableSegmentationError("malformed")
    if (highest <= lowest).any():
        raise UnusableSegmentationError("of zero area")
    if (highest <= 0).any() or (lowest >= extent).any():
        raise UnusableSegmentationError("outside the image")
    return polygons


def _parse_rle(rle: dict, image_size: tuple[int, int]) -> np.ndarray:
    size, counts = rle.get("size"), rle.get("counts")
    try:
        size = tuple(int(n) for n in size)
        runs = np.array(counts, np.int64) if isinstance(counts, list) else _decompress(counts)
    except (TypeError, ValueError, OverflowError) as error:
        raise UnusableSegmentationError("malformed") from error
    _check_size(size, image_size)
    # pycocotools does not check that runs add up, and can crash on malformed ones.
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise UnusableSegmentationError("malformed")
    if runs[1::2].sum() == 0:
        raise UnusableSegmentationError("of zero area")
    return runs


def _check_size(size: tuple[int, ...], image_size: tuple[int, int]) -> None:
    if tuple(size) != tuple(image_size):
        raise ValueError(
            f"a mask has size {list(size)}, its image {list(image_size)} (height, width): encode "
            "the masks at the size of the image"
        )


def _decompress(counts: bytes | str) -> np.ndarray:
    """Run lengths from COCO's string, which decodes all of it at once and checks it.

    A number is a group of 6-bit characters, five bits of it in each, lowest first; bit 5 says
    that more follow, bit 4 of the last is the sign. From the fourth on, a number is the
    difference to the last but one.
    """
    counts = counts.encode("ascii") if isinstance(counts, str) else counts
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("not an RLE string")
    is_last = (codes & 32) == 0
    ends = np.flatnonzero(is_last) + 1
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts
    if lengths.max() > 7:  # 35 bits: more than any image
        raise ValueError("not an RLE string")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= ((codes[is_last] & 16) > 0) * (1 << 5 * lengths)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def compressed_rle(segmentation: list | dict, image_size: tuple[int, int]) -> dict:
    """A usable segmentation, polygons or RLE, as one RLE that pycocotools reads.

    Args:
        segmentation: that :func:`parse_segmentation` has accepted.
        image_size: (height, width).
    """
    if isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list):
        return segmentation
    rles = mask_util.frPyObjects(segmentation, *image_size)
    return mask_util.merge(rles) if isinstance(rles, list) else rles


def usable_rle(segmentation: object, image_size: tuple[int, int]) -> dict:
    """The mask of a segmentation that can be trained on: it has at least one pixel.

    Args:
        segmentation, image_size: as of :func:`parse_segmentation`.

    Returns:
        A compressed RLE.

    Raises:
        UnusableSegmentationError, ValueError: as :func:`parse_segmentation`, and if the polygons
            lie between the centres of pixels.
    """
    parsed = parse_segmentation(segmentation, image_size)
    if not isinstance(parsed, list):
        return compressed_rle(segmentation, image_size)
    rle = compressed_rle([points.reshape(-1).tolist() for points in parsed], image_size)
    if mask_util.area(rle) == 0:
        raise UnusableSegmentationError("smaller than a pixel")
    return rle


def draw_columns(runs: np.ndarray, height: int, x0: int, x1: int) -> np.ndarray:
    """Columns x0 to x1 of a run-length encoded bitmap as ``(height, x1 - x0)`` bool."""
    edges = np.clip(np.cumsum(runs), x0 * height, x1 * height)
    lengths = np.diff(edges, prepend=x0 * height)
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, lengths)
    return pixels.reshape(x1 - x0, height).T


class PolygonStack:
    """Polygons of n instances after the transforms.

    Attributes:
        polygons: per instance a list of ``(points, 2)`` arrays, not clipped to the image.
        boxes: ``(n, 4)`` float64 tight XYXY boxes of the pixels; all zero when there are none.
    """

    def __init__(
        self,
        polygons: list[list[np.ndarray]],
        transforms: Transform,
        output_size: tuple[int, int],
    ):
        points = [part for parts in polygons for part in parts]
        if points:
            ends = np.cumsum([len(part) for part in points])[:-1]
            points = np.split(transforms.apply_coords(np.concatenate(points)), ends)
        points = iter(points)
        self.polygons = [[next(points) for _ in parts] for parts in polygons]
        self._height = output_size[0]
        self._rles = [_rasterise(parts, output_size) for parts in self.polygons]
        self.boxes = np.zeros((0, 4))
        if self._rles:
            self.boxes = mask_util.toBbox(self._rles)
            self.boxes[:, 2:] += self.boxes[:, :2]

    def draw(self, index: int, mask: np.ndarray) -> None:
        """Set the pixels of one instance in ``mask``, (height, width) bool zeros."""
        x0, y0, x1, y1 = self.boxes[index].astype(int)
        runs = _decompress(self._rles[index]["counts"])
        mask[y0:y1, x0:x1] = draw_columns(runs, self._height, x0, x1)[y0:y1]


def _rasterise(parts: list[np.ndarray], size: tuple[int, int]) -> dict:
    rles = mask_util.frPyObjects([part.reshape(-1) for part in parts], *size)
    return rles[0] if len(rles) == 1 else mask_util.merge(rles)


class BitmapStack:
    """Bitmaps of n instances after the transforms, eight to a byte.

    Attributes:
        boxes: ``(n, 4)`` float64 tight XYXY boxes of the pixels; all zero when there are none.
    """

    def __init__(self, runs: list[np.ndarray], transforms: Transform, input_size: tuple[int, int]):
        """
        Args:
            runs: of :func:`parse_segmentation`, for images of (height, width) ``input_size``.
        """
        self.boxes = np.zeros((len(runs), 4))
        self._planes = []
        # What a transform pads with counts as background, whatever value it pads with.
        padding = transforms.apply_segmentation(np.ones(input_size, np.uint8)) != 1 if runs else 0
        for start in range(0, len(runs), 8):
            plane = transforms.apply_segmentation(_pack(runs[start : start + 8], input_size))
            plane = np.where(padding, np.uint8(0), plane)
            self._planes.append(plane)
            self.boxes[start : start + 8] = _boxes_of_plane(plane)[: len(runs) - start]

    def draw(self, index: int, mask: np.ndarray) -> None:
        """Set the pixels of one instance in ``mask``, (height, width) bool zeros."""
        x0, y0, x1, y1 = self.boxes[index].astype(int)
        plane, bit = self._planes[index // 8], np.uint8(1 << index % 8)
        mask[y0:y1, x0:x1] = plane[y0:y1, x0:x1] & bit


def _pack(runs: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """``size`` uint8; bit i belongs to the i-th of up to eight bitmaps."""
    height, width = size
    plane = np.zeros((width, height), np.uint8).T  # column-major, as the runs are
    for bit, instance in enumerate(runs):
        foreground = np.flatnonzero(instance[1::2]) * 2 + 1
        ends = np.cumsum(instance)
        x0 = (ends[foreground[0]] - instance[foreground[0]]) // height
        x1 = (ends[foreground[-1]] - 1) // height + 1
        plane[:, x0:x1] |= draw_columns(instance, height, x0, x1) * np.uint8(1 << bit)
    return np.ascontiguousarray(plane)


def _boxes_of_plane(plane: np.ndarray) -> np.ndarray:
    """``(8, 4)`` tight boxes of the eight bits, zero for those without a pixel."""
    boxes = np.zeros((8, 4))
    for axis in (0, 1):  # x from the columns, y from the rows
        bits = np.bitwise_or.reduce(plane, axis=axis)
        occupied = np.unpackbits(bits[None], axis=0, bitorder="little").astype(bool)  # (8, length)
        some = occupied.any(axis=1)
        boxes[some, axis] = occupied[some].argmax(axis=1)
        boxes[some, axis + 2] = occupied.shape[1] - occupied[some, ::-1].argmax(axis=1)
    return boxes
