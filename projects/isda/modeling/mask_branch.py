"""Branches that make something of the finest levels for a whole image: mask features, classes."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from isda.modeling.initialization import prior_bias
from isda.modeling.upsampling import aligned_bilinear, half_pixel_bilinear

__all__ = ["FusedMaskBranch", "SemanticHead", "norm_for"]


def norm_for(norm: str, device: str) -> str:
    """Detectron2's name of a norm, as a model on ``device`` can have it.

    PyTorch's SyncBN takes no tensors on a CPU where there are several processes. Detectron2's own
    does; it has the same parameters, and is batch norm where there is one process.
    """
    return "naiveSyncBN" if norm == "SyncBN" and not device.startswith("cuda") else norm


class FusedMaskBranch(nn.Module):
    """Levels made equally fine and summed, then convolutions: a few features of the whole image.

    Those of CondInst (arXiv 2003.05664), and the bases of BlendMask (2001.00309), which go up once
    more before the last convolution.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        out_channels: int,
        width: int = 128,
        num_convs: int,
        norm: str,
        aligned: bool,
        final_upsampling: bool = False,
    ):
        """
        Args:
            in_channels: of the levels, finest first, each half as fine as the last.
            width: channels in between.
            num_convs: convolutions after the sum, before the last upsampling.
            norm: of all convolutions but the last, as Detectron2 calls it.
            aligned: enlarge levels by :func:`aligned_bilinear`, else by half pixels.
            final_upsampling: double the resolution after ``num_convs``, and then take one more.
        """
        super().__init__()
        self.enlarge: Callable[[Tensor, int], Tensor] = (
            aligned_bilinear if aligned else half_pixel_bilinear
        )
        self.levels = nn.ModuleList(_conv(channels, width, norm) for channels in in_channels)
        self.convs = nn.Sequential(*(_conv(width, width, norm) for _ in range(num_convs)))
        self.final_conv = _conv(width, width, norm) if final_upsampling else None
        self.output = nn.Conv2d(width, out_channels, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """``(B, C, h, w)`` of each level → ``(B, out_channels, h, w)`` of the finest.

        With the final upsampling ``(B, out_channels, 2h, 2w)``.
        """
        summed = self.levels[0](levels[0])
        for index, (conv, level) in enumerate(zip(self.levels[1:], levels[1:], strict=True)):
            summed = summed + self.enlarge(conv(level), 2 ** (index + 1))
        features = self.convs(summed)
        if self.final_conv is not None:
            features = self.final_conv(self.enlarge(features, 2))
        return self.output(features)


class SemanticHead(nn.Module):
    """Class logits of every cell of the finest level: an auxiliary task, in training only."""

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        width: int = 128,
        norm: str,
        is_sigmoid: bool,
    ):
        """
        Args:
            is_sigmoid: initialise for a sigmoid to each class, as CondInst; else for one softmax,
                in PyTorch's own way, as BlendMask.
        """
        super().__init__()
        self.convs = nn.Sequential(
            _conv(in_channels, width, norm, is_filled=is_sigmoid),
            _conv(width, width, norm, is_filled=is_sigmoid),
        )
        self.output = nn.Conv2d(width, out_channels, 1)
        if is_sigmoid:
            nn.init.constant_(self.output.bias, prior_bias())

    def forward(self, level: Tensor) -> Tensor:
        """``(B, C, h, w)`` → ``(B, out_channels, h, w)``."""
        return self.output(self.convs(level))


def _conv(in_channels: int, out_channels: int, norm: str, is_filled: bool = True) -> Conv2d:
    conv = Conv2d(
        in_channels,
        out_channels,
        3,
        padding=1,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu_,  # in place: nothing else reads the norm's output
    )
    if is_filled:
        c2_xavier_fill(conv)
    return conv
