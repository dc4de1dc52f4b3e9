"""Tokens: the cells of all feature levels in one sequence, with positions and padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from isda.modeling.position_encoding import sine_position_encoding

__all__ = ["Tokens", "flatten_levels"]


@dataclass
class Tokens:
    """S tokens per image, finest level first."""

    content: Tensor  # (B, S, C)
    position: Tensor  # (B, S, C)
    padding_mask: Tensor  # (B, S), True on padding
    sizes_per_level: list[tuple[int, int]]
    valid_ratios: Tensor  # (B, levels, 2) as (x, y): valid / padded extent

    def centres(self) -> Tensor:
        """Every token's cell centre relative to the valid extent: ``(B, S, 2)`` as (x, y)."""
        centres = []
        for level, (height, width) in enumerate(self.sizes_per_level):
            y, x = torch.meshgrid(
                torch.arange(height, device=self.content.device, dtype=torch.float32) + 0.5,
                torch.arange(width, device=self.content.device, dtype=torch.float32) + 0.5,
                indexing="ij",
            )
            cells = torch.stack([x / width, y / height], dim=-1).flatten(0, 1)  # (h * w, 2)
            centres.append(cells / self.valid_ratios[:, None, level])
        return torch.cat(centres, dim=1)

    def per_level(self, references: Tensor) -> Tensor:
        """References of the valid extent as fractions of each level's padded extent.

        Args:
            references: ``(B, N, 2)`` points or ``(B, N, 4)`` boxes (centre, size).

        Returns:
            ``(B, N, levels, 2 or 4)``.
        """
        ratios = self.valid_ratios.repeat(1, 1, references.shape[-1] // 2)
        return references[:, :, None] * ratios[:, None]


def flatten_levels(
    levels: list[Tensor],
    padding_mask: Tensor,
    level_embed: Tensor,
    strides: Sequence[int] | None = None,
) -> Tokens:
    """
    Args:
        levels: each ``(B, C, h, w)``.
        padding_mask: ``(B, H, W)`` of the padded images, True on padding.
        level_embed: ``(levels, C)``, added to the positions.
        strides: of the levels. With them a level's valid extent is that of the image to the pixel.
            Without, it is rounded up to whole cells as in Deformable DETR, which moves what a box
            means by up to a cell, and differently in each level.
    """
    sizes = [tuple(level.shape[-2:]) for level in levels]
    masks = [_resize_padding_mask(padding_mask, size) for size in sizes]
    positions = [
        sine_position_encoding(mask, level.shape[1] // 2).to(level.dtype) + embed[:, None, None]
        for mask, level, embed in zip(masks, levels, level_embed, strict=True)
    ]
    return Tokens(
        content=_flatten(levels),
        position=_flatten(positions),
        padding_mask=torch.cat([mask.flatten(1) for mask in masks], dim=1),
        sizes_per_level=sizes,
        valid_ratios=torch.stack([_valid_ratio(mask) for mask in masks], dim=1)
        if strides is None
        else _exact_ratios(padding_mask, sizes, strides),
    )


def _flatten(levels: list[Tensor]) -> Tensor:
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # (B, S, C)


def _resize_padding_mask(padding_mask: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(padding_mask[:, None].float(), size=size).bool()[:, 0]


def _valid_ratio(padding_mask: Tensor) -> Tensor:
    """Valid divided by padded extent of ``(B, h, w)``, as ``(B, 2)`` in the order (x, y)."""
    valid = (~padding_mask).float()
    return torch.stack([valid[:, 0].mean(dim=1), valid[:, :, 0].mean(dim=1)], dim=-1)


def _exact_ratios(
    padding_mask: Tensor, sizes: Sequence[tuple[int, int]], strides: Sequence[int]
) -> Tensor:
    """Valid pixels divided by what the cells of each level cover: ``(B, levels, 2)`` as (x, y)."""
    valid = (~padding_mask).float()
    columns, rows = valid[:, 0].sum(dim=1), valid[:, :, 0].sum(dim=1)  # (B,) each
    # Sizes divide one by one: a tensor made of them would fix them in an exported graph.
    ratios = [
        torch.stack([columns / (width * stride), rows / (height * stride)], dim=-1)
        for (height, width), stride in zip(sizes, strides, strict=True)
    ]
    return torch.stack(ratios, dim=1)
