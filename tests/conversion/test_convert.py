"""What holds for every source: names are accounted for, on both sides."""

import re

import pytest
import torch
from foreign_names import (
    SMALL,
    SMALL_OPTIONS,
    Sizes,
    authors,
    filled,
    hugging_face,
    isda,
    mmdetection,
    resnet,
)

from isda.conversion import SOURCES, adapting, convert, detect
from isda.engine.setup import load_config
from isda.model_zoo import get_config_file

KINDS = {
    "deformable-detr": authors,
    "hf-deformable-detr": hugging_face,
    "mmdet-deformable-detr": mmdetection,
    "isda": isda,
    "torchvision": lambda sizes: resnet(sizes, counter=True, classifier=True),
}
# Of the model, in tensors: what a source cannot have.
FRESH = {
    "deformable-detr": {"neck.projections.0.": 4, "mask_feature_head.": 24, "instance_head.": 6},
    "hf-deformable-detr": {"neck.projections.0.": 4, "mask_feature_head.": 24, "instance_head.": 6},
    "mmdet-deformable-detr": {
        "neck.projections.0.": 3,
        "mask_feature_head.": 24,
        "instance_head.": 6,
    },
    "isda": {},
}


def expected_weights(source, weights, options=()):
    cfg = load_config(get_config_file(SOURCES[source].config), [*options])
    for key, value in SOURCES[source].settings(weights).items():
        cfg.merge_from_list([key, value])
    return adapting.expected_weights(cfg)


def check_accounts(result, weights, expected):
    """Every name is in exactly one place."""
    theirs = [*result.consumed, *result.left_over, *result.unplaced]
    theirs += [name for wrong in result.wrong_shapes for name in wrong.theirs]
    assert sorted(theirs) == sorted(weights)
    ours = [*result.weights, *result.fresh, *result.missing]
    ours += [wrong.ours for wrong in result.wrong_shapes]
    assert sorted(ours) == sorted(expected)
    assert set(result.consumed.values()) == set(result.weights)


@pytest.mark.parametrize("source", KINDS)
def test_every_name_of_a_published_checkpoint_is_accounted_for(source):
    """At full size; the tensors take no memory."""
    shapes = KINDS[source](Sizes())
    weights = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    assert detect(weights) == source
    expected = expected_weights(source, weights)
    result = convert(weights, source, expected)
    check_accounts(result, weights, expected)
    assert result.is_complete, str(result)
    if source in FRESH:
        fresh = {p: sum(n.startswith(p) for n in result.fresh) for p in FRESH[source]}
        assert fresh == FRESH[source]
        assert sum(fresh.values()) == len(result.fresh)
    else:
        assert {name.split(".")[0] for name in result.weights} == {"backbone"}
        assert len(result.weights) == sum(name.startswith("backbone.") for name in expected)
    reasons = r"num_batches_tracked|bbox_embed|reg_branches|^fc\."
    assert all(re.search(reasons, name) for name in result.left_over)


@pytest.mark.parametrize("source", ["deformable-detr", "isda"])
def test_number_of_tensors_of_the_published_checkpoints(source):
    """Counted in the files that the authors released."""
    assert len(KINDS[source](Sizes())) == {"deformable-detr": 561, "isda": 637}[source]


def small(source):
    weights = filled(KINDS[source](SMALL))
    return weights, expected_weights(source, weights, SMALL_OPTIONS)


def test_names_that_nobody_knows():
    weights, expected = small("deformable-detr")
    weights["transformer.decoder.layers.0.gate.weight"] = torch.zeros(3)
    result = convert(weights, "deformable-detr", expected)
    check_accounts(result, weights, expected)
    assert result.unplaced == {"transformer.decoder.layers.0.gate.weight": "no such name is known"}
    assert not result.is_complete
    assert "    transformer.decoder.layers.0.gate.weight: no such name is known" in str(result)


def test_a_missing_tensor_one_of_another_shape_and_one_too_many():
    weights, expected = small("deformable-detr")
    del weights["transformer.encoder.layers.1.linear1.bias"]
    weights["query_embed.weight"] = torch.zeros(9, 128)
    weights["transformer.encoder.layers.2.norm1.weight"] = torch.zeros(64)
    result = convert(weights, "deformable-detr", expected)
    check_accounts(result, weights, expected)
    assert result.missing == ["transformer.encoder.1.feedforward.linear1.bias"]
    assert [w[1:] for w in result.wrong_shapes] == [
        ("transformer.query_embed.weight", (9, 128), (7, 128))
    ]
    text = str(result)
    assert "missing from the file:\n    transformer.encoder.1.feedforward.linear1.bias" in text
    assert "query_embed.weight: [9, 128], but [7, 128] as transformer.query_embed.weight" in text
    assert "would be transformer.encoder.2.norm.weight, which the model does not have" in text


def test_copies_of_a_shared_module_that_differ():
    weights, expected = small("mmdet-deformable-detr")
    weights["bbox_head.cls_branches.0.bias"] = weights["bbox_head.cls_branches.0.bias"] + 1
    result = convert(weights, "mmdet-deformable-detr", expected)
    check_accounts(result, weights, expected)
    assert list(result.unplaced) == ["bbox_head.cls_branches.0.bias"]
    assert "differs from bbox_head.cls_branches.1.bias" in str(result)
    last = weights["bbox_head.cls_branches.1.bias"]
    assert torch.equal(result.weights["instance_head.classes.bias"], last)


def test_a_variant_that_isda_does_not_have_is_named():
    weights, expected = small("isda")
    name = "bbox_head.transformer.enc_output_norm.bias"
    result = convert(weights | {name: torch.zeros(2)}, "isda", expected)
    assert not result.is_complete
    assert "two stages" in result.unplaced[name]


def test_half_of_a_packed_tensor_is_missing():
    weights, expected = small("hf-deformable-detr")
    del weights["model.decoder.layers.0.self_attn.k_proj.weight"]
    result = convert(weights, "hf-deformable-detr", expected)
    check_accounts(result, weights, expected)
    assert not result.is_complete
    (wrong,) = result.wrong_shapes
    assert wrong.ours == "transformer.decoder.0.self_attn.in_proj_weight"
    assert [name.rsplit(".", 2)[1] for name in wrong.theirs] == ["q_proj", "v_proj"]


def test_the_names_of_no_source():
    assert detect(["weight", "model.layer1.conv1.weight"]) is None
    assert detect(["conv1.0.weight", "layer1.0.conv1.weight"]) == "timm"
    assert detect(mmdetection(SMALL, version=3)) == "mmdet-deformable-detr"
