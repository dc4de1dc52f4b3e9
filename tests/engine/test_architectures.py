"""Every meta-architecture says where its classes are, or is refused by name."""

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn
from toys import RETINANET, toy_config, toy_data

from isda.engine.architectures import check_trainable, has_masks, node_with_classes
from isda.engine.setup import check_config, resolve_classes
from isda.engine.trainer import Trainer
from isda.errors import ConfigError


@META_ARCH_REGISTRY.register()
class Undeclared(nn.Module):
    """Does not say where its number of classes is."""


@META_ARCH_REGISTRY.register()
class Misdeclared(nn.Module):
    config_node = "SWIN"  # has no NUM_CLASSES


@META_ARCH_REGISTRY.register()
class WithoutClasses(nn.Module):
    config_node = None


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("ISDA", "ISDA"),
        ("PoisonedISDA", "ISDA"),
        ("ISTR", "ISTR"),
        ("SOLO", "SOLO"),
        ("SOLOv2", "SOLOV2"),
        ("CondInst", "CONDINST"),
        ("BlendMask", "BLENDMASK"),
        ("GeneralizedRCNN", "ROI_HEADS"),
        ("PanopticFPN", "ROI_HEADS"),
        ("RetinaNet", "RETINANET"),
        ("ProposalNetwork", None),
        ("SemanticSegmentor", None),
        ("WithoutClasses", None),
    ],
)
def test_node_of_the_classes(tmp_path, name, node):
    assert node_with_classes(toy_config(tmp_path, "MODEL.META_ARCHITECTURE", name)) == node


def test_every_architecture_of_detectron2_is_declared_or_refused(tmp_path):
    theirs = [name for name, cls in META_ARCH_REGISTRY if cls.__module__.startswith("detectron2.")]
    assert len(theirs) >= 5
    for name in theirs:
        node_with_classes(toy_config(tmp_path, "MODEL.META_ARCHITECTURE", name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Undeclared", 'Undeclared does not declare .*config_node = "ISDA"'),
        ("Misdeclared", "Misdeclared does not declare .*config_node is 'SWIN'"),
        ("ISDAA", "'ISDAA' is not registered; did you mean ISDA"),
        ("Nothing", "'Nothing' is not registered; did you mean .*RetinaNet"),
        ("PanopticFPN", "PanopticFPN is trained on semantic segmentation"),
        ("SemanticSegmentor", "SemanticSegmentor is trained on semantic segmentation"),
        ("ProposalNetwork", "ProposalNetwork predicts boxes without classes"),
        ("FCOS", "FCOS has no config keys"),
    ],
)
def test_refused_by_name_before_anything_is_built(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        check_config(toy_config(tmp_path, "MODEL.META_ARCHITECTURE", name))


def test_an_architecture_without_classes_is_not_asked_for_them(tmp_path):
    toy_data(tmp_path)
    cfg = toy_config(tmp_path, "MODEL.META_ARCHITECTURE", "WithoutClasses")
    check_trainable(cfg)
    before = cfg.dump()
    resolve_classes(cfg, ("toy",))
    assert cfg.dump() == before


def test_retinanet_gets_the_classes_of_the_data_and_is_evaluated(tmp_path):
    toy_data(tmp_path)
    cfg = toy_config(tmp_path, *RETINANET, "MODEL.RETINANET.NUM_CLASSES", 0, "SOLVER.MAX_ITER", 2)
    check_config(cfg)
    resolve_classes(cfg, ("toy",))
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 2
    assert not has_masks(cfg)
    trainer = Trainer(cfg)
    assert trainer.model.head.cls_score.out_channels == 2 * 3  # three shapes of anchors
    results = trainer.train()
    assert set(results) == {"bbox"}
    assert torch.load(tmp_path / "model_best.pth")["metric"] == "bbox/AP"


def test_retinanet_is_compared_with_its_data(tmp_path):
    toy_data(tmp_path)
    with pytest.raises(ValueError, match=r"MODEL\.RETINANET\.NUM_CLASSES is 80 but .* 2 classes"):
        resolve_classes(toy_config(tmp_path, *RETINANET), ("toy",))
