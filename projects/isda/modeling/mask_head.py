"""ISDA's heads: class scores, position-aware kernels and mask features with positions."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isda.modeling.convolutions import normed_conv
from isda.modeling.ellipse import EllipseHead, ellipse_channels, ellipse_kernels
from isda.modeling.initialization import prior_bias
from isda.modeling.position_encoding import inverse_sigmoid
from isda.requirements import COUNT, GROUPS, ArgumentError, check, one_of

__all__ = [
    "FEATURE_STRIDES",
    "MASK_STRIDES",
    "InstanceHead",
    "MaskFeatureHead",
    "position_channels",
]

MASK_STRIDES = one_of(1, 2, 4, 8)
FEATURE_STRIDES = one_of(2, 4, 8)  # of the last convolution

_FINEST_STRIDE = 4
_COARSEST_STRIDE = 32


class InstanceHead(nn.Module):
    """Class logits and mask kernels of queries; one module serves all decoder layers."""

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_classes: int,
        mask_dim: int,
        position: bool,
        ellipse: bool = False,
    ):
        """
        Args:
            mask_dim: numbers in a kernel, the position included, the ellipse not.
            position: KP of the paper: the last two numbers are the query's reference point.
            ellipse: five more numbers draw an ellipse around the query's box.
        """
        super().__init__()
        check(COUNT, num_classes=num_classes)
        self.position = position
        self.classes = nn.Linear(hidden_dim, num_classes)
        self.kernels = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, mask_dim - 2 if position else mask_dim),
        )
        nn.init.constant_(self.classes.bias, prior_bias())
        self.ellipse = EllipseHead(hidden_dim) if ellipse else None

    def forward(
        self, states: Tensor, reference_points: Tensor, boxes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            states: ``(..., N, C)``.
            reference_points: ``(..., N, 2)`` as (x, y) in [0, 1] of the valid extent.
            boxes: ``(..., N, 4)`` as (centre x, centre y, width, height), for ellipses.

        Returns:
            Class logits ``(..., N, K)`` and kernels ``(..., N, mask_dim)``; with ellipses
            ``(..., N, mask_dim + 5)`` in float32.
        """
        kernels = self.kernels(states)
        if self.position:
            points = inverse_sigmoid(reference_points).to(kernels.dtype)
            kernels = torch.cat([kernels, points.expand(*kernels.shape[:-1], 2)], dim=-1)
        if self.ellipse:
            ellipses = ellipse_kernels(*self.ellipse(states, boxes))
            kernels = torch.cat([kernels.to(ellipses.dtype), ellipses], dim=-1)
        return self.classes(states), kernels


class MaskFeatureHead(nn.Module):
    """Mask features (MFR) from P2..P5 (ISDA, arXiv 2202.12251, section 2.3)."""

    def __init__(
        self,
        *,
        hidden_dim: int = 256,
        head_dim: int = 128,
        mask_dim: int = 256,
        mask_stride: int = 4,
        position: bool = True,
        feature_stride: int | None = None,
        ellipse: bool = False,
    ):
        """
        Args:
            hidden_dim: channels of the levels.
            head_dim: width inside the head; a multiple of 32 (GroupNorm's groups).
            mask_dim: channels of the mask features; a multiple of 32.
            mask_stride: stride of the mask features, 2, 4 or 8. The parameters do not depend on
                it: levels are summed at stride 4 and resampled.
            position: MP of the paper: two position channels enter with P5.
            feature_stride: stride of the last convolution, 2, 4 or 8, if it is coarser than that
                of the masks: finished features are then enlarged, which is cheap and equal to
                enlarging the masks' logits.
            ellipse: append the channels in which kernels draw ellipses.
        """
        super().__init__()
        check(MASK_STRIDES, mask_stride=mask_stride)
        self.feature_stride = feature_stride or mask_stride
        check(FEATURE_STRIDES, feature_stride=self.feature_stride)
        if self.feature_stride < mask_stride:
            raise ArgumentError(
                "feature_stride",
                f"must not be below mask_stride {mask_stride}, got {self.feature_stride}",
            )
        check(GROUPS, head_dim=head_dim, mask_dim=mask_dim)
        self.mask_stride = mask_stride
        self.position = position
        self.ellipse = ellipse
        levels = range(4)  # P2..P5
        inputs = [hidden_dim + 2 * (position and level == levels[-1]) for level in levels]
        self.branches = nn.ModuleList(
            _branch(channels, head_dim, upsamplings=level)
            for level, channels in zip(levels, inputs, strict=True)
        )
        self.output = normed_conv(head_dim, mask_dim, kernel_size=1)

    def forward(self, levels: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]) -> Tensor:
        """
        Args:
            levels: P2..P5, each ``(B, hidden_dim, H / stride, W / stride)``.
            image_sizes: ``(height, width)`` of each image without padding, in pixels.

        Returns:
            ``(B, mask_dim, H / mask_stride, W / mask_stride)``; with ellipses
            ``(B, mask_dim + 5, ...)`` in float32.
        """
        *finer, coarsest = levels
        if self.position:
            coarsest = torch.cat([coarsest, position_channels(coarsest, image_sizes)], dim=1)
        inputs = [*finer, coarsest]
        features = self.output(_resample(self._sum(inputs), _FINEST_STRIDE / self.feature_stride))
        features = _resample(features, self.feature_stride / self.mask_stride)
        if not self.ellipse:
            return features
        channels = ellipse_channels(features, self.mask_stride, image_sizes)
        return torch.cat([features.to(channels.dtype), channels], dim=1)

    def _sum(self, inputs: Sequence[Tensor]) -> Tensor:
        """All branches together at stride 4.

        The coarser branches end with the same upsampling. It is linear, so their sum takes it once.
        """
        finest, *coarser = self.branches
        summed = [branch[:-1](x) for branch, x in zip(coarser, inputs[1:], strict=True)]
        upsampled = coarser[0][-1](functools.reduce(torch.add, summed))
        return upsampled.add_(finest(inputs[0]))


def position_channels(
    features: Tensor, image_sizes: Sequence[tuple[int, int]], stride: int = _COARSEST_STRIDE
) -> Tensor:
    """x and y of every cell, from −1 to 1 over each image's valid cells: ``(B, 2, h, w)``."""
    height, width = features.shape[-2:]
    maps = []
    for image_height, image_width in image_sizes:
        x = _linear_positions(features, width, (image_width + stride - 1) // stride)
        y = _linear_positions(features, height, (image_height + stride - 1) // stride)
        maps.append(torch.stack([x.expand(height, width), y[:, None].expand(height, width)]))
    return torch.stack(maps)


def _linear_positions(features: Tensor, cells: int, valid: int) -> Tensor:
    # Runs past 1 in the padding on purpose: reference points are relative to the valid extent,
    # and a kernel can only compare positions that share one coordinate system.
    columns = torch.arange(cells, device=features.device, dtype=features.dtype)
    return 2 * columns / max(valid - 1, 1) - 1


def _branch(channels: int, head_dim: int, upsamplings: int) -> nn.Sequential:
    """One convolution, or as many as upsamplings, each followed by one."""
    layers: list[nn.Module] = []
    for index in range(max(upsamplings, 1)):
        layers.append(normed_conv(channels if index == 0 else head_dim, head_dim))
        if upsamplings:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)


def _resample(features: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return features
    return F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)
