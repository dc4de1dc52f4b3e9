"""Targets of SOLO: ground truths assigned to cells of grids (arXiv 1912.04488, section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from isda.structures import GridTarget
from isda.training.masks import mass_centres, shrink_masks

__all__ = ["GridAssigner", "assign_cells"]

_CENTRE = 0.1  # of the box's sides, to each side of the mask's centre: cells that it reaches
_INSIDE = 0.5  # of a target's pixel: from here on foreground


@dataclass(frozen=True)
class GridAssigner:
    """From the ground truths of an image to what each level's cells should predict."""

    grid_sizes: Sequence[int]  # cells along each side, per level
    scale_ranges: Sequence[Sequence[float]]  # smallest and largest √(w·h), per level
    mask_strides: Sequence[int]  # of the predicted masks, per level

    def __call__(
        self, classes: Tensor, boxes: Tensor, masks: Tensor, padded_size: tuple[int, int]
    ) -> list[GridTarget]:
        """
        Args:
            classes: ``(G,)``.
            boxes: ``(G, 4)`` XYXY in pixels of the image.
            masks: ``(G, h, w)`` bool, of the image without padding; empty ones are left out.
            padded_size: ``(H, W)`` of the batch, over which the grids lie.

        Returns:
            One per level.
        """
        visible = masks.flatten(1).any(dim=1)
        classes, boxes, masks = classes[visible], boxes[visible], masks[visible]
        centres = mass_centres(masks)
        shrunk = {
            stride: _shrunk(masks, stride, padded_size) for stride in sorted({*self.mask_strides})
        }
        targets = []
        for side, scales, stride in zip(
            self.grid_sizes, self.scale_ranges, self.mask_strides, strict=True
        ):
            cells, instances = assign_cells(boxes, centres, padded_size, side, scales)
            targets.append(GridTarget(cells, classes[instances], instances, shrunk[stride]))
        return targets


def assign_cells(
    boxes: Tensor,
    centres: Tensor,
    padded_size: tuple[int, int],
    side: int,
    scale_range: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Positive cells of one level, at most 3×3 around a centre; a later ground truth overwrites.

    Args:
        boxes: ``(G, 4)`` XYXY in pixels.
        centres: ``(G, 2)`` as (x, y): of mass, in pixel indices.
        padded_size: ``(H, W)`` over which the grid lies.
        side: S, cells along each side of the grid.
        scale_range: the level takes ground truths of these √(w·h), both ends included.

    Returns:
        ``(n,)`` cells, i·S + j, ascending, and the ``(n,)`` ground truths that own them.
    """
    height, width = padded_size
    extents = (boxes[:, 2:] - boxes[:, :2]).double()  # (G, 2): w, h
    scales = extents.prod(dim=1).sqrt()
    chosen = ((scales >= scale_range[0]) & (scales <= scale_range[1])).nonzero()[:, 0]
    centres, extents = centres[chosen].double(), extents[chosen]
    # c·S / W and not c / (W / S), which rounds exact borders down.
    factors = centres.new_tensor([side, side]), centres.new_tensor([width, height])
    centre, first, last = (
        (points * factors[0] / factors[1]).floor().long()
        for points in (centres, centres - _CENTRE * extents, centres + _CENTRE * extents)
    )
    offsets = torch.arange(-1, 2, device=boxes.device)
    axes = []  # (n, 3) each: columns, rows
    for axis in (0, 1):
        cells = centre[:, axis, None] + offsets
        inside = (cells >= first[:, axis, None]) & (cells <= last[:, axis, None])
        axes.append((cells, inside & (cells >= 0) & (cells < side)))
    (columns, columns_in), (rows, rows_in) = axes
    cells = rows[:, :, None] * side + columns[:, None, :]  # (n, 3, 3)
    positive = rows_in[:, :, None] & columns_in[:, None, :]
    owners = chosen[:, None, None].expand_as(cells)[positive]
    owner = torch.full((side * side,), -1, dtype=torch.long, device=boxes.device)
    owner.scatter_reduce_(0, cells[positive], owners, "amax")
    cells = (owner >= 0).nonzero()[:, 0]
    return cells, owner[cells]


def _shrunk(masks: Tensor, stride: int, padded_size: tuple[int, int]) -> Tensor:
    """``(G, h, w)`` bool → ``(G, H / stride, W / stride)`` bool over the padded image."""
    small = shrink_masks(masks, stride) >= _INSIDE
    rows, columns = (
        padded // stride - cells
        for padded, cells in zip(padded_size, small.shape[-2:], strict=True)
    )
    return F.pad(small, (0, columns, 0, rows))
