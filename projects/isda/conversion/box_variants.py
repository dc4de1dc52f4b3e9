"""Deformable DETR with box refinement, two stages or both (arXiv 2010.04159, appendix A.4).

ISDA with boxes is built alike, so much of such a file has a place in it. Two differences decide
what has none: their decoder layers have class and box layers of their own, of which ours share one,
and their proposals make the whole queries by layers of their own, where ours give the boxes and
their tokens the content.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Size, Tensor

from isda.conversion.table import Adaptation, Fresh, Rule, Source, drops, moves

__all__ = ["BoxNames", "box_variant", "coco_rows"]

CONFIG = "COCO-InstanceSegmentation/isda_boxes_R_50_12ep.yaml"

# How Deformable DETR moves boxes, measures padded levels, and encodes.
_THEIRS = {
    "MODEL.ISDA.RELATIVE_BOXES": False,
    "MODEL.ISDA.EXACT_EXTENT": False,
    "MODEL.ISDA.ENCODER_FINEST_EVERY": 1,
}

# Two of the implementations have a class row per COCO category id, which runs to 90 with gaps.
_COCO_ROWS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]

_KIND = r"(?P<kind>weight|bias)"
_EARLIER = (
    "of the decoder's earlier layers: one module serves all of ours, the last layer's is taken"
)


@dataclass(frozen=True)
class BoxNames:
    """What an implementation calls the parts in which the variants differ: regular expressions."""

    decoder: str  # its layers, before their number
    classes: str  # class layers, before their number; in two stages the last is the proposals'
    boxes: str  # the same of box heads
    linears: tuple[str, str, str]  # linear layers of a box head
    project: str  # of tokens before they propose
    norm: str  # after it
    learned: str  # queries of the single stage
    places: str  # where these start
    made: str  # layers that make queries of proposals
    class_rows: Adaptation | None = None  # from the file's classes to COCO's


def box_variant(source: Source, weights: Mapping[str, Tensor], names: BoxNames) -> Source:
    """The table of a file with box refinement or two stages; of others the source itself."""
    two_stages = any(re.fullmatch(rf"{names.project}\.weight", name) for name in weights)
    refined = _is_refined(weights, names)
    if not (two_stages or refined):
        return source
    kinds = ["box refinement"] * refined + ["two stages"] * two_stages

    def settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
        ours = {} if refined else {"MODEL.ISDA.BOX_REFINEMENT": False}
        # A single stage has learned content, which goes on with proposals that are new.
        ours |= {} if two_stages else {"MODEL.ISDA.TOKEN_CONTENT": False}
        return source.settings(weights) | ours | _THEIRS

    return replace(
        source,
        title=f"{source.title}, with {' and '.join(kinds)}",
        config=CONFIG,
        rules=(*_rules(names, _count(weights, names.decoder), two_stages), *source.rules),
        fresh=(*source.fresh, *_fresh(two_stages)),
        settings=settings,
        variant=None,
    )


def coco_rows(tensor: Tensor, shape: Size) -> tuple[Tensor, str]:
    """The rows of COCO's classes, of a row per category id."""
    fits = tensor.dim() == len(shape) and len(_COCO_ROWS) == shape[0]
    if not fits or tensor.shape[0] <= max(_COCO_ROWS):
        return tensor, ""
    what = f"{len(_COCO_ROWS)} rows of {tensor.shape[0]}: those of COCO's classes"
    return tensor[_COCO_ROWS], what


def _first_row(tensor: Tensor, shape: Size) -> tuple[Tensor, str]:
    """One row for every class: their proposals tell objects from background, in the first row."""
    if tensor.dim() != len(shape) or tensor.shape[1:] != shape[1:]:
        return tensor, ""
    what = f"the first row of {tensor.shape[0]}, for every class: it tells objects from background"
    return tensor[:1].expand(shape).clone(), what


def _content(tensor: Tensor, shape: Size) -> tuple[Tensor, str]:
    """The half of learned queries that is not their position."""
    half = shape[-1]
    if tensor.dim() != 2 or tensor.shape[1] != 2 * half:
        return tensor, ""
    return tensor[:, half:].clone(), f"the last {half} columns of {2 * half}: the content"


def _is_refined(weights: Mapping[str, Tensor], names: BoxNames) -> bool:
    """Whether layers have box heads of their own; without refinement, one is stored many times."""
    pattern = re.compile(rf"{names.boxes}\.[01]\.{re.escape(names.linears[0])}\.weight")
    heads = [tensor for name, tensor in weights.items() if pattern.fullmatch(name)]
    # Two of the implementations have them in the decoder as well, if it uses them.
    in_decoder = any(re.match(r"(transformer|model)\.decoder\.bbox_embed\.", n) for n in weights)
    return in_decoder or any(not torch.equal(heads[0], head) for head in heads[1:])


def _count(weights: Mapping[str, Tensor], layers: str) -> int:
    matches = (re.match(rf"{layers}\.(\d+)\.", name) for name in weights)
    return 1 + max((int(match[1]) for match in matches if match), default=-1)


def _rules(names: BoxNames, layers: int, two_stages: bool) -> tuple[Rule, ...]:
    """
    Args:
        layers: of the decoder.
    """
    return (
        _class_layer(names, layers - 1, "instance_head", names.class_rows),
        _box_head(names, layers - 1, "transformer.reference_boxes.head"),
        *(_proposals(names, layers) if two_stages else _learned(names)),
        drops(rf"(?:{names.classes}|{names.boxes})\.\d+\..+", _EARLIER),
    )


def _proposals(names: BoxNames, layer: int) -> tuple[Rule, ...]:
    """
    Args:
        layer: number of the proposals' class layer and box head, after the decoder's.
    """
    ours = "transformer.query_selection"
    return (
        _class_layer(names, layer, ours, _first_row),
        _box_head(names, layer, f"{ours}.boxes"),
        moves(rf"{names.project}\.{_KIND}", rf"{ours}.project.\g<kind>"),
        moves(rf"{names.norm}\.{_KIND}", rf"{ours}.norm.\g<kind>"),
        drops(
            names.made, "make queries of proposals: in ISDA these give boxes, their tokens content"
        ),
    )


def _learned(names: BoxNames) -> tuple[Rule, ...]:
    return (
        moves(names.learned, "transformer.query_embed.weight", adapt=_content),
        drops(names.places, "where learned queries start: in ISDA they start from proposals"),
    )


def _class_layer(names: BoxNames, layer: int, ours: str, adapt: Adaptation | None) -> Rule:
    return moves(rf"{names.classes}\.{layer}\.{_KIND}", rf"{ours}.classes.\g<kind>", adapt=adapt)


def _box_head(names: BoxNames, layer: int, ours: str) -> Rule:
    """Three linear layers, with an activation after each but the last, which ours counts too."""
    linears = "|".join(map(re.escape, names.linears))

    def name(match: re.Match) -> str:
        return f"{ours}.layers.{2 * names.linears.index(match['linear'])}.{match['kind']}"

    return moves(rf"{names.boxes}\.{layer}\.(?P<linear>{linears})\.{_KIND}", name)


def _fresh(two_stages: bool) -> tuple[Fresh, ...]:
    always = (
        Fresh(r"instance_head\.ellipse\..+", "Deformable DETR predicts boxes, not masks"),
        Fresh(
            r"transformer\.reference_boxes\.position\..+",
            "Deformable DETR makes positions once, not of each layer's boxes",
        ),
        Fresh(r"denoising\..+", "Deformable DETR is trained without noised queries"),
        Fresh(
            r"transformer\.decoder\.\d+\.relation\..+",
            "Deformable DETR has none; they start without an effect",
        ),
    )
    if two_stages:
        return always
    return (*always, Fresh(r"transformer\.query_selection\..+", "the file has a single stage"))
