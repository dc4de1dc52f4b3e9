"""CondInst and BlendMask: the authors' release (AdelaiDet), and mmdetection's CondInst."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from isda.conversion.resnet import RGB, resnet_rules, resnet_settings
from isda.conversion.table import Rule, Source, drops, moves

__all__ = ["AUTHORS_BLENDMASK", "AUTHORS_CONDINST", "MMDETECTION_CONDINST"]

_KIND = r"(?P<kind>weight|bias)"
_NORM = r"(?P<kind>weight|bias|running_mean|running_var)"
_LEVELS = 5
_COUNTER = drops(r".*\.num_batches_tracked", "a counter of training steps")
_TOWERS = {"cls": "class_tower", "bbox": "box_tower", "reg": "box_tower"}
_BLOCKS = {6: 50, 23: 101}  # of the stage res4: depth


def _scales(theirs: str) -> tuple[Rule, ...]:
    """The number of each level, which we have side by side."""
    return tuple(
        moves(rf"{theirs}\.{level}\.scale", "head.scales", part=level) for level in range(_LEVELS)
    )


def _block(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """A convolution and its norm, numbered 0 and 1; ``theirs`` may capture the block's number."""
    return (
        moves(rf"{theirs}\.0\.weight", rf"{ours}.weight"),
        moves(rf"{theirs}\.1\.{_NORM}", rf"{ours}.norm.\g<kind>"),
    )


# ---- AdelaiDet ----


def _tower(match: re.Match) -> str:
    """Convolution, norm and activation follow each other in one list."""
    layer, place = divmod(int(match["number"]), 3)
    norm = "norm." if place == 1 else ""
    return f"head.{_TOWERS[match['tower']]}.{layer}.{norm}{match['kind']}"


_HEAD = r"proposal_generator\.fcos_head\."
_AUTHORS_RULES = (
    _COUNTER,
    moves(r"(backbone\..+)", r"\1"),  # Detectron2's in both, the feature pyramid included
    moves(rf"{_HEAD}(?P<tower>cls|bbox)_tower\.(?P<number>\d+)\.{_KIND}", _tower),
    moves(rf"{_HEAD}cls_logits\.{_KIND}", r"head.classes.\g<kind>"),
    moves(rf"{_HEAD}bbox_pred\.{_KIND}", r"head.distances.\g<kind>"),
    moves(rf"{_HEAD}ctrness\.{_KIND}", r"head.centreness.\g<kind>"),
    *_scales(rf"{_HEAD}scales"),
)


def _authors_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    blocks = {
        match["block"]
        for match in (re.match(r"backbone\.bottom_up\.res4\.(?P<block>\d+)\.", n) for n in weights)
        if match
    }
    depth = _BLOCKS.get(len(blocks))
    return {} if depth is None else {"MODEL.RESNETS.DEPTH": depth}


def _condinst_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    has_semantic_head = "mask_branch.logits.weight" in weights
    return _authors_settings(weights) | {"MODEL.CONDINST.SEMANTIC": has_semantic_head}


AUTHORS_CONDINST = Source(
    title="CondInst, the authors' release",
    config="COCO-InstanceSegmentation/condinst_R_50_FPN_3x.yaml",
    mark=r"mask_branch\.refine\.0\.0\.weight",
    rules=(
        *_AUTHORS_RULES,
        moves(rf"controller\.{_KIND}", r"controller.conv.\g<kind>"),
        *_block(r"mask_branch\.refine\.(?P<level>\d)", r"mask_branch.levels.\g<level>"),
        *_block(r"mask_branch\.tower\.(?P<conv>[0-3])", r"mask_branch.convs.\g<conv>"),
        moves(rf"mask_branch\.tower\.4\.{_KIND}", r"mask_branch.output.\g<kind>"),
        *_block(r"mask_branch\.seg_head\.(?P<conv>[01])", r"semantic_head.convs.\g<conv>"),
        moves(rf"mask_branch\.logits\.{_KIND}", r"semantic_head.output.\g<kind>"),
        drops(r"mask_head\.(sizes_of_interest|_iter)", "a constant, or a counter"),
    ),
    settings=_condinst_settings,
)


def _semantic(match: re.Match) -> str:
    """Convolution, norm and activation, twice; then the last convolution."""
    layer, place = divmod(int(match["number"]), 3)
    name = "output" if layer == 2 else f"convs.{layer}" + (".norm" if place == 1 else "")
    return f"semantic_head.{name}.{match['kind']}"


AUTHORS_BLENDMASK = Source(
    title="BlendMask, the authors' release",
    config="COCO-InstanceSegmentation/blendmask_R_50_FPN_3x.yaml",
    mark=r"basis_module\.refine\.0\.0\.weight",
    rules=(
        *_AUTHORS_RULES,
        moves(rf"top_layer\.{_KIND}", r"attention.conv.\g<kind>"),
        *_block(r"basis_module\.refine\.(?P<level>\d)", r"mask_branch.levels.\g<level>"),
        *_block(r"basis_module\.tower\.(?P<conv>[0-2])", r"mask_branch.convs.\g<conv>"),
        *_block(r"basis_module\.tower\.4", "mask_branch.final_conv"),  # 3 enlarges
        moves(rf"basis_module\.tower\.5\.{_KIND}", r"mask_branch.output.\g<kind>"),
        moves(rf"basis_module\.seg_head\.(?P<number>\d)\.{_NORM}", _semantic),
    ),
    settings=_authors_settings,
)


# ---- mmdetection ----


def _conv_or_norm(pattern: str, ours: str) -> Rule:
    """A convolution with its norm, called gn or bn."""

    def name(match: re.Match) -> str:
        norm = "" if match["module"] == "conv" else "norm."
        tower = _TOWERS.get(match.groupdict().get("tower", ""), "")
        return f"{match.expand(ours).replace('TOWER', tower)}.{norm}{match['kind']}"

    return moves(rf"{pattern}\.(?P<module>conv|gn|bn)\.{_NORM}", name)


def _pyramid(match: re.Match) -> str:
    level = int(match["level"]) + 3
    name = f"fpn_output{level}" if level < 6 else f"top_block.p{level}"
    return f"backbone.{name}.{match['kind']}"


def _mmdetection_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return RGB | resnet_settings(weights, "backbone.")


_FEATURES = r"mask_head\.mask_feature_head"

MMDETECTION_CONDINST = Source(
    title="CondInst of mmdetection",
    config="COCO-InstanceSegmentation/condinst_R_50_FPN_1x.yaml",
    mark=r"bbox_head\.controller\.weight",
    rules=(
        _COUNTER,
        *resnet_rules(r"backbone\."),
        moves(
            rf"neck\.lateral_convs\.(?P<level>[0-2])\.conv\.{_KIND}",
            lambda match: f"backbone.fpn_lateral{int(match['level']) + 3}.{match['kind']}",
        ),
        moves(rf"neck\.fpn_convs\.(?P<level>[0-4])\.conv\.{_KIND}", _pyramid),
        _conv_or_norm(
            r"bbox_head\.(?P<tower>cls|reg)_convs\.(?P<layer>\d)", r"head.TOWER.\g<layer>"
        ),
        moves(rf"bbox_head\.conv_cls\.{_KIND}", r"head.classes.\g<kind>"),
        moves(rf"bbox_head\.conv_reg\.{_KIND}", r"head.distances.\g<kind>"),
        moves(rf"bbox_head\.conv_centerness\.{_KIND}", r"head.centreness.\g<kind>"),
        *_scales(r"bbox_head\.scales"),
        moves(rf"bbox_head\.controller\.{_KIND}", r"controller.conv.\g<kind>"),
        _conv_or_norm(
            rf"{_FEATURES}\.convs_all_levels\.(?P<layer>\d)\.conv\d",
            r"mask_branch.levels.\g<layer>",
        ),
        _conv_or_norm(rf"{_FEATURES}\.conv_branch\.(?P<layer>\d)", r"mask_branch.convs.\g<layer>"),
        moves(rf"{_FEATURES}\.conv_pred\.{_KIND}", r"mask_branch.output.\g<kind>"),
    ),
    settings=_mmdetection_settings,
)
