"""What inference computes in: TEST.AMP reaches whatever infers, and norms are folded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from toys import toy_config, toy_data

from isda import Predictor, model_zoo
from isda.engine.trainer import Trainer
from isda.modeling.folding import FoldedConv2d

NUCLEI = Path(__file__).parents[2] / "datasets/nuclei_mini/images/06c779330d6d3447.png"


def watched(model):
    """The types that convolutions and linear layers of a model compute in, as they occur."""
    seen = set()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    return seen


@pytest.mark.parametrize("enabled", [True, False])
def test_evaluation_and_prediction(tmp_path, enabled):
    toy_data(tmp_path)
    cfg = toy_config(tmp_path / "out", "TEST.AMP.ENABLED", enabled)
    model = Trainer.build_model(cfg).eval()
    seen = watched(model)
    Trainer.test(cfg, model)
    assert (torch.bfloat16 in seen) == enabled
    assert not torch.is_autocast_enabled("cpu")

    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    predictor = Predictor(cfg)
    seen = watched(predictor.model)
    found = predictor(np.zeros((40, 60, 3), np.uint8))
    assert (torch.bfloat16 in seen) == enabled
    assert found.scores.dtype == torch.float32


@pytest.mark.parametrize("meta_architecture", ["ISDA", "ISTR"])
def test_half_precision_of_both_models(tmp_path, meta_architecture):
    toy_data(tmp_path)
    overrides = ("MODEL.META_ARCHITECTURE", meta_architecture, "TEST.AMP.ENABLED", True)
    if meta_architecture == "ISTR":
        overrides += ("MODEL.BACKBONE.NAME", "build_toy_fpn_backbone")
    cfg = toy_config(tmp_path / "out", *overrides)
    model = Trainer.build_model(cfg)
    results = Trainer.test(cfg, model)
    assert set(results) == {"bbox", "segm"}
    assert model.training  # as before


def test_predictors_fold_norms(tmp_path):
    toy_data(tmp_path)
    resnet = ("MODEL.BACKBONE.NAME", "build_basic_resnet_backbone", "MODEL.RESNETS.DEPTH", 10)
    width = ("MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8)
    features = ("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"])
    norm = ("MODEL.RESNETS.NORM", "FrozenBN")
    cfg = toy_config(tmp_path / "out", *resnet, *width, *features, *norm)
    model = Trainer.build_model(cfg)
    assert any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    predictor = Predictor(cfg)
    assert any(isinstance(module, FoldedConv2d) for module in predictor.model.modules())
    assert list(predictor.model.state_dict()) == list(model.state_dict())


def test_the_shipped_model_finds_the_same():
    """Nuclei are small: a pixel more or less at the border counts, so the median has to do."""
    found = []
    for enabled in (False, True):
        cfg = model_zoo.get_config("nuclei/isda_mobilenet_v2", trained=True)
        cfg.defrost()
        cfg.MODEL.DEVICE, cfg.TEST.AMP.ENABLED = "cpu", enabled
        found.append(Predictor(cfg, threshold=0.5)(NUCLEI))
    exact, reduced = (prediction.pred_masks.flatten(1).float() for prediction in found)
    assert len(exact) > 5
    shared = exact @ reduced.T
    ious = shared / (exact.sum(1)[:, None] + reduced.sum(1) - shared)
    best, match = ious.max(dim=1)
    assert best.median() > 0.95
    torch.testing.assert_close(found[1].scores[match], found[0].scores, rtol=0, atol=0.1)
