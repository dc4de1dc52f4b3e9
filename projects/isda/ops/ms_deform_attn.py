"""Multi-scale deformable attention as an operator."""

from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor

from isda.ops import pytorch

__all__ = ["ms_deform_attn"]


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    level_start_index: Sequence[int] | Tensor | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, eq. 3).

    Args:
        value: ``(B, S, heads, channels)``, level after level, zero on padding.
        spatial_shapes: (height, width) of every level in cells.
        level_start_index: first token of every level; None computes it.
        sampling_locations: ``(B, Q, heads, levels, points, 2)`` as (x, y). [0, 1] spans a level;
            outside it reads zero.
        attention_weights: ``(B, Q, heads, levels, points)``, normally a softmax per head.

    Returns:
        ``(B, Q, heads * channels)``.
    """
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = spatial_shapes.tolist()
    sizes = [(height, width) for height, width in spatial_shapes]
    starts = [0, *accumulate(height * width for height, width in sizes[:-1])]
    return pytorch.grid_sample_form(value, sizes, starts, sampling_locations, attention_weights)
