"""Postprocessing: a set of predictions to ``Instances`` at the image's own size.

Masks are a bool tensor up to 256 MB for an image, and beyond that :class:`RLEMasks`, made one
by one, so that neither the size of an image nor the number of its instances exhausts the memory.
Where ellipses bound the masks, nothing but windows around them is computed either.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from isda.modeling.connected_components import largest_components
from isda.modeling.upsampling import aligned_bilinear
from isda.modeling.windows import (
    CellWindow,
    first_and_end,
    mask_logits,
    possible_windows,
    window_groups,
)
from isda.structures import EmbeddedPrediction, RLEMasks, SetPrediction, encode_window

__all__ = [
    "MaskWindow",
    "best_pairs",
    "binary_masks",
    "boxed_instances",
    "encode_masks",
    "fits_in_memory",
    "mask_windows",
    "maskness",
    "masks_to_boxes",
    "paste_masks",
    "paste_rows",
    "select_embedded_instances",
    "select_instances",
]

_CHUNK_PIXELS = 2**24  # 64 MB of float32 mask probabilities at a time
_DENSE_PIXELS = 2**28  # what the bool masks of one image may take: 256 MB
_MARGIN = 2  # cells around a window: then all pixels next to the instance are interpolated exactly


class MaskWindow(NamedTuple):
    """A mask that is empty outside a window."""

    mask: Tensor  # (h, w) bool, tight around the instance; (0, 0) if there is none
    corner: tuple[int, int]  # (top, left) of the window in the image

    @property
    def box(self) -> tuple[int, int, int, int]:
        """XYXY, pixel edges included."""
        (top, left), (height, width) = self.corner, self.mask.shape
        return left, top, left + width, top + height

    @classmethod
    def empty(cls, device: torch.device) -> "MaskWindow":
        return cls(torch.zeros(0, 0, dtype=torch.bool, device=device), (0, 0))


def select_instances(
    prediction: SetPrediction,
    image: int,
    *,
    image_size: tuple[int, int],
    padded_size: tuple[int, int],
    output_size: tuple[int, int],
    max_instances: int = 100,
    threshold: float = 0.5,
    keep_largest_component: bool = False,
    ellipse: bool = False,
) -> Instances:
    """The best (query, class) pairs of one image (ISDA, arXiv 2202.12251, section 2.4). No NMS.

    ``isda.prediction.export.ExportableISDA`` selects the same in a graph: change both together.

    Args:
        image: its index in the batch.
        image_size: ``(height, width)`` that the model saw, without padding.
        padded_size: the batch's ``(height, width)``.
        output_size: ``(height, width)`` of the masks to return.
        max_instances: pairs to consider.
        threshold: a pixel is in a mask when its probability is above.
        keep_largest_component: of each mask keep only the largest connected component; scores
            stay.
        ellipse: kernels draw ellipses, so that masks can be computed in windows around them. That
            changes the time and the memory, not the result.

    Returns:
        ``pred_boxes`` (XYXY, tight), ``pred_masks`` ``(n, height, width)`` bool, ``scores``
        (class probability × maskness, descending), ``pred_classes``, and ``queries``, the numbers
        of the queries that predicted them. Empty masks are dropped.
    """
    scores, queries, classes = best_pairs(prediction.class_logits[image], max_instances)
    chosen, rows = queries.unique(return_inverse=True)  # a query may be good for several classes
    kernels, features = prediction.kernels[image, chosen], prediction.mask_features[image]
    kernels, features = kernels.float(), features.float()
    sizes = (padded_size, image_size, output_size)
    # One by one, masks would leave a GPU idle.
    dense = features.device.type != "cpu" and fits_in_memory(len(queries), output_size)
    if ellipse and not dense and _divide(features.shape[1:], padded_size):
        windows, insides = _in_windows(kernels, features, sizes, threshold, keep_largest_component)
        scores = scores * insides[rows]
        order = scores.argsort(descending=True)
        masks, boxes, occupied = _gathered(windows, rows[order], output_size)
    else:
        probs = torch.einsum("nc,chw->nhw", kernels, features).sigmoid_()
        valid = _valid_cells(features.shape[1:], *sizes[:2])
        scores = scores * maskness(probs[:, : valid[0], : valid[1]], threshold)[rows]
        if keep_largest_component:
            probs = largest_components(probs, threshold, valid)
        order = scores.argsort(descending=True)
        masks, boxes, occupied = paste_rows(probs, rows[order], sizes, threshold)
    order = order[occupied]
    return Instances(
        output_size,
        pred_masks=masks,
        pred_boxes=boxes,
        scores=scores[order],
        pred_classes=classes[order],
        queries=queries[order],
    )


def paste_rows(
    probs: Tensor, rows: Tensor, sizes: Sequence[tuple[int, int]], threshold: float
) -> tuple[Tensor | RLEMasks, Boxes, Tensor]:
    """Masks and boxes of those ``rows`` of ``probs`` that are not empty; which are not, bool.

    Args:
        probs: ``(m, h, w)`` over the padded image.
        sizes: (height, width) of the padded image, of the image in it, and of the results.
    """
    # One by one, masks would leave a GPU idle.
    if probs.device.type == "cpu" or not fits_in_memory(len(rows), sizes[-1]):
        return _gathered(mask_windows(probs, *sizes, threshold), rows, sizes[-1])
    masks = paste_masks(probs, *sizes, threshold)
    occupied = masks.flatten(1).any(dim=1)[rows]
    masks = masks[rows[occupied]]
    return masks, masks_to_boxes(masks), occupied


def _gathered(
    windows: Sequence[MaskWindow], rows: Tensor, size: tuple[int, int]
) -> tuple[Tensor | RLEMasks, Boxes, Tensor]:
    """Masks and boxes of those ``rows`` of ``windows`` that are not empty; which are not, bool."""
    occupied = rows.new_tensor([window.mask.numel() > 0 for window in windows], dtype=torch.bool)
    occupied = occupied[rows]
    fits = fits_in_memory(len(rows), size)
    windows = [windows[row] for row in rows[occupied].tolist()]
    boxes = rows.new_tensor([window.box for window in windows], dtype=torch.float32)
    return (_filled if fits else _encoded)(windows, size), Boxes(boxes.view(-1, 4)), occupied


def _in_windows(
    kernels: Tensor,
    features: Tensor,
    sizes: Sequence[tuple[int, int]],
    threshold: float,
    keep_largest_component: bool,
) -> tuple[list[MaskWindow], Tensor]:
    """Masks at the output size, and maskness ``(n,)``, of kernels ``(n, C)`` with ellipses.

    A few are in the memory at a time, and of the results only what surrounds the instances.
    """
    cells = tuple(features.shape[1:])
    valid = _valid_cells(cells, *sizes[:2])
    features = CellWindow(0, 0, *(edge + _MARGIN for edge in valid)).of(features)
    windows = possible_windows(kernels, features, threshold, _MARGIN)
    masks = [MaskWindow.empty(features.device)] * len(kernels)
    insides = kernels.new_zeros(len(kernels))
    for rows, group in window_groups(windows, features):
        probs = mask_logits(kernels[rows], features, group).sigmoid_()
        visible = _visible(group, valid, probs)
        inside = probs.where(visible, 0)
        insides[rows] = maskness(inside, threshold)
        if keep_largest_component:
            probs = largest_components(inside, threshold, inside.shape[1:]).where(visible, probs)
        corners = [window[:2] for window in group]
        found = mask_windows(probs, *sizes, threshold, corners, cells)
        for row, mask in zip(rows, found, strict=True):
            masks[row] = mask
    return masks, insides


def _visible(windows: Sequence[CellWindow], valid: tuple[int, int], probs: Tensor) -> Tensor:
    """Which cells of windows of one size lie in the image: ``(n, height, width)`` bool."""
    rows, columns = (
        torch.arange(side, device=probs.device)
        + torch.tensor([window[axis] for window in windows], device=probs.device)[:, None]
        < valid[axis]
        for axis, side in enumerate(probs.shape[1:])
    )
    return rows[:, :, None] & columns[:, None]


def _valid_cells(
    cells: tuple[int, int], padded_size: tuple[int, int], image_size: tuple[int, int]
) -> tuple[int, int]:
    """How many rows and columns of a padded image's cells the image itself reaches."""
    return tuple(
        -(-size * count // padded)
        for size, count, padded in zip(image_size, cells, padded_size, strict=True)
    )


def _divide(cells: tuple[int, int], padded_size: tuple[int, int]) -> bool:
    return all(size % count == 0 for size, count in zip(padded_size, cells, strict=True))


def select_embedded_instances(
    prediction: EmbeddedPrediction,
    image: int,
    decode: Callable[[Tensor], Tensor],
    *,
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    max_instances: int = 100,
    threshold: float = 0.5,
) -> Instances:
    """The best (query, class) pairs of one image (ISTR, arXiv 2105.00637). No NMS.

    Only what is chosen is decoded, and only what lies in the image is pasted.

    Args:
        image: its index in the batch.
        decode: ``(n, d)`` embeddings to ``(n, S, S)`` mask probabilities.
        image_size: ``(height, width)`` that the model saw, without padding.
        output_size: ``(height, width)`` of the masks to return.
        max_instances: pairs to consider.
        threshold: a pixel is in a mask when its probability is at least this.

    Returns:
        ``pred_boxes`` (XYXY, clipped), ``pred_masks`` ``(n, height, width)`` bool, ``scores`` (the
        class probabilities, descending), ``pred_classes``, and ``queries``, the numbers of the
        queries that predicted them. Boxes outside the image are dropped.
    """
    scores, queries, classes = best_pairs(prediction.class_logits[image], max_instances)
    embeddings = prediction.embeddings[image, queries].float()
    chosen = Instances(
        image_size,
        pred_boxes=Boxes(prediction.boxes[image, queries]),
        scores=scores,
        pred_classes=classes,
        queries=queries,
        pred_masks=decode(embeddings)[:, None],  # (n, 1, S, S)
    )
    return boxed_instances(chosen, output_size, threshold)


def boxed_instances(
    instances: Instances, output_size: tuple[int, int], threshold: float = 0.5
) -> Instances:
    """Detectron2's ``detector_postprocess``; masks that would be too large together are encoded.

    Args:
        instances: with ``pred_boxes`` and, for masks, ``pred_masks`` ``(n, 1, S, S)``
            probabilities inside them; the boxes are changed in place.
        output_size: ``(height, width)`` of the masks to return.
        threshold: a pixel is in a mask when its probability is at least this.
    """
    if not instances.has("pred_masks") or fits_in_memory(len(instances), output_size):
        return detector_postprocess(instances, *output_size, mask_threshold=threshold)
    parts = []
    for index in range(len(instances)):
        part = detector_postprocess(instances[index], *output_size, mask_threshold=threshold)
        part.pred_masks = RLEMasks.encode(part.pred_masks)
        parts.append(part)
    return Instances.cat(parts)


def fits_in_memory(count: int, size: tuple[int, int]) -> bool:
    return count * size[0] * size[1] <= _DENSE_PIXELS


def best_pairs(class_logits: Tensor, max_instances: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, queries and classes of the best of all N·K pairs, descending: ``(n,)`` each.

    Args:
        class_logits: ``(N, K)``.
        max_instances: n, if there are as many pairs.
    """
    probs = class_logits.float().sigmoid()  # (N, K)
    scores, indices = probs.flatten().topk(min(max_instances, probs.numel()))
    queries = torch.div(indices, probs.shape[1], rounding_mode="floor")
    return scores, queries, indices % probs.shape[1]


def maskness(probs: Tensor, threshold: float = 0.5) -> Tensor:
    """Mean probability of the pixels above the threshold: ``(n, h, w)`` → ``(n,)`` (SOLO)."""
    inside = (probs > threshold).to(probs.dtype)
    return (probs * inside).sum(dim=(1, 2)) / (inside.sum(dim=(1, 2)) + 1e-5)


def binary_masks(
    probs: Tensor,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    threshold: float = 0.5,
    aligned: bool = False,
) -> Tensor | RLEMasks:
    """All of n masks, empty ones too: as :func:`paste_masks`, or encoded where they are large."""
    sizes = (padded_size, image_size, output_size)
    fits = fits_in_memory(len(probs), output_size)
    if fits and probs.device.type != "cpu":  # one by one, masks would leave a GPU idle
        return paste_masks(probs, *sizes, threshold, aligned)
    windows = mask_windows(probs, *sizes, threshold, aligned=aligned)
    return (_filled if fits else _encoded)(windows, output_size)


def paste_masks(
    probs: Tensor,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    threshold: float = 0.5,
    aligned: bool = False,
) -> Tensor:
    """Binary masks at the output size from ``(n, h, w)`` probabilities over the padded image.

    Probabilities are upsampled to the padded size, cut to the image, resized and compared, a few
    masks at a time: only the boolean result grows with n.

    Args:
        aligned: upsample by :func:`isda.modeling.upsampling.aligned_bilinear`.
    """
    masks = probs.new_empty(len(probs), *output_size, dtype=torch.bool)
    pixels = max(padded_size[0] * padded_size[1], output_size[0] * output_size[1])
    count = max(_CHUNK_PIXELS // pixels, 1)
    for start in range(0, len(probs), count):
        full = _upsample(probs[None, start : start + count], padded_size, aligned)
        full = _resize(full[..., : image_size[0], : image_size[1]], output_size)
        torch.gt(full[0], threshold, out=masks[start : start + count])
    return masks


def encode_masks(
    probs: Tensor,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    threshold: float = 0.5,
) -> RLEMasks:
    """As :func:`paste_masks`, encoded; only what surrounds each instance is resized."""
    windows = mask_windows(probs, padded_size, image_size, output_size, threshold)
    return _encoded(windows, output_size)


def mask_windows(
    probs: Tensor,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    threshold: float = 0.5,
    corners: Sequence[tuple[int, int]] | None = None,
    cells: tuple[int, int] | None = None,
    aligned: bool = False,
) -> list[MaskWindow]:
    """As :func:`paste_masks`, but only what surrounds each instance is made.

    Bilinear: a pixel between four cells is above the threshold only where one of them is.

    Args:
        corners: ``(top, left)`` of each mask in cells, if ``probs`` are parts of maps. Outside
            the part no cell is above the threshold, nor in the two next to its edges inside, if
            they are not the map's own edges.
        cells: ``(h, w)`` of those maps, which divide the padded size.
        aligned: as for :func:`paste_masks`.
    """
    edges = [
        edge.tolist()
        for axis in (2, 1)  # rows, then columns
        for edge in first_and_end(probs.amax(dim=axis) > threshold)
    ]
    cells = cells or probs.shape[1:]
    windows = []
    corners = corners or [(0, 0)] * len(probs)
    for mask, corner, top, bottom, left, right in zip(probs, corners, *edges, strict=True):
        if _divide(cells, padded_size):
            factors = [size // count for size, count in zip(padded_size, cells, strict=True)]
            part, first = _upsampled_part(mask, (top, left), (bottom, right), factors, aligned)
            start = [f * (a + b) for f, a, b in zip(factors, corner, first, strict=True)]
        else:
            part, start = _upsample(mask[None, None], padded_size, aligned)[0, 0], (0, 0)
        part = part[: max(image_size[0] - start[0], 0), : max(image_size[1] - start[1], 0)]
        windows.append(_window(part, start, image_size, output_size, threshold))
    return windows


def _upsampled_part(
    probs: Tensor,
    first: tuple[int, int],
    end: tuple[int, int],
    factors: Sequence[int],
    aligned: bool,
) -> tuple[Tensor, list[int]]:
    """``probs`` enlarged by ``factors``, as far as the cells from ``first`` to ``end`` matter.

    Returns:
        That part, and the first of its cells, (top, left).
    """
    first = [max(cell - _MARGIN, 0) for cell in first]
    part = probs[first[0] : end[0] + _MARGIN, first[1] : end[1] + _MARGIN]
    sizes = [factor * cells for factor, cells in zip(factors, part.shape)]
    return _upsample(part[None, None], sizes, aligned)[0, 0], first


def _window(
    probs: Tensor,
    corner: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    threshold: float,
) -> MaskWindow:
    """Of a mask whose part at ``corner`` is ``probs``, at the output size."""
    rows, columns = _extent(probs, 1, threshold), _extent(probs, 0, threshold)
    if rows[1] == 0:
        return MaskWindow.empty(probs.device)
    if tuple(image_size) == tuple(output_size):
        mask = probs[slice(*rows), slice(*columns)] > threshold
        return MaskWindow(mask, (corner[0] + rows[0], corner[1] + columns[0]))
    device = probs.device
    above, below, y, top = _neighbours(rows, corner[0], image_size[0], output_size[0], device)
    before, after, x, left = _neighbours(columns, corner[1], image_size[1], output_size[1], device)
    count = max(_CHUNK_PIXELS // max(len(x), 1), 1)  # rows at a time
    parts = []
    for a, b, weight in zip(above.split(count), below.split(count), y[:, None].split(count)):
        lines = probs[a].lerp(probs[b], weight)
        parts.append(lines[:, before].lerp(lines[:, after], x) > threshold)
    return _tight(torch.cat(parts), (top, left))


def _extent(probs: Tensor, axis: int, threshold: float) -> tuple[int, int]:
    """First of the rows (axis 1) or columns (axis 0) that reach above, one past the last."""
    if probs.numel() == 0:
        return 0, 0
    occupied = (probs.amax(dim=axis) > threshold).nonzero()[:, 0].tolist()
    return (occupied[0], occupied[-1] + 1) if occupied else (0, 0)


def _tight(mask: Tensor, corner: tuple[int, int]) -> MaskWindow:
    rows, columns = (_extent(mask.view(torch.uint8), axis, 0) for axis in (1, 0))
    corner = (corner[0] + rows[0], corner[1] + columns[0])
    return MaskWindow(mask[slice(*rows), slice(*columns)], corner)


def _neighbours(
    occupied: tuple[int, int], offset: int, cells: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, int]:
    """How an axis resized to ``length`` is made of a part of its cells.

    Args:
        occupied: the first of the part's cells that count, and one past the last.
        offset: the number of the part's first cell on the axis.
        cells: of the whole axis.

    Returns:
        For each resized cell that an occupied one or one between such has a part in: the cell
        before it, the one after it, the latter's weight; and the number of the first of them.
    """
    first, end = (edge + offset for edge in occupied)
    # Half-pixel centres, as F.interpolate has them without align_corners.
    position = torch.arange(length, device=device, dtype=torch.float32) + 0.5
    position = (position * (cells / length) - 0.5).clamp(min=0)
    before = position.long().clamp(max=cells - 1)
    after = (before + 1).clamp(max=cells - 1)
    reached = ((after >= first) & (before < end)).nonzero()[:, 0]
    start = int(reached[0]) if len(reached) else 0
    before, after, position = before[reached], after[reached], position[reached]
    return before - offset, after - offset, position - before, start


def _filled(windows: Sequence[MaskWindow], size: tuple[int, int]) -> Tensor:
    """``(n, H, W)`` bool, on the CPU."""
    masks = torch.zeros(len(windows), *size, dtype=torch.bool)
    for mask, (part, (top, left)) in zip(masks, windows, strict=True):
        mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return masks


def _encoded(windows: Sequence[MaskWindow], size: tuple[int, int]) -> RLEMasks:
    return RLEMasks([encode_window(*window, size) for window in windows], size)


def masks_to_boxes(masks: Tensor) -> Boxes:
    """Tight XYXY boxes of ``(n, h, w)`` bool masks, pixel edges included; none may be empty."""
    if len(masks) == 0:
        return Boxes(torch.zeros(0, 4, device=masks.device))
    left, right = first_and_end(masks.any(dim=1))
    top, bottom = first_and_end(masks.any(dim=2))
    return Boxes(torch.stack([left, top, right, bottom], dim=1).float())


def _upsample(masks: Tensor, size: Sequence[int], aligned: bool) -> Tensor:
    """``(B, C, h, w)`` to ``size``; aligned, that is the same whole multiple of both sides."""
    if not aligned:
        return _resize(masks, size)
    factor = size[0] // masks.shape[2]
    assert [factor * cells for cells in masks.shape[2:]] == [*size], (masks.shape, size)
    return aligned_bilinear(masks, factor)


def _resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    return F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
