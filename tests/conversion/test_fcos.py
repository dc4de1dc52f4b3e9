"""CondInst and BlendMask in the names of AdelaiDet and of mmdetection."""

import pytest
import torch
from foreign_names import Sizes, batch_norm, below, resnet, with_bias

from isda.conversion import SOURCES, adapting, convert, detect
from isda.conversion.resnet import detectron2_resnet
from isda.engine.setup import load_config
from isda.model_zoo import get_config_file

K = 80


def pyramid(names):
    shapes = {}
    for level, (lateral, output) in enumerate(names["levels"]):
        shapes |= with_bias(lateral, 256, 512 * 2**level, 1, 1) | with_bias(output, 256, 256, 3, 3)
    for name in names["extra"]:
        shapes |= with_bias(name, 256, 256, 3, 3)
    return shapes


def normed(conv, norm, out, inputs):
    return {f"{conv}.weight": (out, inputs, 3, 3)} | batch_norm(norm, out, counter=True)


def adelaidet_boxes(scales):
    net = {
        n: torch.zeros(s) if "num_batches" in n else torch.zeros(()).expand(s)
        for n, s in resnet(Sizes()).items()
    }
    shapes = {n: tuple(w.shape) for n, w in detectron2_resnet(net).items()}
    shapes = below("backbone.bottom_up.", shapes)
    shapes |= pyramid(
        {
            "levels": [(f"backbone.fpn_lateral{i}", f"backbone.fpn_output{i}") for i in (3, 4, 5)],
            "extra": ["backbone.top_block.p6", "backbone.top_block.p7"],
        }
    )
    head = "proposal_generator.fcos_head"
    for tower in ("cls_tower", "bbox_tower"):
        for layer in range(4):
            shapes |= with_bias(f"{head}.{tower}.{3 * layer}", 256, 256, 3, 3)
            shapes |= with_bias(f"{head}.{tower}.{3 * layer + 1}", 256)
    for name, channels in (("cls_logits", K), ("bbox_pred", 4), ("ctrness", 1)):
        shapes |= with_bias(f"{head}.{name}", channels, 256, 3, 3)
    return shapes | {f"{head}.scales.{i}.scale": (1,) for i in range(5 if scales else 0)}


def adelaidet_condinst(semantic=False):
    shapes = adelaidet_boxes(scales=True) | with_bias("controller", 169, 256, 3, 3)
    for level in range(3):
        name = f"mask_branch.refine.{level}"
        shapes |= normed(f"{name}.0", f"{name}.1", 128, 256)
    for layer in range(4):
        name = f"mask_branch.tower.{layer}"
        shapes |= normed(f"{name}.0", f"{name}.1", 128, 128)
    shapes |= with_bias("mask_branch.tower.4", 8, 128, 1, 1) | {"mask_head.sizes_of_interest": (5,)}
    if semantic:
        for layer, inputs in enumerate((256, 128)):
            name = f"mask_branch.seg_head.{layer}"
            shapes |= normed(f"{name}.0", f"{name}.1", 128, inputs)
        shapes |= with_bias("mask_branch.logits", K, 128, 1, 1)
    return shapes


def adelaidet_blendmask():
    shapes = adelaidet_boxes(scales=False) | with_bias("top_layer", 784, 256, 3, 3)
    for level in range(3):
        name = f"basis_module.refine.{level}"
        shapes |= normed(f"{name}.0", f"{name}.1", 128, 256)
    for layer in (0, 1, 2, 4):
        name = f"basis_module.tower.{layer}"
        shapes |= normed(f"{name}.0", f"{name}.1", 128, 128)
    shapes |= with_bias("basis_module.tower.5", 4, 128, 1, 1)
    shapes |= normed("basis_module.seg_head.0", "basis_module.seg_head.1", 128, 256)
    shapes |= normed("basis_module.seg_head.3", "basis_module.seg_head.4", 128, 128)
    return shapes | with_bias("basis_module.seg_head.6", K + 1, 128, 1, 1)


def mmdetection_condinst():
    shapes = below("backbone.", resnet(Sizes(), counter=True))
    convs = [f"neck.{kind}.{i}.conv" for i in range(3) for kind in ("lateral_convs", "fpn_convs")]
    shapes |= pyramid(
        {
            "levels": list(zip(convs[::2], convs[1::2], strict=True)),
            "extra": ["neck.fpn_convs.3.conv", "neck.fpn_convs.4.conv"],
        }
    )
    for tower in ("cls_convs", "reg_convs"):
        for layer in range(4):
            shapes |= with_bias(f"bbox_head.{tower}.{layer}.conv", 256, 256, 3, 3)
            shapes |= with_bias(f"bbox_head.{tower}.{layer}.gn", 256)
    outputs = (("conv_cls", K), ("conv_reg", 4), ("conv_centerness", 1), ("controller", 169))
    for name, channels in outputs:
        shapes |= with_bias(f"bbox_head.{name}", channels, 256, 3, 3)
    shapes |= {f"bbox_head.scales.{i}.scale": () for i in range(5)}
    features = "mask_head.mask_feature_head"
    for level in range(3):
        name = f"{features}.convs_all_levels.{level}.conv{level}"
        shapes |= normed(f"{name}.conv", f"{name}.bn", 128, 256)
    for layer in range(4):
        name = f"{features}.conv_branch.{layer}"
        shapes |= normed(f"{name}.conv", f"{name}.bn", 128, 128)
    return shapes | with_bias(f"{features}.conv_pred", 8, 128, 1, 1)


FILES = {
    "condinst": adelaidet_condinst(),
    "condinst with a semantic head": adelaidet_condinst(semantic=True),
    "blendmask": adelaidet_blendmask(),
    "mmdet-condinst": mmdetection_condinst(),
}


@pytest.fixture(scope="module", params=FILES)
def converted(request):
    """Each tensor is filled with a number of its own; they take no memory."""
    weights = {
        name: torch.tensor(float(number)).expand(shape)
        for number, (name, shape) in enumerate(FILES[request.param].items(), start=1)
    }
    source = detect(weights)
    assert source == request.param.split()[0]
    cfg = load_config(get_config_file(SOURCES[source].config))
    for key, value in SOURCES[source].settings(weights).items():
        cfg.merge_from_list([key, value])
    return weights, convert(weights, source, adapting.expected_weights(cfg)), cfg


def test_every_name_has_its_place(converted):
    _, result, _ = converted
    assert result.is_complete, str(result)
    assert not result.fresh
    reasons = set(result.left_over.values())
    assert reasons <= {"a counter of training steps", "a constant, or a counter"}


def test_places(converted):
    """Some of each kind, one by one; and no two tensors of the file in one place."""
    weights, result, cfg = converted
    ours = {theirs: result.consumed[theirs] for theirs in result.consumed}
    several = [n for n in ours.values() if list(ours.values()).count(n) > 1]
    assert set(several) <= {"head.scales"}
    pairs = {
        "proposal_generator.fcos_head.cls_tower.9.weight": "head.class_tower.3.weight",
        "proposal_generator.fcos_head.bbox_tower.10.bias": "head.box_tower.3.norm.bias",
        "bbox_head.reg_convs.2.gn.weight": "head.box_tower.2.norm.weight",
        "bbox_head.cls_convs.1.conv.bias": "head.class_tower.1.bias",
        "bbox_head.conv_centerness.bias": "head.centreness.bias",
        "mask_branch.tower.4.weight": "mask_branch.output.weight",
        "mask_branch.seg_head.1.1.running_var": "semantic_head.convs.1.norm.running_var",
        "basis_module.tower.4.0.weight": "mask_branch.final_conv.weight",
        "basis_module.seg_head.4.running_mean": "semantic_head.convs.1.norm.running_mean",
        "basis_module.seg_head.6.bias": "semantic_head.output.bias",
        "top_layer.weight": "attention.conv.weight",
        "controller.bias": "controller.conv.bias",
        "neck.fpn_convs.1.conv.weight": "backbone.fpn_output4.weight",
        "neck.fpn_convs.4.conv.weight": "backbone.top_block.p7.weight",
        "backbone.layer3.2.bn2.bias": "backbone.bottom_up.res4.2.conv2.norm.bias",
        "mask_head.mask_feature_head.convs_all_levels.2.conv2.bn.bias": (
            "mask_branch.levels.2.norm.bias"
        ),
    }
    found = {theirs: name for theirs, name in pairs.items() if theirs in weights}
    assert len(found) >= 4
    assert {theirs: ours[theirs] for theirs in found} == found
    scales = [weights[name] for name in weights if ".scales." in name]
    assert len(scales) in (0, 5)
    if scales:
        assert result.weights["head.scales"].tolist() == [float(scale) for scale in scales]
    assert ("mask_branch.logits.weight" in weights) == cfg.MODEL.CONDINST.SEMANTIC


def test_a_file_of_resnet_101_asks_for_one():
    weights = dict.fromkeys(f"backbone.bottom_up.res4.{i}.conv1.weight" for i in range(23))
    assert SOURCES["blendmask"].settings(weights) == {"MODEL.RESNETS.DEPTH": 101}


def test_what_is_not_known_is_reported():
    weights = {"controller.gate": torch.zeros(1), "mask_branch.tower.7.0.weight": torch.zeros(1)}
    result = convert(weights, "condinst", {"controller.conv.bias": torch.zeros(169)})
    assert set(result.unplaced) == set(weights)
    assert result.missing == ["controller.conv.bias"]
