"""Position-aware kernels by box: five fixed channels in which a kernel draws an ellipse.

A kernel that gets its place from convolved features alone takes in whatever looks like its object.
Here the channels x², y², x, y, 1 join the mask features, and five numbers of a query's box make the
product with them an ellipse that is positive around the box and falls off everywhere else.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["NUM_CHANNELS", "EllipseHead", "ellipse_channels", "ellipse_kernels"]

NUM_CHANNELS = 5  # x², y², x, y, 1
_RADIUS = 0.6  # of a side of the box: a little more than half
_STRENGTH = 2.0
_MIN_RADIUS = 1e-3  # of the image; below it, the expanded form loses too much in float32


class EllipseHead(nn.Module):
    """Ellipses of queries: their boxes, adjusted by a linear layer that starts at zero."""

    def __init__(self, hidden_dim: int):
        super().__init__()
        self.adjustment = nn.Linear(hidden_dim, 3)  # log scale of both radii, of the strength
        nn.init.zeros_(self.adjustment.weight)
        nn.init.zeros_(self.adjustment.bias)

    def forward(self, states: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            states: ``(..., C)``.
            boxes: ``(..., 4)`` as (centre x, centre y, width, height) of the valid extent.

        Returns:
            Centres ``(..., 2)`` and radii ``(..., 2)`` in the boxes' unit, and strengths
            ``(...)``: the logit at the centre.
        """
        with torch.autocast(states.device.type, enabled=False):
            adjustment = self.adjustment(states.to(self.adjustment.weight.dtype))
            radii = _RADIUS * boxes[..., 2:] * adjustment[..., :2].clamp(-1, 1).exp()
            strengths = _STRENGTH * adjustment[..., 2].clamp(-3, 3).exp()
            return boxes[..., :2], radii.clamp(min=_MIN_RADIUS), strengths


def ellipse_kernels(centres: Tensor, radii: Tensor, strengths: Tensor) -> Tensor:
    """Numbers whose product with :func:`ellipse_channels` is an ellipse.

    strength · (1 − ((x − cx) / rx)² − ((y − cy) / ry)²), sorted by powers of x and y. In float32,
    with radii of 0.02, the product is exact to 1e-4 of the strength; never use half precision.

    Args:
        centres, radii: ``(..., 2)`` as (x, y).
        strengths: ``(...)``.

    Returns:
        ``(..., 5)``.
    """
    centres = centres - 0.5  # the channels' origin
    steepness = strengths[..., None] / radii.square()  # (..., 2)
    constant = strengths - (steepness * centres.square()).sum(dim=-1)
    return torch.cat([-steepness, 2 * steepness * centres, constant[..., None]], dim=-1)


def ellipse_channels(
    features: Tensor, stride: int, image_sizes: Sequence[tuple[int, int]]
) -> Tensor:
    """x², y², x, y and 1 of every cell's centre: ``(B, 5, h, w)``, float32 or better.

    x and y are relative to each image's valid extent and to its centre, which keeps squares small;
    in the padding they run on.

    Args:
        features: ``(B, C, h, w)``: size, device and, if it is more than float32, precision.
        stride: pixels per cell.
        image_sizes: ``(height, width)`` of each image without padding, in pixels.
    """
    height, width = features.shape[-2:]
    dtype = torch.promote_types(features.dtype, torch.float32)
    rows, columns = (
        (torch.arange(cells, device=features.device, dtype=dtype) + 0.5) * stride
        for cells in (height, width)
    )
    maps = []
    for image_height, image_width in image_sizes:
        y = (rows / image_height - 0.5)[:, None].expand(height, width)
        x = (columns / image_width - 0.5).expand(height, width)
        maps.append(torch.stack([x * x, y * y, x, y, torch.ones_like(x)]))
    return torch.stack(maps)
