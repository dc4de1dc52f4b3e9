"""Deformable DETR (arXiv 2010.04159): what ISDA starts from.

The same Transformer under three sets of names. The tables below are of the single stage without box
refinement, of whose boxes ISDA has no use; its mask features, its kernels and its finest level are
new. What the other variants have beside is in :mod:`isda.conversion.box_variants`.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from isda.conversion.box_variants import BoxNames, box_variant, coco_rows
from isda.conversion.resnet import (
    RGB,
    hugging_face_resnet_rules,
    resnet_rules,
    resnet_settings,
)
from isda.conversion.table import Fresh, Rule, Source, drops, moves, refuses

__all__ = ["AUTHORS", "HUGGING_FACE", "MMDETECTION", "MMDETECTION_RULES", "mmdetection_settings"]

CONFIG = "COCO-InstanceSegmentation/isda_R_50_42ep.yaml"

_KIND = r"(?P<kind>weight|bias)"
_DEFORMABLE = r"(?P<linear>sampling_offsets|attention_weights|value_proj|output_proj)"
_BOXES = "the box branch: ISDA predicts masks alone"
_TWO_STAGES = "of the variant with two stages, which ISDA does not have"

_FRESH = (
    Fresh(r"neck\.projections\.0\..+", "Deformable DETR has no level of stride 4"),
    Fresh(r"mask_feature_head\..+", "Deformable DETR predicts boxes, not masks"),
    Fresh(r"instance_head\.kernels\..+", "Deformable DETR predicts boxes, not masks"),
)


def _layers(stack: str, theirs: str, names: dict[str, str]) -> tuple[Rule, ...]:
    """Rules for each layer of a stack.

    Args:
        stack: "encoder" or "decoder".
        theirs: pattern of what stands before the number of a layer.
        names: patterns of their names within a layer, without weight or bias, and ours.
    """
    return tuple(
        moves(
            rf"{theirs}\.(?P<layer>\d+)\.{pattern}\.{_KIND}",
            rf"transformer.{stack}.\g<layer>.{ours}.\g<kind>",
        )
        for pattern, ours in names.items()
    )


def _packed(theirs: str) -> Rule:
    """Query, key and value projections of the queries' self-attention, stored as one tensor."""
    return moves(
        rf"{theirs}in_proj_{_KIND}", r"transformer.decoder.\g<layer>.self_attn.in_proj_\g<kind>"
    )


def _level(tail: str) -> Callable[[re.Match], str]:
    """Their levels start at stride 8, ours at stride 4; the last is made from the coarsest."""

    def name(match: re.Match) -> str:
        level = int(match["level"])
        part = "extra" if level == 3 else f"projections.{level + 1}"
        return f"neck.{part}.{match.expand(tail)}"

    return name


def _input_projections(theirs: str) -> tuple[Rule, ...]:
    return (
        moves(rf"{theirs}\.(?P<level>[0-3])\.0\.{_KIND}", _level(r"\g<kind>")),
        moves(rf"{theirs}\.(?P<level>[0-3])\.1\.{_KIND}", _level(r"norm.\g<kind>")),
    )


def _settings(weights: Mapping[str, Tensor], backbone: str, bias: str = "") -> dict[str, Any]:
    settings = RGB | resnet_settings(weights, backbone)
    if bias in weights:
        settings["MODEL.ISDA.NECK_BIAS"] = True
    return settings


AUTHORS = Source(
    title="Deformable DETR, the authors' release",
    config=CONFIG,
    mark=r"transformer\.encoder\.layers\.0\.self_attn\.sampling_offsets\.weight",
    rules=(
        *resnet_rules(r"backbone\.0\.body\."),
        *_input_projections("input_proj"),
        moves(r"transformer\.level_embed", "transformer.level_embed"),
        moves(r"query_embed\.weight", "transformer.query_embed.weight"),
        moves(rf"transformer\.reference_points\.{_KIND}", r"transformer.reference_points.\g<kind>"),
        *_layers(
            "encoder",
            r"transformer\.encoder\.layers",
            {
                rf"self_attn\.{_DEFORMABLE}": r"self_attn.\g<linear>",
                "norm1": "norm",
                "linear(?P<number>[12])": r"feedforward.linear\g<number>",
                "norm2": "feedforward.norm",
            },
        ),
        _packed(r"transformer\.decoder\.layers\.(?P<layer>\d+)\.self_attn\."),
        *_layers(
            "decoder",
            r"transformer\.decoder\.layers",
            {
                r"self_attn\.out_proj": "self_attn.out_proj",
                # Numbered as they were written down, not in the order of use.
                "norm2": "self_norm",
                rf"cross_attn\.{_DEFORMABLE}": r"cross_attn.\g<linear>",
                "norm1": "cross_norm",
                "linear(?P<number>[12])": r"feedforward.linear\g<number>",
                "norm3": "feedforward.norm",
            },
        ),
        moves(rf"class_embed\.\d+\.{_KIND}", r"instance_head.classes.\g<kind>", adapt=coco_rows),
        drops(r"bbox_embed\..+", _BOXES),
    ),
    fresh=_FRESH,
    settings=partial(_settings, backbone="backbone.0.body.", bias="input_proj.0.0.bias"),
    variant=partial(
        box_variant,
        names=BoxNames(
            decoder=r"transformer\.decoder\.layers",
            classes=r"(?:transformer\.decoder\.)?class_embed",
            boxes=r"(?:transformer\.decoder\.)?bbox_embed",
            linears=("layers.0", "layers.1", "layers.2"),
            project=r"transformer\.enc_output",
            norm=r"transformer\.enc_output_norm",
            learned=r"query_embed\.weight",
            made=r"transformer\.pos_trans(?:_norm)?\..+",
            places=r"transformer\.reference_points\..+",
            class_rows=coco_rows,
        ),
    ),
)


def _separate(theirs: str, part: int) -> Rule:
    """One of the projections of the queries' self-attention."""
    return moves(
        rf"model\.decoder\.layers\.(?P<layer>\d+)\.self_attn\.{theirs}\.{_KIND}",
        r"transformer.decoder.\g<layer>.self_attn.in_proj_\g<kind>",
        part=part,
    )


# "conv_encoder", "fc1" and "out_proj" stand in the files of save_pretrained, of all versions;
# the models of version 5 have other names, which a state dict saved by torch.save shows.
_HUGGING_FACE_BACKBONE = r"model\.backbone\.(?:conv_encoder\.)?model\."
_HUGGING_FACE_MLP = r"(?:mlp\.)?fc(?P<number>[12])"


def _hugging_face_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    prefixes = (re.match(_HUGGING_FACE_BACKBONE, name) for name in weights)
    prefix = next((match[0] for match in prefixes if match), "model.backbone.conv_encoder.model.")
    return _settings(weights, prefix, "model.input_proj.0.0.bias")


HUGGING_FACE = Source(
    title="Deformable DETR of Hugging Face transformers",
    config=CONFIG,
    mark=r"model\.encoder\.layers\.0\.self_attn\.sampling_offsets\.weight",
    rules=(
        *resnet_rules(_HUGGING_FACE_BACKBONE),
        *hugging_face_resnet_rules(_HUGGING_FACE_BACKBONE),
        *_input_projections(r"model\.input_proj"),
        moves(r"model\.level_embed", "transformer.level_embed"),
        moves(r"model\.query_position_embeddings\.weight", "transformer.query_embed.weight"),
        moves(rf"model\.reference_points\.{_KIND}", r"transformer.reference_points.\g<kind>"),
        *_layers(
            "encoder",
            r"model\.encoder\.layers",
            {
                rf"self_attn\.{_DEFORMABLE}": r"self_attn.\g<linear>",
                "self_attn_layer_norm": "norm",
                _HUGGING_FACE_MLP: r"feedforward.linear\g<number>",
                "final_layer_norm": "feedforward.norm",
            },
        ),
        *(_separate(f"{letter}_proj", part) for part, letter in enumerate("qkv")),
        *_layers(
            "decoder",
            r"model\.decoder\.layers",
            {
                r"self_attn\.o(?:ut)?_proj": "self_attn.out_proj",
                "self_attn_layer_norm": "self_norm",
                rf"encoder_attn\.{_DEFORMABLE}": r"cross_attn.\g<linear>",
                "encoder_attn_layer_norm": "cross_norm",
                _HUGGING_FACE_MLP: r"feedforward.linear\g<number>",
                "final_layer_norm": "feedforward.norm",
            },
        ),
        moves(rf"class_embed\.\d+\.{_KIND}", r"instance_head.classes.\g<kind>", adapt=coco_rows),
        drops(r"bbox_embed\..+", _BOXES),
    ),
    fresh=_FRESH,
    settings=_hugging_face_settings,
    variant=partial(
        box_variant,
        names=BoxNames(
            decoder=r"model\.decoder\.layers",
            classes=r"(?:model\.decoder\.)?class_embed",
            boxes=r"(?:model\.decoder\.)?bbox_embed",
            linears=("layers.0", "layers.1", "layers.2"),
            project=r"model\.enc_output",
            norm=r"model\.enc_output_norm",
            learned=r"model\.query_position_embeddings\.weight",
            made=r"model\.pos_trans(?:_norm)?\..+",
            places=r"model\.reference_points\..+",
            class_rows=coco_rows,
        ),
    ),
)

# Versions 2 and 3 of mmdetection: 3 has dissolved the module "transformer".
_FFN = r"(?:ffns\.0|ffn)\.layers"

#: What its Deformable DETR and the published ISDA have in common.
MMDETECTION_RULES = (
    *resnet_rules(r"backbone\."),
    moves(rf"neck\.convs\.(?P<level>[0-2])\.conv\.{_KIND}", _level(r"\g<kind>")),
    moves(rf"neck\.convs\.(?P<level>[0-2])\.gn\.{_KIND}", _level(r"norm.\g<kind>")),
    moves(rf"neck\.extra_convs\.0\.conv\.{_KIND}", r"neck.extra.\g<kind>"),
    moves(rf"neck\.extra_convs\.0\.gn\.{_KIND}", r"neck.extra.norm.\g<kind>"),
    moves(r"bbox_head\.transformer\.level_embeds|level_embed", "transformer.level_embed"),
    moves(r"(?:bbox_head\.)?query_embedding\.weight", "transformer.query_embed.weight"),
    moves(
        rf"(?:bbox_head\.transformer\.reference_points|reference_points_fc)\.{_KIND}",
        r"transformer.reference_points.\g<kind>",
    ),
    *_layers(
        "encoder",
        r"(?:bbox_head\.transformer\.)?encoder\.layers",
        {
            rf"(?:attentions\.0|self_attn)\.{_DEFORMABLE}": r"self_attn.\g<linear>",
            r"norms\.0": "norm",
            rf"{_FFN}\.0\.0": "feedforward.linear1",
            rf"{_FFN}\.1": "feedforward.linear2",
            r"norms\.1": "feedforward.norm",
        },
    ),
    _packed(
        r"(?:bbox_head\.transformer\.)?decoder\.layers\.(?P<layer>\d+)\."
        r"(?:attentions\.0|self_attn)\.attn\."
    ),
    *_layers(
        "decoder",
        r"(?:bbox_head\.transformer\.)?decoder\.layers",
        {
            r"(?:attentions\.0|self_attn)\.attn\.out_proj": "self_attn.out_proj",
            r"norms\.0": "self_norm",
            rf"(?:attentions\.1|cross_attn)\.{_DEFORMABLE}": r"cross_attn.\g<linear>",
            r"norms\.1": "cross_norm",
            rf"{_FFN}\.0\.0": "feedforward.linear1",
            rf"{_FFN}\.1": "feedforward.linear2",
            r"norms\.2": "feedforward.norm",
        },
    ),
    # 80 rows in the order of the category ids, as Detectron2 has them.
    moves(rf"bbox_head\.cls_branches\.\d+\.{_KIND}", r"instance_head.classes.\g<kind>"),
    drops(r"bbox_head\.reg_branches\..+", _BOXES),
    refuses(
        r"(bbox_head\.transformer\.(enc_output|pos_trans)|memory_trans_|pos_trans_).+", _TWO_STAGES
    ),
)

mmdetection_settings = partial(_settings, backbone="backbone.", bias="neck.convs.0.conv.bias")

MMDETECTION = Source(
    title="Deformable DETR of mmdetection",
    config=CONFIG,
    mark=(
        r"(bbox_head\.transformer\.)?encoder\.layers\.0\.(attentions\.0|self_attn)\."
        r"sampling_offsets\.weight"
    ),
    rules=MMDETECTION_RULES,
    fresh=_FRESH,
    settings=mmdetection_settings,
    variant=partial(
        box_variant,
        names=BoxNames(
            decoder=r"(?:bbox_head\.transformer\.)?decoder\.layers",
            classes=r"bbox_head\.cls_branches",
            boxes=r"bbox_head\.reg_branches",
            linears=("0", "2", "4"),
            project=r"(?:bbox_head\.transformer\.enc_output|memory_trans_fc)",
            norm=r"(?:bbox_head\.transformer\.enc_output_norm|memory_trans_norm)",
            learned=r"(?:bbox_head\.)?query_embedding\.weight",
            made=r"(?:bbox_head\.transformer\.pos_trans(?:_norm)?|pos_trans_(?:fc|norm))\..+",
            places=r"(?:bbox_head\.transformer\.reference_points|reference_points_fc)\..+",
        ),
    ),
)
