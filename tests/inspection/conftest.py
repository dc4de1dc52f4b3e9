"""Predictors of toy models whose attention is not that of a fresh model."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from toys import BOXES, ISTR, toy_config

from isda.prediction.predictor import Predictor

RANDOM = (
    *("sampling_offsets", "attention_weights", "classes.weight", "kernels.4.weight", "queries"),
    *("boxes.layers.4.weight", "boxes.head.layers.4.weight"),
)


def make_predictor(folder, *overrides, prepare=None):
    """Of a model without batch norm and dropout: training and inference compute the same.

    Args:
        prepare: called with the model before its weights are saved.
    """
    cfg = toy_config(folder, "MODEL.RESNETS.NORM", "", "MODEL.ISDA.DROPOUT", 0.0, *overrides)
    torch.manual_seed(0)
    model = build_model(cfg)
    for name, parameter in model.named_parameters():
        if any(part in name for part in RANDOM):
            nn.init.normal_(parameter, mean=0.5 * ("queries.boxes" in name), std=0.2)
    if prepare:
        with torch.no_grad():
            prepare(model)
    cfg.MODEL.WEIGHTS = str(folder / "weights.pth")
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    return Predictor(cfg)


@pytest.fixture
def isda(tmp_path):
    """``isda(*overrides, prepare=None)``."""
    return lambda *overrides, **options: make_predictor(tmp_path, *overrides, **options)


@pytest.fixture
def boxes(tmp_path):
    """As ``isda``, with boxes."""
    return lambda *overrides, **options: make_predictor(tmp_path, *BOXES, *overrides, **options)


@pytest.fixture
def istr(tmp_path):
    return lambda *overrides, **options: make_predictor(tmp_path, *ISTR, *overrides, **options)


@pytest.fixture
def noise():
    """``noise(height, width)``: an image."""
    rng = np.random.default_rng(0)
    return lambda height, width: rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
