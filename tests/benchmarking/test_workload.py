"""Which config a name means, and what its model is given."""

from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage

from isda.benchmarking.workload import (
    DETECTRON2_CONFIGS,
    build_for_inference,
    build_training,
    config_path,
    load_config,
    num_classes,
    synthetic_inputs,
)
from isda.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
MASK_RCNN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"


def test_a_config_is_a_file_or_a_name_of_ours_or_of_detectron2(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("VERSION: 2\n")
    assert config_path(str(mine)) == mine
    assert config_path(MASK_RCNN) == config_path(f"{MASK_RCNN}.yaml")
    assert config_path(MASK_RCNN).is_relative_to(ROOT / "configs")
    theirs = config_path(f"detectron2/{MASK_RCNN}")
    assert theirs.is_file() and theirs.is_relative_to(DETECTRON2_CONFIGS)
    assert config_path("COCO-Detection/retinanet_R_50_FPN_1x").is_relative_to(DETECTRON2_CONFIGS)
    with pytest.raises(FileNotFoundError, match="no config COCO/isda: give a YAML file, a name"):
        config_path("COCO/isda")


def test_configs_are_read_without_weights_and_with_classes():
    cfg = load_config("COCO-InstanceSegmentation/isda_R_50_42ep", ["MODEL.ISDA.NUM_QUERIES", "7"])
    assert cfg.MODEL.WEIGHTS == ""
    assert (cfg.MODEL.ISDA.NUM_QUERIES, num_classes(cfg)) == (7, 80)
    # Detectron2's computes its anchors while it is read.
    cfg = load_config("COCO-Detection/retinanet_R_50_FPN_1x", ["MODEL.RETINANET.NUM_CLASSES", "5"])
    assert (cfg.MODEL.WEIGHTS, num_classes(cfg)) == ("", 5)
    assert len(cfg.MODEL.ANCHOR_GENERATOR.SIZES) == 5
    with pytest.raises(ConfigError, match="unknown config key MODEL.ISDA.QUERIES"):
        load_config("shapes/isda_tiny", ["MODEL.ISDA.QUERIES", "7"])


def test_ellipses_have_the_size_that_is_promised():
    (x,) = synthetic_inputs(1, 200, 300, 40, num_classes=4)
    instances = x["instances"]
    assert tuple(x["image"].shape) == (3, 200, 300)
    areas = instances.gt_masks.tensor.flatten(1).sum(1)
    assert (areas > 0).all()
    assert areas.max() <= 3.15 / 4 * (0.3 * 200) * (0.3 * 300)
    assert instances.gt_classes.max() < 4


def test_an_untrained_mask_rcnn_has_the_work_of_a_trained_one():
    """As many proposals, boxes of classes and masks as its config allows."""
    cfg = load_config("shapes/mask_rcnn_tiny", ["MODEL.DEVICE", "cpu"])
    inputs = synthetic_inputs(1, 128, 128, 5, num_classes(cfg))
    counts = {}

    def watch(model):
        heads = model.roi_heads
        heads.register_forward_hook(lambda _, x, __: counts.update(proposals=len(x[2][0])))
        heads.box_head.register_forward_hook(lambda _, x, __: counts.update(boxes=len(x[0])))
        heads.mask_head.register_forward_hook(lambda _, x, __: counts.update(masks=len(x[0])))
        return model

    with torch.no_grad():
        watch(build_for_inference(cfg))([{"image": inputs[0]["image"]}])
    assert counts == {"proposals": 250, "boxes": 250, "masks": 30}
    with EventStorage():
        watch(build_training(cfg).model)(inputs)
    assert (counts["proposals"], counts["boxes"]) == (250, 64)


def test_the_boxes_of_an_untrained_istr_are_in_the_image():
    cfg = load_config("shapes/istr_tiny", ["MODEL.DEVICE", "cpu"])
    (x,) = synthetic_inputs(1, 64, 96, 0, num_classes(cfg))
    with torch.no_grad():
        (output,) = build_for_inference(cfg)([x])
    instances = output["instances"]
    assert len(instances) == cfg.TEST.DETECTIONS_PER_IMAGE
    sizes = instances.pred_boxes.tensor.view(-1, 2, 2).diff(dim=1)[:, 0] / torch.tensor([96, 64])
    assert sizes.min() > 0.02 and sizes.max() < 0.31


@pytest.mark.parametrize("name", ["solo", "solov2", "condinst", "blendmask"])
def test_an_untrained_dense_model_has_candidates_with_masks(name):
    cfg = load_config(f"shapes/{name}_tiny", ["MODEL.DEVICE", "cpu"])
    (x,) = synthetic_inputs(1, 64, 96, 0, num_classes(cfg))
    with torch.no_grad():
        (output,) = build_for_inference(cfg)([x])
    assert len(output["instances"]) == cfg.TEST.DETECTIONS_PER_IMAGE
