"""Terms of the set loss and of the matching cost, each in one place."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["dice_loss", "focal_cost", "soft_iou_terms"]

_LOG_EPS = 1e-12


def dice_loss(probs: Tensor, targets: Tensor, eps: float = 0.002) -> Tensor:
    """Dice loss with squared sums (V-Net, arXiv 1606.04797): ``1 − 2Σpg / (Σp² + Σg² + eps)``.

    Args:
        probs, targets: ``(M, P)`` in [0, 1].

    Returns:
        ``(M,)``.
    """
    overlap = (probs * targets).sum(dim=1)
    total = probs.square().sum(dim=1) + targets.square().sum(dim=1)
    return 1 - 2 * overlap / (total + eps)


def focal_cost(class_logits: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """What the focal loss changes when a query takes a class (Deformable DETR's class cost).

    Args:
        class_logits: ``(..., K)``.

    Returns:
        ``(..., K)``: loss as a positive minus loss as a negative, for each class.
    """
    probs = class_logits.sigmoid()
    positive = -alpha * (1 - probs) ** gamma * probs.clamp(min=_LOG_EPS).log()
    negative = -(1 - alpha) * probs**gamma * (1 - probs).clamp(min=_LOG_EPS).log()
    return positive - negative


def soft_iou_terms(kernels: Tensor, features: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Sums that make up the soft IoU between predicted and given masks over some pixels.

    The sums over several sets of pixels add up to those over their union, so a caller chooses
    how many pixels, or which, to look at.

    Args:
        kernels: ``(Q, C)``.
        features: ``(C, P)``; the logits are ``kernels @ features``.
        masks: ``(G, P)`` in [0, 1].

    Returns:
        Intersections Σ m·g ``(Q, G)`` and predicted areas Σ m ``(Q, 1)``.
    """
    probs = (kernels @ features).sigmoid_()
    return F.linear(probs, masks), torch.sum(probs, dim=1, keepdim=True)
