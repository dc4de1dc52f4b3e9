"""Changes to the layers of a finished network: normalisation, padding."""

import importlib.util
import math
from collections.abc import Callable

import torch.nn.functional as F
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from isda.errors import ConfigError

__all__ = ["convert_norms", "freeze_norms", "pad_like_tensorflow"]


def convert_norms(net: nn.Module, norm: str) -> None:
    """Turn the batch norms of ``net`` into ``norm``: "BN" (as they are), "FrozenBN" or "GN".

    Raises:
        ConfigError: another name, or "GN" for a norm that is more than a BatchNorm2d (timm's
            carry an activation).
    """
    conversions: dict[str, Callable[[nn.Module], nn.Module]] = {
        "BN": lambda module: module,
        "FrozenBN": _frozen_batch_norm,
        "GN": _group_norm,
    }
    if norm not in conversions:
        raise ConfigError(
            f"MODEL.TORCH_BACKBONE.NORM must be one of {sorted(conversions)}, got {norm!r}"
        )
    _replace_batch_norms(net, conversions[norm])


def freeze_norms(net: nn.Module) -> None:
    """Freeze the statistics of every batch norm whose parameters are frozen."""

    def freeze(module: nn.Module) -> nn.Module:
        trained = any(p.requires_grad for p in module.parameters())
        return module if trained else _frozen_batch_norm(module)

    _replace_batch_norms(net, freeze)


def pad_like_tensorflow(net: nn.Module) -> None:
    """Pad every strided convolution as TensorFlow's "SAME" does: the odd cell comes last.

    A 3x3 convolution of stride 2 on an even size pads 0 before and 1 after, where PyTorch's
    ``padding=1`` pads one on either side and so samples another grid.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1:
            module.padding = (0, 0)
            module.register_forward_pre_hook(_pad_same)


def _pad_same(conv: nn.Conv2d, inputs: tuple[Tensor]) -> Tensor:
    (x,) = inputs
    padding = []
    for axis in (1, 0):  # F.pad starts with the last axis
        size, stride = x.shape[2 + axis], conv.stride[axis]
        extent = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
        # In whole numbers, which torch.export can reason about where the size is left open.
        total = max((size + stride - 1) // stride * stride - stride + extent - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)


def _replace_batch_norms(net: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> None:
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, convert(child))


def _frozen_batch_norm(module: nn.BatchNorm2d) -> nn.Module:
    if type(module) is nn.BatchNorm2d:
        return FrozenBatchNorm2d.convert_frozen_batchnorm(module)
    assert importlib.util.find_spec("timm"), type(module)
    from timm.layers import freeze_batch_norm_2d

    return freeze_batch_norm_2d(module)


def _group_norm(module: nn.BatchNorm2d) -> nn.Module:
    if type(module) is not nn.BatchNorm2d:
        raise ConfigError(
            f"MODEL.TORCH_BACKBONE.NORM GN cannot replace a {type(module).__name__}: use BN or "
            "FrozenBN, or a network of torchvision"
        )
    channels = module.num_features
    # As near to the usual 32 groups as the channels divide: MobileNets have 16 or 24.
    return nn.GroupNorm(math.gcd(32, channels), channels)
