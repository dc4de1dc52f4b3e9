"""CondInst's mask head (arXiv 2003.05664, section 3): every instance brings its own three layers.

Letters: n instances of one image, C features and D channels between the layers, h×w cells.
"""

import torch
from torch import Tensor

__all__ = ["DynamicMasks"]

_EXTENT = 8  # strides of its level, in which an instance measures how far away a pixel is


class DynamicMasks:
    """Three 1×1 convolutions C + 2 → D → D → 1 with the parameters that an instance predicts.

    The authors run one grouped convolution over n copies of the features. Here the first layer is
    one product of all kernels with the features, which no instance has to itself, and the others
    are batched products. Where a pixel lies relative to an instance is part of the first product:
    W·(place of the instance − pixel) = W·place − W·pixel.
    """

    def __init__(self, in_channels: int = 8, channels: int = 8):
        """
        Args:
            in_channels: C.
            channels: D.
        """
        self.in_channels, self.channels = in_channels, channels
        self._sizes = [(in_channels + 2) * channels, channels**2, channels, channels, channels, 1]

    @property
    def num_parameters(self) -> int:
        """Of an instance: weights of the three layers, output by output, then their biases."""
        return sum(self._sizes)

    def __call__(
        self, parameters: Tensor, features: Tensor, points: Tensor, strides: Tensor, stride: int
    ) -> Tensor:
        """The mask logits of the instances of one image, computed in float32 or above.

        Args:
            parameters: ``(n, num_parameters)``. Inputs of the first layer are the distance to the
                instance along x and y, then the features.
            features: ``(C, h, w)``.
            points: ``(n, 2)``, the (x, y) of the instances' locations in pixels.
            strides: ``(n,)``, the strides of the instances' levels.
            stride: of the features; a cell's place is its middle.

        Returns:
            ``(n, h, w)``.
        """
        dtype = torch.promote_types(parameters.dtype, torch.float32)
        parameters, features = parameters.to(dtype), features.to(dtype)
        with torch.autocast(features.device.type, enabled=False):
            extents = _EXTENT * strides.to(dtype)
            return self._logits(parameters, features, points.to(dtype), extents, stride)

    def _logits(
        self, parameters: Tensor, features: Tensor, points: Tensor, extents: Tensor, stride: int
    ) -> Tensor:
        count, channels = len(parameters), self.channels
        w1, w2, w3, b1, b2, b3 = parameters.split(self._sizes, dim=1)
        w1 = w1.view(count, channels, self.in_channels + 2)
        of_place = w1[..., :2] / extents[:, None, None]  # (n, D, 2) per pixel
        b1 = b1 + (of_place * points[:, None]).sum(dim=2)
        kernels = torch.cat([-of_place, w1[..., 2:]], dim=2).flatten(0, 1)  # (nD, C + 2)
        cells = torch.cat([_places(features, stride), features]).flatten(1)  # (C + 2, hw)
        hidden = torch.addmm(b1.reshape(-1, 1), kernels, cells).relu_()
        hidden = hidden.view(count, channels, cells.shape[1])
        hidden = torch.baddbmm(b2[..., None], w2.view(count, channels, channels), hidden).relu_()
        logits = torch.baddbmm(b3[..., None], w3[:, None], hidden)
        return logits.view(count, *features.shape[-2:])


def _places(features: Tensor, stride: int) -> Tensor:
    """x and y of the middle of every cell in pixels: ``(2, h, w)``."""
    height, width = features.shape[-2:]
    x, y = (
        (torch.arange(n, device=features.device, dtype=features.dtype) + 0.5) * stride
        for n in (width, height)
    )
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
