"""The mask AP that a perfect model could reach: what image sizes and mask stride leave of outlines.

ISDA learns masks as the resized image and the mask stride leave them, and inference enlarges them
again. How much of a true mask comes through can be computed from the annotations alone. The
smaller the objects, the more this decides, and not the network.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image
from torch import Tensor

from isda.data.masks import compressed_rle, draw_columns, parse_segmentation
from isda.modeling.connected_components import largest_components
from isda.modeling.postprocessing import MaskWindow, mask_windows
from isda.structures import SIZE_DIVISIBILITY
from isda.training.masks import shrink_masks

__all__ = ["AnnotatedImage", "Ceiling", "MaskForm", "mask_ceilings"]

_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's, of IoU
_CHUNK_CELLS = 2**22  # of mask probabilities at a time: 16 MB


@dataclass(frozen=True)
class AnnotatedImage:
    """The true masks of one image; no crowds among them."""

    size: tuple[int, int]  # (height, width)
    segmentations: Sequence[object]  # as of a COCO file or a dataset dict
    classes: Sequence[int | str]  # of the same instances

    @classmethod
    def of_dict(cls, record: Mapping) -> "AnnotatedImage":
        """Of one of Detectron2's dataset dicts with ``height`` and ``width``."""
        instances = [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
        return cls(
            (record["height"], record["width"]),
            [a.get("segmentation") for a in instances],
            [a.get("category_id", 0) for a in instances],
        )


@dataclass(frozen=True)
class MaskForm:
    """What decides how exactly ISDA can draw."""

    short_side: int  # INPUT.MIN_SIZE_TEST, pixels; 0 leaves images as they are
    longest_side: int  # INPUT.MAX_SIZE_TEST
    stride: int  # MODEL.ISDA.MASK_STRIDE
    queries: int  # MODEL.ISDA.NUM_QUERIES
    detections: int  # TEST.DETECTIONS_PER_IMAGE
    threshold: float = 0.5  # MODEL.ISDA.MASK_THRESHOLD
    keep_largest_component: bool = False  # MODEL.ISDA.KEEP_LARGEST_COMPONENT

    @classmethod
    def of(cls, cfg: CfgNode) -> "MaskForm":
        """Of a configuration whose meta-architecture is ISDA."""
        isda = cfg.MODEL.ISDA
        return cls(
            cfg.INPUT.MIN_SIZE_TEST,
            cfg.INPUT.MAX_SIZE_TEST,
            isda.MASK_STRIDE,
            isda.NUM_QUERIES,
            cfg.TEST.DETECTIONS_PER_IMAGE,
            isda.MASK_THRESHOLD,
            isda.KEEP_LARGEST_COMPONENT,
        )

    def enlarged(self, factor: int) -> "MaskForm":
        """The same with larger images."""
        return replace(
            self, short_side=factor * self.short_side, longest_side=factor * self.longest_side
        )

    def image_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of what the model sees of an image of this ``size``."""
        if self.short_side == 0:
            return size
        return ResizeShortestEdge.get_output_shape(*size, self.short_side, self.longest_side)


@dataclass(frozen=True)
class Ceiling:
    """Percent, as COCO's evaluation states them."""

    ap: float
    ap50: float
    ap75: float
    num_instances: int  # in all images
    num_sampled: int  # of which the masks were looked at
    num_beyond: int  # instances that an image has beyond the queries or detections


def mask_ceilings(
    images: Sequence[AnnotatedImage], forms: Sequence[MaskForm], limit: int = 5000
) -> list[Ceiling]:
    """What a model reaches whose masks are exactly those that it is taught.

    Every instance is found once, with its class, and masks are ranked by their quality. An AP is
    then the share of the instances whose mask has enough IoU with the true one: exact where the
    instances of a class are found in all images; COCO's evaluation, which reads precision at 101
    recalls, says the same to within 0.01. Of an image with more instances than queries or
    detections, any are found with equal chance. AP is averaged over the classes.

    Args:
        images: all of a data set; what cannot be trained on is left out.
        forms: what to compute it for.
        limit: instances to look at, chosen by chance, the same each time. The standard error of
            AP is below 0.5 / √limit.

    Returns:
        One for each form; empty where no instance can be used.
    """
    chosen = _sample([len(image.segmentations) for image in images], limit)
    ious: list[list[np.ndarray]] = [[] for _ in forms]
    owners, classes = [], []
    for index, instances in chosen.items():
        image = images[index]
        masks = _true_masks(image, instances)
        classes += [image.classes[i] for i in masks]
        owners += [index] * len(masks)
        for form, parts in zip(forms, ious, strict=True):
            parts.append(_ious(image, masks, form))
    if not owners:
        return []
    counts = np.array([len(image.segmentations) for image in images])
    return [
        _ceiling(np.concatenate(parts), classes, owners, counts, form)
        for form, parts in zip(forms, ious, strict=True)
    ]


def _sample(counts: Sequence[int], limit: int) -> dict[int, list[int]]:
    """Instances of some images: ``{image: instances}``, in order."""
    total = sum(counts)
    chosen = np.arange(total)
    if total > limit:  # a generator of its own, so that no training draws other numbers
        chosen = np.sort(np.random.default_rng(0).choice(total, limit, replace=False))
    ends = np.cumsum(counts)
    sampled: dict[int, list[int]] = {}
    for image, number in zip(np.searchsorted(ends, chosen, side="right").tolist(), chosen.tolist()):
        sampled.setdefault(image, []).append(number - int(ends[image]) + counts[image])
    return sampled


@dataclass
class _TrueMask:
    """A mask in its window, and its outline where it has one."""

    window: MaskWindow
    polygons: list[np.ndarray] | None  # (points, 2) each


def _true_masks(image: AnnotatedImage, instances: Iterable[int]) -> dict[int, _TrueMask]:
    """The masks that can be used, by instance."""
    masks = {}
    for instance in instances:
        try:
            parsed = parse_segmentation(image.segmentations[instance], image.size)
        except ValueError:  # which training counts, or stops at
            continue
        polygons = parsed if isinstance(parsed, list) else None
        window = _drawn(parsed, image.size)
        if window is not None:
            masks[instance] = _TrueMask(window, polygons)
    return masks


def _drawn(parsed: list[np.ndarray] | np.ndarray, size: tuple[int, int]) -> MaskWindow | None:
    """Polygons, or run lengths of columns, in their window; None without a pixel."""
    if isinstance(parsed, list):
        rle = compressed_rle([points.reshape(-1).tolist() for points in parsed], size)
        if mask_util.area(rle) == 0:
            return None
        parsed = parse_segmentation(rle, size)
    ends = np.cumsum(parsed)
    foreground = np.flatnonzero(parsed[1::2]) * 2 + 1
    left = int((ends[foreground[0]] - parsed[foreground[0]]) // size[0])
    right = int((ends[foreground[-1]] - 1) // size[0]) + 1
    columns = draw_columns(parsed, size[0], left, right)
    rows = np.flatnonzero(columns.any(axis=1))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return MaskWindow(torch.from_numpy(columns[top:bottom].copy()), (top, left))


def _ious(image: AnnotatedImage, masks: Mapping[int, _TrueMask], form: MaskForm) -> np.ndarray:
    """``(n,)`` IoU of the masks with what inference makes of them."""
    seen = form.image_size(image.size)
    padded = tuple(-(-side // SIZE_DIVISIBILITY) * SIZE_DIVISIBILITY for side in seen)
    resized = _resized(masks.values(), image.size, seen)
    grid = tuple(side // form.stride for side in padded)
    count = max(_CHUNK_CELLS // (grid[0] * grid[1]), 1)
    results: list[float] = []
    truths = [mask.window for mask in masks.values()]
    for start in range(0, len(truths), count):
        probs = _shrunk(resized[start : start + count], form.stride, grid)
        if form.keep_largest_component:
            probs = largest_components(probs, form.threshold, grid)
        drawn = mask_windows(probs, padded, seen, image.size, form.threshold)
        results += map(_iou, drawn, truths[start : start + count])
    return np.array(results)


def _resized(
    masks: Iterable[_TrueMask], size: tuple[int, int], seen: tuple[int, int]
) -> list[MaskWindow | None]:
    """As the data set mapper resizes them: outlines by their points, pixels by the nearest."""
    scale = np.array([seen[1] / size[1], seen[0] / size[0]])  # x, y
    sources = [_nearest(old, new) for old, new in zip(size, seen)]
    return [
        _picked(mask.window, *sources)
        if mask.polygons is None
        else _drawn([points * scale for points in mask.polygons], seen)
        for mask in masks
    ]


def _nearest(length: int, resized: int) -> np.ndarray:
    """Which of ``length`` pixels each of the resized ones is, as Pillow decides it."""
    ramp = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    return np.asarray(ramp.resize((resized, 1), Image.Resampling.NEAREST))[0]


def _picked(window: MaskWindow, rows: np.ndarray, columns: np.ndarray) -> MaskWindow | None:
    """A window of pixels resized; None where none is picked."""
    starts, ends = zip(
        *(
            np.searchsorted(source, (first, first + length)).tolist()
            for source, first, length in zip((rows, columns), window.corner, window.mask.shape)
        )
    )
    y, x = (
        torch.from_numpy(source[start:end] - first)
        for source, start, end, first in zip((rows, columns), starts, ends, window.corner)
    )
    return MaskWindow(window.mask[y][:, x], starts) if len(y) and len(x) else None


def _shrunk(windows: Sequence[MaskWindow | None], stride: int, grid: tuple[int, int]) -> Tensor:
    """``(n, *grid)`` float32: the masks at the stride, as the model's targets are."""
    cells = torch.zeros(len(windows), *grid)
    for plane, window in zip(cells, windows, strict=True):
        if window is None:
            continue
        top, left = (first % stride for first in window.corner)
        mask = torch.nn.functional.pad(window.mask, (left, 0, top, 0))
        part = shrink_masks(mask[None], stride)[0]
        y, x = (first // stride for first in window.corner)
        plane[y : y + part.shape[0], x : x + part.shape[1]] = part
    return cells


def _iou(first: MaskWindow, second: MaskWindow) -> float:
    corner = [max(edges) for edges in zip(first.corner, second.corner)]
    parts = [
        window.mask[max(corner[0] - window.corner[0], 0) :, max(corner[1] - window.corner[1], 0) :]
        for window in (first, second)
    ]
    height, width = (min(lengths) for lengths in zip(*(part.shape for part in parts)))
    shared = int((parts[0][:height, :width] & parts[1][:height, :width]).sum())
    return shared / (int(first.mask.sum()) + int(second.mask.sum()) - shared)


def _ceiling(
    ious: np.ndarray,
    classes: Sequence[int | str],
    owners: Sequence[int],
    counts: np.ndarray,
    form: MaskForm,
) -> Ceiling:
    most = min(form.queries, form.detections)
    # The chance of an instance to be among those that are found.
    found = np.minimum(most / np.maximum(counts[owners], 1), 1)
    passed = (ious[:, None] >= _THRESHOLDS) * found[:, None]  # (n, thresholds)
    numbers = np.unique(np.array(classes, dtype=str), return_inverse=True)[1]
    shares = [passed[numbers == number].mean(axis=0) for number in range(numbers.max() + 1)]
    by_threshold = 100 * np.mean(shares, axis=0)
    return Ceiling(
        ap=float(by_threshold.mean()),
        ap50=float(by_threshold[0]),
        ap75=float(by_threshold[5]),
        num_instances=int(counts.sum()),
        num_sampled=len(ious),
        num_beyond=int(np.maximum(counts - most, 0).sum()),
    )
