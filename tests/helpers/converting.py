"""A foreign file through the tool and into a model, and images for it."""

import torch
from detectron2.modeling import build_model
from foreign_names import SMALL_OPTIONS

from isda import cli
from isda.checkpoint import Checkpointer
from isda.engine.setup import load_config

IMAGE_SIZES = [(96, 128), (70, 101)]  # two images of one batch, the second one padded


def converted_model(weights, tmp_path, capsys, options=()):
    """The model that follows the words which the tool prints."""
    torch.save(weights, tmp_path / "theirs.pth")
    files = [str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth")]
    assert cli.main(["convert", "weights", *options, *files, *SMALL_OPTIONS]) == 0
    words = capsys.readouterr().out.replace("'", "").split("--config-file ")[1]
    config_file, *opts = words.replace(", ", ",").split()
    cfg = load_config(config_file, opts)
    cfg.MODEL.DEVICE, cfg.MODEL.ISDA.NUM_CLASSES = "cpu", 80
    model = build_model(cfg).eval()
    Checkpointer(model, min_matched=0.5).load(cfg.MODEL.WEIGHTS)
    return model, cfg


def padded_images() -> torch.Tensor:
    """Of ``IMAGE_SIZES``, in a batch: ``(2, 3, 96, 128)``."""
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    images[1, :, 70:] = 0
    images[1, :, :, 101:] = 0
    return images
