"""Neck: five levels of one width from a backbone's features."""

from collections.abc import Sequence

from detectron2.layers import Conv2d, ShapeSpec
from torch import Tensor, nn

from isda.modeling.convolutions import group_norm
from isda.requirements import GROUPS, ArgumentError, check

__all__ = ["Neck"]

_PLAIN_STRIDES = [4, 8, 16, 32]
_PYRAMID_STRIDES = [4, 8, 16, 32, 64]


class Neck(nn.Module):
    """Project backbone features to P2..P6 (Deformable DETR, arXiv 2010.04159, appendix A.4).

    Each input goes through its own 1×1 convolution and GroupNorm. A plain backbone (strides 4 to
    32) lacks stride 64, which a 3×3 stride-2 convolution makes from its last feature; an FPN
    (strides 4 to 64) has it.
    """

    def __init__(
        self,
        input_shapes: dict[str, ShapeSpec],
        *,
        in_features: Sequence[str],
        hidden_dim: int,
        bias: bool = False,
    ):
        """
        Args:
            input_shapes: channels and stride of each backbone output, by name.
            in_features: the outputs to use, finest first.
            hidden_dim: C, the width of every level; a multiple of 32 (GroupNorm's groups).
            bias: of the convolutions. It starts at 0; GroupNorm does not undo it, since the
                channels of a group share a mean.

        Raises:
            ValueError: a feature is missing, or the strides are neither 4–32 nor 4–64.
        """
        super().__init__()
        shapes = _select(input_shapes, in_features)
        check(GROUPS, hidden_dim=hidden_dim)
        self.in_features = tuple(in_features)
        self.projections = nn.ModuleList(
            _projection(s.channels, hidden_dim, bias=bias) for s in shapes
        )
        self.extra = None
        if len(shapes) == len(_PLAIN_STRIDES):
            self.extra = _projection(
                shapes[-1].channels, hidden_dim, kernel_size=3, stride=2, bias=bias
            )

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """
        Args:
            features: backbone outputs by name, each ``(B, channels, H / stride, W / stride)``.

        Returns:
            P2..P6, each ``(B, C, H / stride, W / stride)`` for the strides 4, 8, 16, 32, 64.
        """
        inputs = [features[name] for name in self.in_features]
        levels = [project(x) for project, x in zip(self.projections, inputs, strict=True)]
        if self.extra is not None:
            levels.append(self.extra(inputs[-1]))  # from C5, not from P5
        return levels


def _select(input_shapes: dict[str, ShapeSpec], in_features: Sequence[str]) -> list[ShapeSpec]:
    missing = [name for name in in_features if name not in input_shapes]
    if missing:
        raise ArgumentError(
            "in_features", f"names {missing}, but the backbone gives {list(input_shapes)}"
        )
    shapes = [input_shapes[name] for name in in_features]
    strides = [shape.stride for shape in shapes]
    if strides not in (_PLAIN_STRIDES, _PYRAMID_STRIDES):
        raise ArgumentError(
            "in_features",
            f"{list(in_features)} have the strides {strides}; they must be {_PLAIN_STRIDES} (a "
            f"plain backbone) or {_PYRAMID_STRIDES} (an FPN)",
        )
    return shapes


def _projection(
    channels: int, hidden_dim: int, *, kernel_size: int = 1, stride: int = 1, bias: bool
) -> Conv2d:
    conv = Conv2d(
        channels,
        hidden_dim,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=bias,
        norm=group_norm(hidden_dim),
    )
    nn.init.xavier_uniform_(conv.weight)
    if bias:
        nn.init.zeros_(conv.bias)
    return conv
