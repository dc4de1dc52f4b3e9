"""Terms of the set loss and of the matching cost, each in one place."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["box_distances", "dice_loss", "focal_cost", "generalized_iou", "soft_iou_terms"]


def dice_loss(
    probs: Tensor, targets: Tensor, eps: float = 0.002, weights: Tensor | None = None
) -> Tensor:
    """Dice loss with squared sums (V-Net, arXiv 1606.04797): ``1 − 2Σpg / (Σp² + Σg² + eps)``.

    Args:
        probs, targets: ``(M, P)`` in [0, 1].
        weights: ``(P,)`` of the columns in all sums; None weighs all alike.

    Returns:
        ``(M,)``.
    """
    if weights is not None:  # the root, as each sum is of products of two
        probs, targets = probs * weights.sqrt(), targets * weights.sqrt()
    overlap = (probs * targets).sum(dim=1)
    total = probs.square().sum(dim=1) + targets.square().sum(dim=1)
    return 1 - 2 * overlap / (total + eps)


def box_distances(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """L1 distance and generalised IoU of boxes, elementwise with broadcasting.

    Args:
        boxes, others: ``(..., 4)`` as (centre x, centre y, width, height).
    """
    corners = [
        torch.cat([b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2], dim=-1)
        for b in (boxes, others)
    ]
    return (boxes - others).abs().sum(dim=-1), generalized_iou(*corners)


def focal_cost(
    class_logits: Tensor, alpha: float = 0.25, gamma: float = 2.0, log_eps: float = 1e-12
) -> Tensor:
    """What the focal loss changes when a query takes a class (Deformable DETR's class cost).

    Args:
        class_logits: ``(..., K)``.
        log_eps: probabilities below it count as it, so that the cost is finite.

    Returns:
        ``(..., K)``: loss as a positive minus loss as a negative, for each class.
    """
    probs = class_logits.sigmoid()
    positive = -alpha * (1 - probs) ** gamma * probs.clamp(min=log_eps).log()
    negative = -(1 - alpha) * probs**gamma * (1 - probs).clamp(min=log_eps).log()
    return positive - negative


def generalized_iou(boxes: Tensor, others: Tensor, eps: float = 1e-7) -> Tensor:
    """Generalised IoU (arXiv 1902.09630), elementwise with broadcasting.

    Unlike fvcore's and torchvision's it broadcasts, is finite for boxes without area, and lets
    NaN through instead of asserting, so that training can report the image that caused it.

    Args:
        boxes, others: ``(..., 4)`` XYXY; sides up to 1e18 in float32.
        eps: square pixels added to the areas that are divided by.

    Returns:
        ``(...)`` in [−1, 1].
    """
    overlap = (
        torch.minimum(boxes[..., 2:], others[..., 2:])
        - torch.maximum(boxes[..., :2], others[..., :2])
    ).clamp(min=0)
    hull = torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(
        boxes[..., :2], others[..., :2]
    )
    intersection, enclosing = overlap.prod(dim=-1), hull.prod(dim=-1)
    areas = [(b[..., 2:] - b[..., :2]).prod(dim=-1) for b in (boxes, others)]
    union = areas[0] + areas[1] - intersection
    return intersection / (union + eps) - (enclosing - union) / (enclosing + eps)


def soft_iou_terms(
    kernels: Tensor, features: Tensor, masks: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sums that make up the soft IoU between predicted and given masks over some pixels.

    The sums over several sets of pixels add up to those over their union, so a caller chooses
    how many pixels, or which, to look at.

    Args:
        kernels: ``(Q, C)``.
        features: ``(C, P)``; the logits are ``kernels @ features``.
        masks: ``(G, P)`` in [0, 1].
        weights: ``(P,)`` of the pixels in all sums; None weighs all alike.

    Returns:
        Intersections Σ m·g ``(Q, G)`` and predicted areas Σ m ``(Q, 1)``.
    """
    probs = (kernels @ features).sigmoid_()
    if weights is not None:
        probs *= weights
    return F.linear(probs, masks), torch.sum(probs, dim=1, keepdim=True)
