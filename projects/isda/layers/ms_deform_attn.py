"""Multi-scale deformable attention as a module (Deformable DETR, arXiv 2010.04159)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isda.ops import ms_deform_attn

__all__ = ["MSDeformAttention"]


class MSDeformAttention(nn.Module):
    """Every query reads a few points of every level, near its own reference point.

    Symbols: B images, Q queries, C channels, L levels, S tokens of all levels together.
    The parameters' names are those of the published Deformable DETR checkpoints.
    """

    def __init__(
        self, embed_dim: int = 256, num_levels: int = 4, num_heads: int = 8, num_points: int = 4
    ):
        """
        Args:
            embed_dim: C, a multiple of ``num_heads``.
            num_levels: L.
            num_points: points that a head reads on each level.

        Raises:
            ValueError: a number is not positive, or the heads do not divide ``embed_dim``.
        """
        super().__init__()
        if min(embed_dim, num_levels, num_heads, num_points) < 1 or embed_dim % num_heads:
            raise ValueError(
                "MSDeformAttention needs positive sizes and an embed_dim that num_heads divides, "
                f"got embed_dim={embed_dim}, num_levels={num_levels}, num_heads={num_heads}, "
                f"num_points={num_points}"
            )
        self.embed_dim = embed_dim
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        num_samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, 2 * num_samples)
        self.attention_weights = nn.Linear(embed_dim, num_samples)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with point k of head h at k cells in the direction of h, all weighted alike."""
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions /= directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)
        offsets = directions[:, None, None] * steps[:, None]  # (heads, 1, points, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(
                offsets.expand(-1, self.num_levels, -1, -1).reshape(-1)
            )
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]] | Tensor,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            query: ``(B, Q, C)``, its position already added.
            reference_points: ``(B, Q, L, 2)`` as (x, y) in fractions of the padded level, or
                ``(B, Q, L, 4)`` as boxes (centre x, centre y, width, height), whose halves the
                offsets are then measured in.
            value: ``(B, S, C)``, level after level.
            spatial_shapes: (height, width) of every level. Python pairs cost a GPU nothing; a
                tensor on a GPU costs a synchronisation.
            padding_mask: ``(B, S)``, True on padding, which then reads as zero.

        Returns:
            ``(B, Q, C)``.

        Raises:
            ValueError: a shape does not fit.
        """
        sizes = _sizes_per_level(spatial_shapes)
        self._check(query, reference_points, value, sizes, padding_mask)
        value = self.value_proj(value)
        if padding_mask is not None:
            value = value.masked_fill_(padding_mask[..., None], 0)
        locations, weights = self.samples(query, reference_points, sizes, value.dtype)
        value = value.unflatten(-1, (self.num_heads, -1))
        return self.output_proj(ms_deform_attn(value, sizes, None, locations, weights))

    def samples(
        self,
        query: Tensor,
        reference_points: Tensor,
        sizes_per_level: list[tuple[int, int]],
        value_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """Where each query reads, and with what weight; arguments as of :meth:`forward`.

        Returns:
            Locations ``(B, Q, heads, L, points, 2)`` as (x, y), fractions of the padded level, and
            weights ``(B, Q, heads, L, points)``, as :func:`isda.ops.ms_deform_attn` takes them.
        """
        # Locations are fractions of a level: in bf16, points near 1 would move by whole cells.
        dtype = torch.float64 if value_dtype == torch.float64 else torch.float32
        weights = self.attention_weights(query).to(dtype)
        weights = weights.unflatten(-1, (self.num_heads, -1)).softmax(dim=-1)
        offsets = self.sampling_offsets(query).to(dtype)
        locations = self._locations(offsets, reference_points, sizes_per_level)
        return locations, weights.unflatten(-1, (self.num_levels, self.num_points))

    def _locations(
        self, offsets: Tensor, reference_points: Tensor, sizes: list[tuple[int, int]]
    ) -> Tensor:
        per_head = (self.num_levels, self.num_points, 2)
        reference = reference_points.to(offsets.dtype)[:, :, :, None]  # (B, Q, L, 1, 2 or 4)
        if reference.shape[-1] == 2:
            scale = _extents(sizes, offsets).reciprocal()[:, None].expand(per_head).flatten()
        else:
            scale = reference[..., 2:] * (0.5 / self.num_points)
            scale = scale.expand(-1, -1, *per_head).flatten(2)[:, :, None]
        # One pass over rows of all levels and points: rows of two numbers would be slow.
        centres = reference[..., :2].expand(-1, -1, *per_head).flatten(2)[:, :, None]
        locations = torch.addcmul(centres, offsets.unflatten(-1, (self.num_heads, -1)), scale)
        return locations.unflatten(-1, per_head)

    def _check(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        sizes: list[tuple[int, int]],
        padding_mask: Tensor | None,
    ) -> None:
        if len(sizes) != self.num_levels:
            raise ValueError(
                f"spatial_shapes must list {self.num_levels} levels, got {len(sizes)}: {sizes}"
            )
        for name, tensor in (("query", query), ("value", value)):
            if tensor.dim() != 3 or tensor.shape[-1] != self.embed_dim:
                raise ValueError(
                    f"{name} must be (batch, length, {self.embed_dim}), got {tuple(tensor.shape)}"
                )
        expected = (*query.shape[:2], self.num_levels)
        if reference_points.shape[:-1] != expected or reference_points.shape[-1] not in (2, 4):
            raise ValueError(
                f"reference_points must be {(*expected, '2 or 4')}, "
                f"got {tuple(reference_points.shape)}"
            )
        if padding_mask is not None and padding_mask.shape != value.shape[:2]:
            raise ValueError(
                f"padding_mask must be {tuple(value.shape[:2])}, got {tuple(padding_mask.shape)}"
            )


def _sizes_per_level(spatial_shapes: Sequence[tuple[int, int]] | Tensor) -> list[tuple[int, int]]:
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = spatial_shapes.tolist()
    return [(height, width) for height, width in spatial_shapes]


def _extents(sizes: list[tuple[int, int]], like: Tensor) -> Tensor:
    """(L, 2) as (width, height)."""
    # Filled where it is used: a copy from the host waits for the device, and a CUDA graph that
    # captured it would read freed memory.
    return torch.stack([like.new_full((), n) for h, w in sizes for n in (w, h)]).view(-1, 2)
