"""Multi-scale deformable attention in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def grid_sample_form(
    value: Tensor,
    sizes: list[tuple[int, int]],
    starts: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """One ``grid_sample`` per level: the reference, and what ONNX knows."""
    batch, _, heads, channels = value.shape
    queries, points = attention_weights.shape[1], attention_weights.shape[-1]
    grids = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)  # (B*M, Q, L, P, 2)
    sampled = []
    for level, ((height, width), start) in enumerate(zip(sizes, starts, strict=True)):
        cells = value[:, start : start + height * width].permute(0, 2, 3, 1)  # (B, M, D, h*w)
        image = cells.reshape(batch * heads, channels, height, width)
        grid = grids[:, :, level].to(value.dtype)
        sampled.append(F.grid_sample(image, grid, align_corners=False))
    weights = attention_weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    output = (torch.stack(sampled, dim=-2).flatten(-2) * weights.to(value.dtype)).sum(-1)
    return output.view(batch, heads * channels, queries).transpose(1, 2).contiguous()
