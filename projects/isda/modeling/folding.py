"""Batch norms of fixed statistics as part of the convolutions before them, for inference."""

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d, NaiveSyncBatchNorm
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ["FoldedConv2d", "fold_norms"]

# In evaluation mode they are all the same; norms of other types do more, and would lose it.
_NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm, NaiveSyncBatchNorm)


def fold_norms(model: nn.Module) -> nn.Module:
    """Let Detectron2's convolutions with batch norm include it where no gradient is wanted.

    Names and values of parameters and buffers stay as they are. Training is not affected: the
    folded weights, a copy, are there in evaluation mode only. They follow the others at each
    ``eval()`` and ``load_state_dict()``; whoever changes weights otherwise calls ``eval()`` again.

    Args:
        model: changed in place.

    Returns:
        ``model``.
    """
    for module in model.modules():
        if type(module) is Conv2d and type(module.norm) in _NORMS:
            module.__class__ = FoldedConv2d
            module.register_load_state_dict_post_hook(_refold)
            module.train(module.training)
    return model


class FoldedConv2d(Conv2d):
    """What :func:`fold_norms` makes of a convolution; not to be constructed."""

    def train(self, mode: bool = True) -> "FoldedConv2d":
        super().train(mode)
        names = ("folded_weight", "folded_bias")
        tensors = (None, None) if mode else _folded(self)
        for name, tensor in zip(names, tensors, strict=True):
            # Buffers, to go where the model goes, but not into its state dict.
            self.register_buffer(name, tensor, persistent=False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training or torch.is_grad_enabled():
            return super().forward(x)
        x = F.conv2d(
            x,
            self.folded_weight,
            self.folded_bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        return x if self.activation is None else self.activation(x)


@torch.no_grad()
def _folded(conv: Conv2d) -> tuple[Tensor, Tensor]:
    norm = conv.norm
    weight, bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    return weight.detach(), bias.detach()


def _refold(conv: FoldedConv2d, _) -> None:
    conv.train(conv.training)
