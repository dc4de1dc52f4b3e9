"""Non-maximum suppression without boxes: of scores on a grid, and of masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["NMS_KERNELS", "matrix_nms", "point_nms"]

NMS_KERNELS = ("gaussian", "linear")
_SMALLEST = 1e-6  # instead of 1 − 1 of identical masks, by which the linear kernel would divide


def point_nms(probs: Tensor) -> Tensor:
    """Zero where a cell's score is below that of its upper, left or upper-left neighbour.

    Args:
        probs: ``(..., S, S)`` in [0, 1], each class apart.
    """
    padded = F.pad(probs.flatten(0, -3)[:, None], (1, 0, 1, 0))
    largest = F.max_pool2d(padded, 2, stride=1)[:, 0].view_as(probs)
    return probs * (probs == largest)


def matrix_nms(
    scores: Tensor, classes: Tensor, masks: Tensor, kernel: str = "gaussian", sigma: float = 2.0
) -> Tensor:
    """Scores lowered by better masks of the same class that overlap (SOLOv2, arXiv 2003.10152).

    Score j is multiplied by the smallest f(o_ij) / f(c_i) of all better i, o_ij being the IoU of
    masks i and j and c_i the largest IoU of mask i with a better one. f(x) is exp(−σ·x²) or 1 − x.
    Masks of different classes do not touch, so each class is a matrix of its own.

    Args:
        scores: ``(n,)``, descending.
        classes: ``(n,)``.
        masks: ``(n, ...)`` bool; below 2^24 pixels, so that float32 counts them exactly.
        kernel: one of :data:`NMS_KERNELS`.
        sigma: σ; with "linear" of no effect.

    Returns:
        ``(n,)``, in the order of ``scores``.

    Raises:
        ValueError: there is no such kernel.
    """
    if kernel not in NMS_KERNELS:
        raise ValueError(f"the kernel must be one of {', '.join(NMS_KERNELS)}, got {kernel!r}")
    decay = torch.ones_like(scores)
    for number in classes.unique().tolist():
        members = (classes == number).nonzero()[:, 0]
        iou = _upper_iou(masks[members].flatten(1))
        worst = iou.amax(dim=0)[:, None]  # of each mask with those before it
        if kernel == "gaussian":
            factors = (sigma * (worst.square() - iou.square())).exp()
        else:
            factors = (1 - iou) / (1 - worst).clamp(min=_SMALLEST)
        factors = factors.masked_fill(torch.ones_like(iou).tril().bool(), 1)
        decay[members] = factors.amin(dim=0).clamp(max=1).to(decay.dtype)
    return scores * decay


def _upper_iou(masks: Tensor) -> Tensor:
    """IoU of ``(m, P)`` bool masks i < j, elsewhere 0: ``(m, m)`` float32, also under autocast."""
    with torch.autocast(masks.device.type, enabled=False):
        pixels = masks.float()
        areas = pixels.sum(dim=1)
        overlap = pixels @ pixels.T
    union = areas[:, None] + areas - overlap
    return (overlap / union.clamp(min=1)).triu(diagonal=1)
