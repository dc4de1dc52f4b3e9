"""Which config a name means, and what its model is given."""

import pytest

from benchmarking.workload import (
    DETECTRON2_CONFIGS,
    ROOT,
    config_path,
    load_config,
    num_classes,
    synthetic_inputs,
)
from isda.engine.setup import ConfigError

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
