"""ImageNet ResNets in torchvision's names, which timm and most detectors have taken over.

Hugging Face transformers has names of its own; they are brought under torchvision's first.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from isda.conversion.table import Fresh, Rule, Source, drops, moves, refuses

__all__ = [
    "HUGGING_FACE_RESNET",
    "RGB",
    "TIMM",
    "TORCHVISION",
    "detectron2_resnet",
    "hugging_face_resnet_rules",
    "resnet_rules",
    "resnet_settings",
]

#: What networks trained in the manner of torchvision take for an image.
RGB = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}

_EPS = 1e-5  # of Detectron2's FrozenBatchNorm2d
_BLOCK = r"layer(?P<stage>\d)\.(?P<block>\d+)\."
_NORM = r"(?P<kind>weight|bias|running_mean|running_var)"

# Blocks per stage, and whether a block is a bottleneck of three convolutions: depth.
_DEPTHS = {
    ((1, 1, 1, 1), False): 10,
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}


def resnet_rules(theirs: str = "", ours: str = "backbone.") -> tuple[Rule, ...]:
    """Rules from torchvision's names to those of Detectron2's ResNet.

    Their stages are ``layer1`` to ``layer4``, Detectron2's ``res2`` to ``res5``; Detectron2 has
    each norm inside its convolution.

    Args:
        theirs: pattern of what stands before their names.
        ours: what stands before ours.
    """

    in_block = partial(_in_block, ours)
    return (
        drops(rf"{theirs}.*\.num_batches_tracked", "a counter of training steps"),
        moves(rf"{theirs}conv1\.weight", f"{ours}stem.conv1.weight"),
        moves(rf"{theirs}bn1\.{_NORM}", rf"{ours}stem.conv1.norm.\g<kind>"),
        moves(rf"{theirs}{_BLOCK}conv(?P<conv>\d)\.weight", in_block(r"conv\g<conv>.weight")),
        moves(rf"{theirs}{_BLOCK}bn(?P<conv>\d)\.{_NORM}", in_block(r"conv\g<conv>.norm.\g<kind>")),
        moves(rf"{theirs}{_BLOCK}downsample\.0\.weight", in_block("shortcut.weight")),
        moves(rf"{theirs}{_BLOCK}downsample\.1\.{_NORM}", in_block(r"shortcut.norm.\g<kind>")),
    )


def _in_block(ours: str, tail: str) -> Callable[[re.Match], str]:
    def name(match: re.Match) -> str:
        stage = int(match["stage"]) + 1
        return f"{ours}res{stage}.{match['block']}.{match.expand(tail)}"

    return name


def _folded_rules() -> tuple[Rule, ...]:
    """Biases of convolutions that have absorbed their batch norm: a norm that adds them alone.

    Detectron2's ResNets have no biases.
    """
    identity = {"weight": 1.0, "running_mean": 0.0, "running_var": 1 - _EPS}
    in_block = partial(_in_block, "backbone.")
    return (
        moves(r"conv1\.bias", "backbone.stem.conv1.norm.bias", beside=identity),
        moves(
            rf"{_BLOCK}conv(?P<conv>\d)\.bias", in_block(r"conv\g<conv>.norm.bias"), beside=identity
        ),
        moves(rf"{_BLOCK}downsample\.0\.bias", in_block("shortcut.norm.bias"), beside=identity),
    )


# Names of Hugging Face's ResNets, and the same in torchvision's.
_PART = r"(?P<part>convolution\.weight|normalization\.(?:weight|bias|running_mean|running_var))"
_HUGGING_FACE = (
    (rf"embedder\.embedder\.{_PART}", ""),
    (
        r"encoder\.stages\.(?P<stage>\d)\.layers\.(?P<block>\d+)\."
        rf"(?:layer\.(?P<conv>\d)|shortcut)\.{_PART}",
        "layer{stage}.{block}.",
    ),
)


def hugging_face_resnet_rules(theirs: str = "") -> tuple[Rule, ...]:
    """Rules from the names of Hugging Face's ResNets to those of Detectron2's.

    Args:
        theirs: pattern of what stands before their names.
    """

    def name(match: re.Match) -> str:
        return _IN_BACKBONE.rule(_torchvision_name(match["resnet"]))[1]

    return (
        drops(rf"{theirs}.*\.num_batches_tracked", "a counter of training steps"),
        *(moves(rf"{theirs}(?P<resnet>{pattern})", name) for pattern, _ in _HUGGING_FACE),
    )


def _torchvision_name(name: str) -> str:
    """The name of a tensor of Hugging Face's ResNets in torchvision's; others as they are."""
    for pattern, block in _HUGGING_FACE:
        match = re.fullmatch(rf"(?P<before>(?:.+\.)?){pattern}", name)
        if match:
            return f"{match['before']}{_of_layer(match, block)}"
    return name


def _of_layer(match: re.Match, block: str) -> str:
    groups = match.groupdict()
    kind, _, tensor = groups["part"].partition(".")
    is_norm = kind == "normalization"
    if block and groups["conv"] is None:
        layer = f"downsample.{int(is_norm)}"
    else:
        layer = f"{'bn' if is_norm else 'conv'}{int(groups.get('conv') or 0) + 1}"
    # Their stages and convolutions are counted from 0.
    stage = int(groups.get("stage") or 0) + 1
    return f"{block.format(stage=stage, block=groups.get('block'))}{layer}.{tensor}"


def resnet_settings(weights: Mapping[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """Keys of ``MODEL.RESNETS`` with which Detectron2 builds the ResNet of a state dict.

    Args:
        prefix: what stands before torchvision's names, or Hugging Face's.
    """
    inside = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
    resnet = {_torchvision_name(name): weight for name, weight in inside.items()}
    if not {"conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight"} <= resnet.keys():
        return {}
    bottleneck = "layer1.0.conv3.weight" in resnet
    last = resnet[f"layer1.0.conv{3 if bottleneck else 2}.weight"]
    settings = {
        # torchvision halves the resolution in the 3x3 convolution, MSRA's ResNets in the 1x1.
        "STRIDE_IN_1X1": False,
        "STEM_OUT_CHANNELS": resnet["conv1.weight"].shape[0],
        "RES2_OUT_CHANNELS": last.shape[0],
    }
    depth = _depth(resnet, bottleneck)
    if depth:
        settings["DEPTH"] = depth
    if bottleneck:
        inner, per_group = resnet["layer1.0.conv2.weight"].shape[:2]
        settings |= {"NUM_GROUPS": inner // per_group, "WIDTH_PER_GROUP": per_group}
    return {f"MODEL.RESNETS.{key}": value for key, value in settings.items()}


def _depth(resnet: Mapping[str, Tensor], bottleneck: bool) -> int | None:
    firsts = [re.fullmatch(_BLOCK + r"conv1\.weight", name) for name in resnet]
    stages = [int(match["stage"]) for match in firsts if match]
    blocks = tuple(stages.count(stage) for stage in range(1, max(stages) + 1))
    for (known, kind), depth in _DEPTHS.items():
        if kind == bottleneck and known[: len(blocks)] == blocks:
            return depth
    return None


def detectron2_resnet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet's state dict in torchvision's names under Detectron2's, without its classifier.

    Names that no ResNet of torchvision has stay as they are.
    """
    renamed = {}
    for theirs, tensor in weights.items():
        rule, ours = _PLAIN.rule(theirs)
        if rule is None or ours:
            renamed[ours or theirs] = tensor
    return renamed


def _settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    settings = RGB | resnet_settings(weights)
    if "conv1.bias" in weights:
        # A norm with statistics of its own would undo the scale that is folded into the weights.
        settings["MODEL.RESNETS.NORM"] = "FrozenBN"
    return settings


def _hugging_face_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    prefix = "resnet." if any(name.startswith("resnet.") for name in weights) else ""
    return RGB | resnet_settings(weights, prefix)


_CLASSIFIER = drops(r"(fc|classifier)\..+", "ImageNet's classifier")
_CONFIG = "COCO-InstanceSegmentation/isda_R_50_42ep.yaml"
_FRESH = (
    *(
        Fresh(rf"backbone\.(bottom_up\.)?res{n + 1}\..+", f"the file ends before layer{n}", unless)
        for n in (2, 3, 4)
        for unless in [f"layer{n}.0.conv1.weight"]
    ),
    Fresh(r"(?!backbone\.).+", "an ImageNet classifier has a backbone alone"),
    Fresh(r"backbone\.fpn_.+", "an ImageNet classifier has no feature pyramid"),
)

TORCHVISION = Source(
    title="ResNet of torchvision",
    config=_CONFIG,
    mark=r"layer1\.0\.conv1\.weight",
    rules=(*resnet_rules(), *_folded_rules(), _CLASSIFIER),
    fresh=_FRESH,
    settings=_settings,
)

_VARIANT = "of a ResNet with another stem or other blocks: name the file in "
_VARIANT += "MODEL.TORCH_BACKBONE.WEIGHTS instead, with MODEL.TORCH_BACKBONE.LIBRARY timm"

TIMM = Source(
    title="ResNet of timm",
    config=_CONFIG,
    mark=r"conv1\.0\.weight",  # where it is not torchvision's layout
    rules=(
        *(refuses(p, _VARIANT) for p in (r"conv1\.\d\..+", r".*\.se\..+", r".*downsample\.2\..+")),
        *TORCHVISION.rules,
    ),
    fresh=_FRESH,
    settings=_settings,
)

HUGGING_FACE_RESNET = Source(
    title="ResNet of Hugging Face transformers",
    config=_CONFIG,
    mark=r"(?:resnet\.)?embedder\.embedder\.convolution\.weight",
    rules=(
        *hugging_face_resnet_rules(r"(?:resnet\.)?"),
        drops(r"classifier\..+", "ImageNet's classifier"),
    ),
    fresh=_FRESH[-2:],
    settings=_hugging_face_settings,
)

_PLAIN = Source("", "", "", (*resnet_rules(ours=""), _CLASSIFIER))
_IN_BACKBONE = Source("", "", "", resnet_rules())
