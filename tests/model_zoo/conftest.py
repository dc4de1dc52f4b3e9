"""A tiny ISDA as a training would leave it."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from isda.engine.setup import load_config

NAMES, IDS = ["bolt", "nut", "washer"], [2, 5, 11]
CONFIG = Path(__file__).parents[2] / "configs" / "shapes" / "isda_tiny.yaml"
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.ISDA.NUM_CLASSES": 3,
    "MODEL.ISDA.HIDDEN_DIM": 32,
    "MODEL.ISDA.NUM_QUERIES": 12,
    "MODEL.ISDA.ENCODER_LAYERS": 1,
    "MODEL.ISDA.DECODER_LAYERS": 1,
    "MODEL.ISDA.FEEDFORWARD_DIM": 32,
    "MODEL.ISDA.MASK_HEAD_DIM": 32,
    "MODEL.ISDA.MASK_DIM": 32,
    "DATASETS.TRAIN": ("nobody_registered_this",),
    "DATASETS.TEST": ("nor_this",),
    "TEST.DETECTIONS_PER_IMAGE": 10,
}


@pytest.fixture(scope="package")
def training(tmp_path_factory):
    """An OUTPUT_DIR."""
    folder = tmp_path_factory.mktemp("training")
    tiny = TINY | {"OUTPUT_DIR": str(folder)}
    cfg = load_config(str(CONFIG), [item for pair in tiny.items() for item in pair])
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
        model.instance_head.classes.bias.add_(4)  # scores that differ from zero
    (folder / "config.yaml").write_text(cfg.dump())
    classes = {"names": NAMES, "ids": IDS}
    contents = {"model": model.state_dict(), "classes": classes, "optimizer": {"state": [1, 2]}}
    torch.save(contents | {"iteration": 99}, folder / "model_final.pth")
    torch.save(contents | {"iteration": 49, "value": 31.0}, folder / "model_best.pth")
    lines = [
        {"iteration": 49, "segm/AP": 31.004, "segm/AP50": 60.0, "bbox/AP": 29.5},
        {"iteration": 59, "total_loss": 1.0},
        {"iteration": 98, "total_loss": 0.9},
        {"iteration": 99, "segm/AP": 30.0, "segm/AP50": float("nan"), "bbox/AP": 29.0},
    ]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
