"""Deformable DETR with box refinement and two stages, as ISDA with boxes."""

import foreign_networks
import pytest
import torch
from converting import IMAGE_SIZES, converted_model, padded_images
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.structures import ImageList
from foreign_names import (
    PARTS,
    SMALL,
    SMALL_OPTIONS,
    Sizes,
    authors,
    filled,
    hugging_face,
    hugging_face_5,
    mmdetection,
    variant,
)
from foreign_networks import Weights

from isda import cli
from isda.conversion import SOURCES, adapting, convert, detect
from isda.engine.setup import load_config
from isda.model_zoo import get_config_file

COCO_IDS = [c["id"] for c in COCO_CATEGORIES if c["isthing"]]
KINDS = {
    "deformable-detr": (authors, foreign_networks.AUTHORS, COCO_IDS),
    "hf-deformable-detr": (hugging_face, foreign_networks.HUGGING_FACE, COCO_IDS),
    "mmdet-deformable-detr": (mmdetection, foreign_networks.MMDETECTION, list(range(80))),
    "mmdet-deformable-detr 3": (
        lambda sizes: mmdetection(sizes, version=3),
        foreign_networks.MMDETECTION_3,
        list(range(80)),
    ),
}
BOTH = {"refined": True, "two_stages": True}


def small(kind, *, refined, two_stages):
    shapes = variant(
        KINDS[kind][0](SMALL), PARTS[kind], SMALL, refined=refined, two_stages=two_stages
    )
    return filled(shapes, refined=refined)


@pytest.mark.parametrize(
    ("kind", "refined", "two_stages"),
    [
        ("deformable-detr", True, True),
        ("deformable-detr", True, False),
        ("deformable-detr", False, True),
        ("hf-deformable-detr", True, True),
        ("mmdet-deformable-detr", True, False),
        ("mmdet-deformable-detr 3", True, True),
    ],
)
@torch.no_grad()
def test_what_fits_computes_the_same(kind, refined, two_stages, tmp_path, capsys):
    """Proposals from pixels; scores and boxes of the decoder, with the queries that start fresh."""
    _, layout, rows = KINDS[kind]
    weights = small(kind, refined=refined, two_stages=two_stages)
    model, _ = converted_model(weights, tmp_path, capsys)
    images, w = padded_images(), Weights(weights)
    transformer = model.transformer
    torch.nn.init.zeros_(transformer.reference_boxes.position[-1].weight)  # positions start fresh
    torch.nn.init.zeros_(transformer.reference_boxes.position[-1].bias)
    (prediction,), decoded = model._decode(ImageList(images, IMAGE_SIZES))
    encoded = foreign_networks.encoded_images(w, layout, images, IMAGE_SIZES, SMALL.heads)
    for i, image in enumerate(encoded):
        starts = decoded.references[i].double()
        if two_stages:
            content = decoded.proposals.states[i].double()
            logits, starts = foreign_networks.proposals(w, layout, image, SMALL.queries)
            close(decoded.proposals.boxes[i], starts)
            close(decoded.proposals.class_logits[i], logits[:, None].expand(-1, 80))
        else:
            content = w[layout.queries][:, SMALL.dim :]
        queries, boxes = foreign_networks.decode_boxes(
            w, layout, content, starts, image, SMALL.heads, refined
        )
        scores = foreign_networks.linear(w.at(layout.classes), queries)[:, rows]
        assert scores.std() > 0.3  # queries and classes differ, so a swap would show
        close(prediction.class_logits[i], scores)
        close(prediction.boxes[i], boxes)


def close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["deformable-detr", "hf-deformable-detr"])
def test_a_published_checkpoint_fits_in_full(kind):
    """At full size; the tensors take no memory."""
    shapes = variant(KINDS[kind][0](Sizes()), PARTS[kind], Sizes(), **BOTH)
    weights = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    assert detect(weights) == kind
    table = SOURCES[kind].of(weights)
    assert table.title.endswith("with box refinement and two stages")
    cfg = load_config(get_config_file(table.config))
    for key, value in table.settings(weights).items():
        cfg.merge_from_list([key, value])
    assert cfg.MODEL.ISDA.ENCODER_FINEST_EVERY == 1
    result = convert(weights, kind, adapting.expected_weights(cfg))
    assert result.is_complete, str(result)
    relations = {
        f"transformer.decoder.{layer}.relation.{part}"
        for layer in range(6)
        for part in ("embed", "bias", "value")
    }
    assert {name.rpartition(".")[0] for name in result.fresh if "transformer" in name} == {
        *relations,
        "transformer.reference_boxes.position.0",
        "transformer.reference_boxes.position.2",
    }
    report = str(result)
    assert "instance_head.classes.bias is 80 rows of 91: those of COCO's classes" in report
    assert "query_selection.classes.bias is the first row of 91, for every class" in report
    assert "(make queries of proposals: in ISDA these give boxes, their tokens content)" in report
    assert "(of the decoder's earlier layers: one module serves all of ours" in report


def test_a_single_stage_starts_its_proposals_afresh(tmp_path, capsys):
    weights = small("deformable-detr", refined=True, two_stages=False)
    torch.save(weights, tmp_path / "theirs.pth")
    files = [str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth")]
    assert cli.main(["convert", "weights", *files, *SMALL_OPTIONS]) == 0
    report = capsys.readouterr().out
    assert report.startswith("Deformable DETR, the authors' release, with box refinement: ")
    assert "start fresh (the file has a single stage): transformer.query_selection" in report
    assert "query_embed.weight is the last 64 columns of 128: the content" in report
    assert "MODEL.ISDA.TOKEN_CONTENT False" in report
    assert "MODEL.ISDA.BOX_REFINEMENT" not in report  # the config's own
    assert "MODEL.ISDA.ENCODER_FINEST_EVERY 1" in report


def test_boxes_that_no_layer_refines(tmp_path, capsys):
    weights = small("mmdet-deformable-detr", refined=False, two_stages=True)
    _, cfg = converted_model(weights, tmp_path, capsys)
    assert cfg.MODEL.ISDA.QUERY_SELECTION
    assert not cfg.MODEL.ISDA.BOX_REFINEMENT


def test_heads_that_are_stored_once(tmp_path, capsys):
    """Files of save_pretrained leave one of the two names of a head out."""
    weights = small("hf-deformable-detr", **BOTH)
    expected, _ = converted_model(weights, tmp_path, capsys)
    for left_out in ("class_embed.", "model.decoder."):
        heads = [n for n in weights if "_embed." in n and n.startswith(left_out)]
        assert heads
        kept = {n: w for n, w in weights.items() if n not in heads}
        names = hugging_face_5(kept)
        model, _ = converted_model({names[n]: w for n, w in kept.items()}, tmp_path, capsys)
        for part in (
            "instance_head.classes",
            "transformer.query_selection",
            "transformer.reference_boxes.head",
        ):
            theirs = expected.get_submodule(part).state_dict()
            for name, tensor in model.get_submodule(part).state_dict().items():
                assert torch.equal(tensor, theirs[name]), (left_out, part, name)


def test_the_papers_form_has_no_place_for_proposals(tmp_path, capsys):
    weights = small("deformable-detr", **BOTH)
    torch.save(weights, tmp_path / "theirs.pth")
    config = get_config_file("configs/COCO-InstanceSegmentation/isda_R_50_42ep.yaml")
    files = [str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth")]
    assert cli.main(["convert", "weights", "--config-file", config, *files, *SMALL_OPTIONS]) == 1
    shown = capsys.readouterr()
    assert (
        "would be transformer.query_selection.project.weight, which the model does not" in shown.out
    )
    assert "do not fit" in shown.err
