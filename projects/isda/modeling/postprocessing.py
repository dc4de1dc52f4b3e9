"""From a set of predictions to ``Instances`` at the image's own size.

Masks are a bool tensor up to 256 MB for an image, and beyond that :class:`EncodedMasks`, made one
by one, so that neither the size of an image nor the number of its instances exhausts the memory.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from isda.structures import EmbeddedPrediction, EncodedMasks, SetPrediction, encode_window

__all__ = [
    "best_pairs",
    "boxed_instances",
    "encode_masks",
    "maskness",
    "masks_to_boxes",
    "paste_masks",
    "select_embedded_instances",
    "select_instances",
]

_CHUNK_PIXELS = 2**24  # 64 MB of float32 mask probabilities at a time
_DENSE_PIXELS = 2**28  # what the bool masks of one image may take: 256 MB


def select_instances(
    prediction: SetPrediction,
    image: int,
    *,
    image_size: tuple[int, int],
    padded_size: tuple[int, int],
    output_size: tuple[int, int],
    max_instances: int = 100,
    threshold: float = 0.5,
) -> Instances:
    """The best (query, class) pairs of one image (ISDA, arXiv 2202.12251, section 2.4). No NMS.

    Args:
        image: its index in the batch.
        image_size: ``(height, width)`` that the model saw, without padding.
        padded_size: the batch's ``(height, width)``.
        output_size: ``(height, width)`` of the masks to return.
        max_instances: pairs to consider.
        threshold: a pixel is in a mask when its probability is above.

    Returns:
        ``pred_boxes`` (XYXY, tight), ``pred_masks`` ``(n, height, width)`` bool, ``scores``
        (class probability × maskness, descending), ``pred_classes``, and ``queries``, the numbers
        of the queries that predicted them. Empty masks are dropped.
    """
    scores, queries, classes = best_pairs(prediction.class_logits[image], max_instances)
    features = prediction.mask_features[image]
    kernels = prediction.kernels[image, queries].to(features.dtype)
    probs = torch.einsum("nc,chw->nhw", kernels, features).float().sigmoid()
    valid = tuple(
        -(-size * cells // padded)
        for size, cells, padded in zip(image_size, probs.shape[-2:], padded_size, strict=True)
    )
    scores = scores * maskness(probs[:, : valid[0], : valid[1]], threshold)
    order = scores.argsort(descending=True)
    if _fits(len(order), output_size):
        masks = paste_masks(probs[order], padded_size, image_size, output_size, threshold)
        kept = masks.flatten(1).any(dim=1)
    else:
        masks = encode_masks(probs[order], padded_size, image_size, output_size, threshold)
        kept = (masks.areas() > 0).to(order.device)
    return Instances(
        output_size,
        pred_masks=masks[kept],
        pred_boxes=masks_to_boxes(masks[kept]).to(order.device),
        scores=scores[order][kept],
        pred_classes=classes[order][kept],
        queries=queries[order][kept],
    )


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
    chosen = Instances(
        image_size,
        pred_boxes=Boxes(prediction.boxes[image, queries]),
        scores=scores,
        pred_classes=classes,
        queries=queries,
        pred_masks=decode(prediction.embeddings[image, queries])[:, None],  # (n, 1, S, S)
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
    if not instances.has("pred_masks") or _fits(len(instances), output_size):
        return detector_postprocess(instances, *output_size, mask_threshold=threshold)
    parts = []
    for index in range(len(instances)):
        part = detector_postprocess(instances[index], *output_size, mask_threshold=threshold)
        part.pred_masks = EncodedMasks.encode(part.pred_masks)
        parts.append(part)
    return Instances.cat(parts)


def _fits(count: int, size: tuple[int, int]) -> bool:
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


def paste_masks(
    probs: Tensor,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    threshold: float = 0.5,
) -> Tensor:
    """Binary masks at the output size from ``(n, h, w)`` probabilities over the padded image.

    Probabilities are upsampled to the padded size, cut to the image, resized and compared, a few
    masks at a time: only the boolean result grows with n.
    """
    masks = probs.new_empty(len(probs), *output_size, dtype=torch.bool)
    pixels = max(padded_size[0] * padded_size[1], output_size[0] * output_size[1])
    count = max(_CHUNK_PIXELS // pixels, 1)
    for start in range(0, len(probs), count):
        full = _resize(probs[None, start : start + count], padded_size)
        full = _resize(full[..., : image_size[0], : image_size[1]], output_size)
        masks[start : start + count] = full[0] > threshold
    return masks


def encode_masks(
    probs: Tensor,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    threshold: float = 0.5,
) -> EncodedMasks:
    """As :func:`paste_masks`, encoded; only what surrounds each instance is resized last."""
    rles = []
    for mask in probs:
        full = _resize(mask[None, None], padded_size)[0, 0, : image_size[0], : image_size[1]]
        rles.append(encode_window(*_pasted_window(full, output_size, threshold), output_size))
    return EncodedMasks(rles, output_size)


def _pasted_window(
    probs: Tensor, size: tuple[int, int], threshold: float
) -> tuple[Tensor, tuple[int, int]]:
    """The part of the mask, ``probs`` resized to ``size``, that may be above the threshold.

    Bilinear: a pixel between four cells is above only where one of them is.

    Returns:
        The part, bool, and its ``(top, left)``.
    """
    inside = probs > threshold
    if not inside.any():
        return inside[:0, :0], (0, 0)
    above, below, y, first_row = _neighbours(inside.any(dim=1), size[0])
    before, after, x, first_column = _neighbours(inside.any(dim=0), size[1])
    count = max(_CHUNK_PIXELS // max(len(x), 1), 1)  # rows at a time
    parts = []
    for a, b, weight in zip(above.split(count), below.split(count), y[:, None].split(count)):
        rows = probs[a].lerp(probs[b], weight)
        parts.append(rows[:, before].lerp(rows[:, after], x) > threshold)
    return torch.cat(parts), (first_row, first_column)


def _neighbours(occupied: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """How cells of an axis resized to ``length`` are made of those between the occupied ones.

    Args:
        occupied: ``(cells,)`` bool, at least one True.

    Returns:
        For each resized cell that an occupied one or one between such has a part in: the cell
        before it, the one after it, the latter's weight; and the number of the first of them.
    """
    cells = len(occupied)
    first, end = (int(edge) for edge in _first_and_end(occupied[None]))
    # Half-pixel centres, as F.interpolate has them without align_corners.
    position = torch.arange(length, device=occupied.device, dtype=torch.float32) + 0.5
    position = (position * (cells / length) - 0.5).clamp(min=0)
    before = position.long().clamp(max=cells - 1)
    after = (before + 1).clamp(max=cells - 1)
    reached = ((after >= first) & (before < end)).nonzero()[:, 0]
    start = int(reached[0]) if len(reached) else 0
    return before[reached], after[reached], (position - before)[reached], start


def masks_to_boxes(masks: Tensor | EncodedMasks) -> Boxes:
    """Tight XYXY boxes of ``(n, h, w)`` bool masks, pixel edges included; none may be empty."""
    if isinstance(masks, EncodedMasks):
        return Boxes(masks.boxes())
    if len(masks) == 0:
        return Boxes(torch.zeros(0, 4, device=masks.device))
    left, right = _first_and_end(masks.any(dim=1))
    top, bottom = _first_and_end(masks.any(dim=2))
    return Boxes(torch.stack([left, top, right, bottom], dim=1).float())


def _first_and_end(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First True of each row of ``(n, length)`` and one past the last."""
    occupied = occupied.to(torch.uint8)
    first = occupied.argmax(dim=1)
    return first, occupied.shape[1] - occupied.flip(1).argmax(dim=1)


def _resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    return F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
