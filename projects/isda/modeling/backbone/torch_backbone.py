"""Classifiers of torchvision and timm as backbones.

The last feature of each stride is found by running the network once, so that any network with
strides 4, 8, 16 and 32 serves, without a list of names.
"""

import difflib
import importlib.util
import logging
from collections.abc import Sequence

import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from isda.errors import ConfigError
from isda.modeling.backbone.folding import load_weights
from isda.modeling.backbone.fpn import with_fcos_fpn, with_fpn
from isda.modeling.backbone.layers import convert_norms, freeze_norms, pad_like_tensorflow
from isda.weights_files import others_read_tensors_only

__all__ = [
    "TorchBackbone",
    "build_torch_backbone",
    "build_torch_fpn_backbone",
    "build_fcos_torch_fpn_backbone",
]

logger = logging.getLogger(__name__)

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
STEM = "stem"  # the last feature of stride 2, where there is one: what FREEZE_AT 1 freezes
# Sides that differ and that no network's channel number divides into the wanted strides.
PROBE_SIZE = (128, 192)


class TorchBackbone(Backbone):
    """Features of strides 4, 8, 16, 32 of a wrapped network as ``res2`` .. ``res5``.

    Args:
        net: maps ``(B, 3, H, W)`` to a dict with at least those four features; ``stem``, if it
            is there too, is their feature of stride 2.
        freeze_at: 0 freezes nothing, 1 what leads to ``stem``, n >= 2 what leads to ``res<n>``.
    """

    def __init__(self, net: nn.Module, freeze_at: int = 0):
        super().__init__()
        self.net = net
        with torch.no_grad():
            features = _probe(net)
        self._out_features = list(STRIDES)
        self._out_feature_strides = dict(STRIDES)
        self._out_feature_channels = {name: features[name].shape[1] for name in STRIDES}
        self._freeze(freeze_at)

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.net(x)
        return {name: features[name] for name in self._out_features}

    def _freeze(self, freeze_at: int) -> None:
        if freeze_at == 0:
            return
        features = _probe(self.net)
        names = [STEM, *STRIDES]
        if not 0 <= freeze_at <= len(names) or names[freeze_at - 1] not in features:
            raise ConfigError(
                f"MODEL.BACKBONE.FREEZE_AT must be 0 or one of "
                f"{[i + 1 for i, name in enumerate(names) if name in features]} for this "
                f"backbone, got {freeze_at}"
            )
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        # What a feature depends on is what it has a gradient for, however a network is nested.
        gradients = torch.autograd.grad(
            features[names[freeze_at - 1]].sum(), parameters, allow_unused=True
        )
        for parameter, gradient in zip(parameters, gradients):
            parameter.requires_grad = gradient is None
        freeze_norms(self.net)


class TimmFeatures(nn.Module):
    """A timm network made with ``features_only=True``, whose list of features gets names.

    Args:
        net: the network.
        names: one per feature; None leaves a feature out.
    """

    def __init__(self, net: nn.Module, names: Sequence[str | None]):
        super().__init__()
        self.net, self.names = net, tuple(names)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: feature for name, feature in zip(self.names, self.net(x)) if name}


@BACKBONE_REGISTRY.register()
def build_torch_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TorchBackbone:
    """Build the backbone of ``cfg.MODEL.TORCH_BACKBONE``: ``res2`` .. ``res5``.

    Raises:
        ConfigError: the library or its network is unknown, lacks one of the strides, or the
            weights do not fit; the message names the key to change.
        ImportError: timm is asked for and missing.
    """
    options = cfg.MODEL.TORCH_BACKBONE
    libraries = {"torchvision": _torchvision_features, "timm": _timm_features}
    if options.LIBRARY not in libraries:
        raise ConfigError(
            f"MODEL.TORCH_BACKBONE.LIBRARY must be one of {sorted(libraries)}, "
            f"got {options.LIBRARY!r}"
        )
    with others_read_tensors_only():  # what a download turns out to be
        net = libraries[options.LIBRARY](options.NAME, pretrained=options.WEIGHTS == "pretrained")
    if options.WEIGHTS not in ("", "pretrained"):
        inner = net.net if isinstance(net, TimmFeatures) else net
        load_weights(inner, options.WEIGHTS)
    convert_norms(net, options.NORM)
    if options.SAME_PADDING:
        pad_like_tensorflow(net)
    return TorchBackbone(net, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


@BACKBONE_REGISTRY.register()
def build_torch_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec):
    """The same below Detectron2's FPN: ``p2`` .. ``p6``."""
    return with_fpn(cfg, build_torch_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_fcos_torch_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec):
    """The same below FCOS's pyramid: ``p3`` .. ``p7`` of ``res3`` .. ``res5``."""
    return with_fcos_fpn(cfg, build_torch_backbone(cfg, input_shape))


def _torchvision_features(name: str, pretrained: bool) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ConfigError(_unknown("torchvision", name, known))
    net = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    modules = _last_modules(net, name)
    _require_strides(name, modules)
    names = {stride: feature for feature, stride in STRIDES.items()} | {2: STEM}
    # Leaves out what comes after the last feature, the classifier above all.
    return create_feature_extractor(
        net, {module: names[stride] for stride, module in modules.items() if stride in names}
    )


def _timm_features(name: str, pretrained: bool) -> nn.Module:
    if importlib.util.find_spec("timm") is None:
        raise ImportError("MODEL.TORCH_BACKBONE.LIBRARY timm needs timm: pip install timm")
    import timm

    if name.split(".")[0] not in timm.list_models():
        raise ConfigError(_unknown("timm", name, timm.list_models()))
    try:
        net = timm.create_model(name, pretrained=pretrained, features_only=True)
        with torch.no_grad():
            features = _probe(net)
    except (AssertionError, AttributeError, RuntimeError) as error:
        raise ConfigError(_unusable(name, error)) from error
    last = {_stride(feature): index for index, feature in enumerate(features)}
    _require_strides(name, last)
    names = {last[stride]: feature for feature, stride in STRIDES.items()}
    if 2 in last:
        names[last[2]] = STEM
    return TimmFeatures(net, [names.get(index) for index in range(len(features))])


def _probe(net: nn.Module):
    """What ``net`` makes of a black image of PROBE_SIZE, in evaluation mode."""
    training = net.training
    parameter = next(net.parameters())
    features = net.eval()(parameter.new_zeros(1, 3, *PROBE_SIZE))
    net.train(training)
    return features


def _stride(feature) -> int | None:
    """Stride of a feature of the probe; None for what is no ``(B, C, H, W)`` grid of it."""
    if not isinstance(feature, Tensor) or feature.dim() != 4:
        return None
    strides = {size / cells for size, cells in zip(PROBE_SIZE, feature.shape[2:])}
    stride = strides.pop()
    return int(stride) if not strides and stride == int(stride) else None


def _last_modules(net: nn.Module, name: str) -> dict[int, str]:
    """For each stride the name of the last module that ends there.

    A module counts as a whole if it halves the resolution at most. Larger ones are looked into,
    and what is inside a smaller one is not: the expanded channels at the start of an inverted
    residual, for instance, still have the stride before it.
    """
    calls: list[tuple[str, int | None, int | None, bool]] = []

    def record(path: str):
        def hook(module, inputs, output):
            leaf = next(module.children(), None) is None
            calls.append((path, _stride(inputs[0] if inputs else None), _stride(output), leaf))

        return hook

    hooks = [m.register_forward_hook(record(path)) for path, m in net.named_modules() if path]
    try:
        with torch.no_grad():
            _probe(net)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(_unusable(name, error)) from error
    finally:
        for hook in hooks:
            hook.remove()
    whole = [
        (path, after)
        for path, before, after, leaf in calls
        if after and (leaf or (before and after <= 2 * before))
    ]
    paths = {path for path, _ in whole}
    return {after: path for path, after in whole if not _parents(path) & paths}


def _parents(path: str) -> set[str]:
    parts = path.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts))}


def _require_strides(name: str, found: dict[int | None, object]) -> None:
    missing = [stride for stride in STRIDES.values() if stride not in found]
    if missing:
        raise ConfigError(
            f"MODEL.TORCH_BACKBONE.NAME {name!r} has no features of stride {missing} (found: "
            f"{sorted(s for s in found if s)}): choose a network with strides 4, 8, 16 and 32"
        )


def _unknown(library: str, name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=5) or list(known)[:5]
    return (
        f"MODEL.TORCH_BACKBONE.NAME {name!r} is no network of {library}; "
        f"similar ones are {', '.join(close)}"
    )


def _unusable(name: str, error: Exception) -> str:
    return (
        f"MODEL.TORCH_BACKBONE.NAME {name!r} cannot serve as a backbone, it does not give a "
        f"pyramid of features for an image of {PROBE_SIZE[0]}x{PROBE_SIZE[1]} pixels: {error}"
    )
