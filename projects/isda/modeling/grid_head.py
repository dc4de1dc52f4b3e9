"""SOLO's heads: a grid over the image, whose cells predict the instances centred in them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda.modeling.convolutions import normed_conv
from isda.modeling.initialization import prior_bias
from isda.modeling.mask_head import position_channels
from isda.requirements import COUNT, check
from isda.structures import CellMasks, DecoupledCellMasks

__all__ = ["DecoupledSOLOHead", "GridHead", "SOLOHead", "SOLOv2Head", "grid_levels"]


def grid_levels(features: Sequence[Tensor]) -> list[Tensor]:
    """A pyramid of strides 4 to 64 as SOLO sees it: at strides 8, 8, 16, 32, 32.

    Half-pixel bilinear resizes; that of the first level by ½ is the mean of four cells.
    """
    finest, *middle, coarsest = features
    return [F.avg_pool2d(finest, 2), *middle, _resized(coarsest, middle[-1].shape[-2:])]


class GridHead(nn.Module):
    """Two towers shared by all levels: of classes, on the grid, and of masks, as subclasses know.

    Letters: B images, K classes, S cells along each side of a level's grid.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        head_dim: int,
        num_convs: int,
        grid_sizes: Sequence[int],
    ):
        """
        Args:
            in_channels: of the levels.
            head_dim: channels of the towers, a multiple of 32.
            num_convs: convolutions of each tower.
            grid_sizes: S per level.
        """
        super().__init__()
        check(COUNT, num_classes=num_classes)
        self.grid_sizes = tuple(grid_sizes)
        self.class_tower = _tower(in_channels, head_dim, num_convs)
        self.classes = _output_conv(head_dim, num_classes, kernel_size=3, prior=True)

    def class_logits(self, on_grid: Tensor) -> Tensor:
        """``(B, in_channels, S, S)`` → ``(B, K, S, S)``."""
        return self.classes(self.class_tower(on_grid))


class SOLOHead(GridHead):
    """A mask channel per cell (SOLO, arXiv 1912.04488)."""

    def __init__(self, *, scale: int = 2, **dimensions):
        """
        Args:
            scale: by which masks are larger than their level.
            dimensions: as of :class:`GridHead`.
        """
        super().__init__(**dimensions)
        in_channels, head_dim = dimensions["in_channels"], dimensions["head_dim"]
        self.scale = scale
        self.mask_tower = _tower(in_channels + 2, head_dim, dimensions["num_convs"])
        self.masks = nn.ModuleList(
            _output_conv(head_dim, side**2, kernel_size=1, prior=True) for side in self.grid_sizes
        )

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[CellMasks]]:
        """
        Args:
            levels: each ``(B, in_channels, h, w)``, as :func:`grid_levels` gives them.

        Returns:
            Per level class logits ``(B, K, S, S)``, and the masks. The last layer's maps are not
            computed here: each cell's is a product of one row of its weights.
        """
        class_logits, masks = [], []
        for level, side, conv in zip(levels, self.grid_sizes, self.masks, strict=True):
            class_logits.append(self.class_logits(_resized(level, (side, side))))
            features = self.mask_tower(_with_coordinates(level))
            rows = conv.weight.flatten(1).expand(len(level), -1, -1)
            masks.append(CellMasks(rows, features, conv.bias, self.scale))
        return class_logits, masks


class DecoupledSOLOHead(GridHead):
    """A mask channel per column and one per row of the grid; a cell's mask is their product."""

    def __init__(self, *, scale: int = 2, **dimensions):
        """
        Args:
            scale: by which masks are larger than their level.
            dimensions: as of :class:`GridHead`.
        """
        super().__init__(**dimensions)
        in_channels, head_dim = dimensions["in_channels"], dimensions["head_dim"]
        self.scale = scale
        axes = range(2)  # x: columns, y: rows
        self.mask_towers = nn.ModuleList(
            _tower(in_channels + 1, head_dim, dimensions["num_convs"]) for _ in axes
        )
        self.masks = nn.ModuleList(
            nn.ModuleList(
                _output_conv(head_dim, side, kernel_size=3, prior=True) for side in self.grid_sizes
            )
            for _ in axes
        )

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[DecoupledCellMasks]]:
        """As of :class:`SOLOHead`."""
        class_logits, masks = [], []
        for index, (level, side) in enumerate(zip(levels, self.grid_sizes, strict=True)):
            class_logits.append(self.class_logits(_resized(level, (side, side))))
            coordinates = _coordinates(level).split(1, dim=1)
            maps = []
            for tower, convs, one in zip(self.mask_towers, self.masks, coordinates, strict=True):
                features = tower(torch.cat([level, one], dim=1))
                size = [self.scale * cells for cells in features.shape[-2:]]
                maps.append(convs[index](_resized(features, size)))
            masks.append(DecoupledCellMasks(*maps))
        return class_logits, masks


class SOLOv2Head(GridHead):
    """A kernel per cell, for mask features that all levels share (SOLOv2, arXiv 2003.10152)."""

    def __init__(self, *, kernel_dim: int, **dimensions):
        """
        Args:
            kernel_dim: numbers of a kernel, the channels of the mask features.
            dimensions: as of :class:`GridHead`.
        """
        super().__init__(**dimensions)
        in_channels, head_dim = dimensions["in_channels"], dimensions["head_dim"]
        self.kernel_tower = _tower(in_channels + 2, head_dim, dimensions["num_convs"])
        self.kernels = _output_conv(head_dim, kernel_dim, kernel_size=3)

    def forward(
        self, levels: Sequence[Tensor], mask_features: Tensor
    ) -> tuple[list[Tensor], list[CellMasks]]:
        """
        Args:
            levels: as of :class:`SOLOHead`.
            mask_features: ``(B, kernel_dim, h, w)``.

        Returns:
            Per level class logits ``(B, K, S, S)``, and masks of ``h × w``.
        """
        class_logits, masks = [], []
        for level, side in zip(levels, self.grid_sizes, strict=True):
            # Coordinates enter at the level's resolution and are resized with it.
            on_grid = _resized(_with_coordinates(level), (side, side))
            class_logits.append(self.class_logits(on_grid[:, :-2]))
            kernels = self.kernels(self.kernel_tower(on_grid))  # (B, C, S, S)
            masks.append(CellMasks(kernels.flatten(2).transpose(1, 2), mask_features))
        return class_logits, masks


def _tower(in_channels: int, channels: int, num_convs: int) -> nn.Sequential:
    widths = [in_channels, *[channels] * num_convs]
    return nn.Sequential(*(normed_conv(width, channels) for width in widths[:num_convs]))


def _output_conv(
    in_channels: int, channels: int, kernel_size: int, prior: bool = False
) -> nn.Conv2d:
    """With a bias of 0 or, for what is to start improbable, the prior's."""
    conv = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, prior_bias() if prior else 0.0)
    return conv


def _coordinates(level: Tensor) -> Tensor:
    """x and y of every cell, from −1 to 1 over the padded extent: ``(B, 2, h, w)``."""
    size = tuple(level.shape[-2:])
    return position_channels(level, [size], stride=1).expand(len(level), -1, -1, -1)


def _with_coordinates(level: Tensor) -> Tensor:
    return torch.cat([level, _coordinates(level)], dim=1)


def _resized(features: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(features.shape[-2:]) == tuple(size):
        return features
    return F.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)
