"""From a set of predictions to ``Instances`` at the image's own size."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from isda.structures import EmbeddedPrediction, SetPrediction

__all__ = [
    "best_pairs",
    "maskness",
    "masks_to_boxes",
    "paste_masks",
    "select_embedded_instances",
    "select_instances",
]

_CHUNK_PIXELS = 2**24  # 64 MB of float32 mask probabilities at a time


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
        (class probability × maskness, descending) and ``pred_classes``. Empty masks are dropped.
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
    masks = paste_masks(probs[order], padded_size, image_size, output_size, threshold)
    kept = masks.flatten(1).any(dim=1)
    return Instances(
        output_size,
        pred_masks=masks[kept],
        pred_boxes=masks_to_boxes(masks[kept]),
        scores=scores[order][kept],
        pred_classes=classes[order][kept],
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
        class probabilities, descending) and ``pred_classes``. Boxes outside the image are dropped.
    """
    scores, queries, classes = best_pairs(prediction.class_logits[image], max_instances)
    chosen = Instances(
        image_size,
        pred_boxes=Boxes(prediction.boxes[image, queries]),
        scores=scores,
        pred_classes=classes,
        pred_masks=decode(prediction.embeddings[image, queries])[:, None],  # (n, 1, S, S)
    )
    return detector_postprocess(chosen, *output_size, mask_threshold=threshold)


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


def masks_to_boxes(masks: Tensor) -> Boxes:
    """Tight XYXY boxes of ``(n, h, w)`` bool masks, pixel edges included; none may be empty."""
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
