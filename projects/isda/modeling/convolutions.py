"""The convolution and the norm that heads are made of."""

import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import nn

__all__ = ["NUM_GROUPS", "group_norm", "normed_conv"]

NUM_GROUPS = 32


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm of 32 groups; of 16 for 32 channels.

    From a group of one channel on a level of one cell, PyTorch refuses to take a variance.

    Args:
        channels: a multiple of 32.
    """
    return nn.GroupNorm(min(NUM_GROUPS, channels // 2), channels)


def normed_conv(
    channels: int, out_channels: int, kernel_size: int = 3, bias: bool = False
) -> Conv2d:
    """Convolution, :func:`group_norm`, ReLU; weights of standard deviation 0.01.

    Args:
        out_channels: a multiple of 32.
    """
    conv = Conv2d(
        channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=bias,
        norm=group_norm(out_channels),
        activation=F.relu_,  # in place: nothing else reads the norm's output
    )
    nn.init.normal_(conv.weight, std=0.01)
    if bias:
        nn.init.zeros_(conv.bias)
    return conv
