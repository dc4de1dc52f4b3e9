"""SOLO, Decoupled SOLO and SOLOv2: the authors' releases, mmdetection's and AdelaiDet's.

The authors trained in an early mmdetection; later versions renamed the head. The port of SOLOv2
that AdelaiDet took over stands on Detectron2, whose names of the backbone it has.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from isda.conversion.resnet import RGB, resnet_rules, resnet_settings
from isda.conversion.table import Rule, Source, moves

__all__ = ["ADELAIDET_SOLOV2", "DECOUPLED_SOLO", "SOLO", "SOLOV2"]

_KIND = r"(?P<kind>weight|bias)"
_FOLDER = "COCO-InstanceSegmentation"

#: What MSRA's ResNets, from which AdelaiDet starts, take for an image.
_BGR = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
}


def _tensor(match: re.Match) -> str:
    """Within one of our convolutions with a norm."""
    return f"norm.{match['kind']}" if match["module"] in ("gn", "1") else match["kind"]


def _tower(theirs: str, ours: str) -> Rule:
    return moves(
        rf"(?:bbox_head|mask_head)\.{theirs}\.(?P<index>\d+)\.(?P<module>conv|gn)\.{_KIND}",
        lambda match: f"head.{ours}.{match['index']}.{_tensor(match)}",
    )


def _layer(theirs: str, ours: str) -> Rule:
    """A convolution without a norm, or with ``<level>`` in ``theirs`` one per level."""
    level = r".\g<level>" if "<level>" in theirs else ""
    return moves(rf"(?:bbox_head|mask_head)\.{theirs}\.{_KIND}", rf"head.{ours}{level}.\g<kind>")


def _mask_branch(match: re.Match) -> str:
    index = 2 * int(match["conv"])  # our branches count the upsamplings in between as well
    return f"mask_feature_head.branches.{match['level']}.{index}.{_tensor(match)}"


def _pyramid(match: re.Match) -> str:
    part = {"lateral": "lateral", "fpn": "output"}[match["part"]]
    return f"backbone.fpn_{part}{int(match['level']) + 2}.{match['kind']}"


_BACKBONE = (
    *resnet_rules(r"backbone\.", "backbone.bottom_up."),
    moves(rf"neck\.(?P<part>lateral|fpn)_convs\.(?P<level>[0-3])\.conv\.{_KIND}", _pyramid),
)
_CLASSES = (
    _tower("(?:cate|cls)_convs", "class_tower"),
    _layer("(?:d?solo_cate|conv_cls)", "classes"),
)


def _settings(decoupled: bool = False) -> Callable[[Mapping[str, Tensor]], dict[str, Any]]:
    def settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
        chosen = {"MODEL.SOLO.DECOUPLED": True} if decoupled else {}
        return RGB | resnet_settings(weights, "backbone.") | chosen

    return settings


SOLO = Source(
    title="SOLO, the authors' release or mmdetection's",
    config=f"{_FOLDER}/solo_R_50_FPN_3x.yaml",
    mark=r"bbox_head\.solo_ins_list\.0\.weight|mask_head\.conv_mask_list\.0\.weight",
    rules=(
        *_BACKBONE,
        *_CLASSES,
        _tower("(?:ins|mask)_convs", "mask_tower"),
        _layer(r"(?:solo_ins_list|conv_mask_list)\.(?P<level>[0-4])", "masks"),
    ),
    settings=_settings(),
)

DECOUPLED_SOLO = Source(
    title="Decoupled SOLO, the authors' release or mmdetection's",
    config=f"{_FOLDER}/decoupled_solo_R_50_FPN_3x.yaml",
    mark=r"bbox_head\.dsolo_ins_list_x\.0\.weight|mask_head\.conv_mask_list_x\.0\.weight",
    rules=(
        *_BACKBONE,
        *_CLASSES,
        *(
            rule
            for axis, letter in enumerate("xy")
            for rule in (
                _tower(f"(?:ins|mask)_convs_{letter}", f"mask_towers.{axis}"),
                _layer(
                    rf"(?:dsolo_ins_list|conv_mask_list)_{letter}\.(?P<level>[0-4])",
                    f"masks.{axis}",
                ),
            )
        ),
    ),
    settings=_settings(decoupled=True),
)

SOLOV2 = Source(
    title="SOLOv2, the authors' release or mmdetection's",
    config=f"{_FOLDER}/solov2_R_50_FPN_3x.yaml",
    mark=r"bbox_head\.solo_kernel\.weight|mask_head\.conv_kernel\.weight",
    rules=(
        *_BACKBONE,
        *_CLASSES,
        _tower("kernel_convs", "kernel_tower"),
        _layer("(?:solo_kernel|conv_kernel)", "kernels"),
        moves(
            r"(?:mask_feat_head|mask_head\.mask_feature_head)\.convs_all_levels\."
            rf"(?P<level>[0-3])\.conv(?P<conv>\d)\.(?P<module>conv|gn)\.{_KIND}",
            _mask_branch,
        ),
        moves(
            r"(?:mask_feat_head\.conv_pred\.0|mask_head\.mask_feature_head\.conv_pred)\."
            rf"(?P<module>conv|gn)\.{_KIND}",
            lambda match: f"mask_feature_head.output.{_tensor(match)}",
        ),
    ),
    settings=_settings(),
)


def _adelaidet_tower(match: re.Match) -> str:
    """Their towers count the convolution, the norm and the ReLU of each layer."""
    ours = {"cate": "class", "kernel": "kernel"}[match["tower"]]
    layer, module = divmod(int(match["index"]), 3)
    return f"head.{ours}_tower.{layer}.{'norm.' if module else ''}{match['kind']}"


ADELAIDET_SOLOV2 = Source(
    title="SOLOv2 of AdelaiDet, on Detectron2",
    config=f"{_FOLDER}/solov2_R_50_FPN_3x.yaml",
    mark=r"ins_head\.kernel_pred\.weight",
    rules=(
        moves(r"(backbone\..+)", r"\1"),  # Detectron2's in both
        moves(
            rf"ins_head\.(?P<tower>cate|kernel)_tower\.(?P<index>\d+)\.{_KIND}", _adelaidet_tower
        ),
        moves(rf"ins_head\.cate_pred\.{_KIND}", r"head.classes.\g<kind>"),
        moves(rf"ins_head\.kernel_pred\.{_KIND}", r"head.kernels.\g<kind>"),
        moves(
            r"mask_head\.convs_all_levels\.(?P<level>[0-3])\.conv(?P<conv>\d)\."
            rf"(?P<module>[01])\.{_KIND}",
            _mask_branch,
        ),
        moves(
            rf"mask_head\.conv_pred\.(?P<module>[01])\.{_KIND}",
            lambda match: f"mask_feature_head.output.{_tensor(match)}",
        ),
    ),
    settings=lambda weights: dict(_BGR),
)
