"""Ground-truth masks as targets: smaller, and where they are."""

import torch
from torch import Tensor, nn

__all__ = ["mass_centres", "shrink_masks"]


def shrink_masks(masks: Tensor, stride: int) -> Tensor:
    """Bilinear resize by 1 / stride without anti-aliasing, for an even stride or 1.

    Half-pixel centres put every sample on a corner shared by four pixels, so the result is their
    mean: soft at borders, and no full-size float tensor is needed.

    Args:
        masks: ``(G, H, W)`` bool.

    Returns:
        ``(G, ⌈H / stride⌉, ⌈W / stride⌉)`` float32; pixels beyond the image count as 0.
    """
    if stride == 1:
        return masks.float()
    height, width = masks.shape[-2:]
    masks = nn.functional.pad(masks, (0, -width % stride, 0, -height % stride))
    near, far = stride // 2 - 1, stride // 2
    rows = masks[:, near::stride].to(torch.uint8) + masks[:, far::stride].to(torch.uint8)
    return (rows[..., near::stride] + rows[..., far::stride]).float() / 4


def mass_centres(masks: Tensor) -> Tensor:
    """Centres of mass as (x, y) in pixel indices: ``(G, H, W)`` bool → ``(G, 2)`` float64.

    NaN of an empty mask.
    """
    centres = []
    for axis in (1, 2):  # columns, then rows
        counts = _counts(masks, axis).double()
        indices = torch.arange(counts.shape[1], device=masks.device, dtype=torch.float64)
        centres.append(counts @ indices / counts.sum(dim=1))
    return torch.stack(centres, dim=1)


def _counts(masks: Tensor, axis: int) -> Tensor:
    """``masks.sum(axis)`` of ``(G, H, W)`` bool, without 64 bits for every pixel of all masks.

    A sum of bools turns them into integers first: 5 GB for 600 masks of 800×1333 pixels.
    """
    if len(masks) == 0:
        return masks.sum(dim=axis)
    return torch.stack([mask.sum(dim=axis - 1) for mask in masks])
