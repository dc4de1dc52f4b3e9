"""Bilinear enlargement whose samples lie on the corners of cells instead of in their middles."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["aligned_bilinear", "half_pixel_bilinear"]


def aligned_bilinear(features: Tensor, factor: int) -> Tensor:
    """Enlarge by a factor; output i reads input (i − factor / 2) / factor (CondInst, 2003.05664).

    A cell of stride s is then where its location is: FCOS puts it at s/2 + j·s, which is pixel
    s/2 + j·s of the enlarged map, and not half a pixel before it.

    Args:
        features: ``(B, C, h, w)``; what lies beyond its ends is as the ends are.
        factor: even, or 1.

    Returns:
        ``(B, C, factor · h, factor · w)``.
    """
    if factor == 1:
        return features
    if factor < 1 or factor % 2:
        raise ValueError(f"aligned_bilinear enlarges by an even factor or by 1, not by {factor}")
    height, width = features.shape[-2:]
    padded = F.pad(features, (1, 1, 1, 1), mode="replicate")
    # Sample p of this lies at p / factor - 1, so sample i + factor / 2 where output i is to be.
    size = (factor * (height + 1) + 1, factor * (width + 1) + 1)
    samples = F.interpolate(padded, size=size, mode="bilinear", align_corners=True)
    first = factor // 2
    return samples[..., first : first + factor * height, first : first + factor * width]


def half_pixel_bilinear(features: Tensor, factor: int) -> Tensor:
    """Enlarge ``(B, C, h, w)`` by a factor; output i reads input (i + 1/2) / factor − 1/2."""
    if factor == 1:
        return features
    return F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)
