"""Sine position encoding of tokens."""

import math

import torch
from torch import Tensor

__all__ = ["inverse_sigmoid", "sine_position_encoding"]


def sine_position_encoding(
    padding_mask: Tensor, num_features: int, temperature: float = 10000.0
) -> Tensor:
    """Sine encoding of the cells' centres relative to the valid extent (DETR, arXiv 2005.12872).

    The first ``num_features`` channels encode y, the others x; even channels are sines, odd ones
    cosines. Deformable DETR's checkpoints depend on this order.

    Args:
        padding_mask: ``(B, h, w)``, True on padding.
        num_features: channels per axis, even.

    Returns:
        ``(B, 2 * num_features, h, w)``, float32.
    """
    valid = ~padding_mask
    y = _normalised_centres(valid, axis=1)
    x = _normalised_centres(valid, axis=2)
    pair = torch.arange(num_features, device=padding_mask.device, dtype=torch.float32) // 2
    wavelength = temperature ** (2 * pair / num_features)
    encodings = [_interleaved_sine(c[..., None] / wavelength) for c in (y, x)]
    return torch.cat(encodings, dim=-1).permute(0, 3, 1, 2)


def _normalised_centres(valid: Tensor, axis: int) -> Tensor:
    count = valid.cumsum(axis, dtype=torch.float32)
    extent = count.narrow(axis, count.shape[axis] - 1, 1)
    return (count - 0.5) / (extent + 1e-6) * 2 * math.pi


def _interleaved_sine(phase: Tensor) -> Tensor:
    return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], dim=-1).flatten(-2)


def inverse_sigmoid(probs: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of ``probs`` clamped to ``[eps, 1 - eps]``."""
    return torch.logit(probs, eps=eps)
