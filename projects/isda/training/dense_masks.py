"""Ground-truth masks and classes as targets of cells that are sampled and not averaged."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["painted_classes", "sampled_masks"]


def sampled_masks(
    masks: Tensor, stride: int, padded_size: tuple[int, int], offset: int = 0
) -> Tensor:
    """Every ``stride``-th pixel of masks, from pixel ``offset`` on; nothing is in the padding.

    Args:
        masks: ``(G, H, W)`` bool.
        padded_size: of the batch, (height, width), multiples of ``stride``.

    Returns:
        ``(G, padded height / stride, padded width / stride)`` bool.
    """
    sampled = masks[:, offset::stride, offset::stride]
    height, width = (side // stride for side in padded_size)
    return F.pad(sampled, (0, width - sampled.shape[2], 0, height - sampled.shape[1]))


def painted_classes(masks: Tensor, areas: Tensor, classes: Tensor, background: int) -> Tensor:
    """The class of each cell; of several instances the smallest one's, of these the first one's.

    Args:
        masks: ``(G, h, w)`` bool.
        areas: ``(G,)``, of the whole masks.
        classes: ``(G,)`` int64.
        background: where there is no instance.

    Returns:
        ``(h, w)`` int64.
    """
    if len(masks) == 0:
        return torch.full(masks.shape[1:], background, device=masks.device)
    order = areas.argsort(stable=True)
    first = masks[order].to(torch.uint8).argmax(dim=0)  # the first of the largest values, 1
    return torch.where(masks.any(dim=0), classes[order][first], background)
