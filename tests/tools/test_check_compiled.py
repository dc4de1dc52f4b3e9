"""The command that compares a compiled model with itself."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

import check_compiled
from isda.engine.setup import load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs/nuclei/isda_tiny.yaml")
PHOTOS = sorted((ROOT / "datasets/nuclei_mini/images").glob("*.png"))[:2]
OPTS = [
    *("MODEL.ISDA.NUM_CLASSES", "1", "MODEL.ISDA.NUM_QUERIES", "12", "MODEL.ISDA.HIDDEN_DIM", "32"),
    *("MODEL.ISDA.DECODER_LAYERS", "1", "MODEL.ISDA.ENCODER_LAYERS", "1", "MODEL.DEVICE", "cpu"),
    *("MODEL.ISDA.MASK_HEAD_DIM", "32", "MODEL.ISDA.MASK_DIM", "32"),
    *("MODEL.BACKBONE.NAME", "build_basic_resnet_backbone", "MODEL.RESNETS.DEPTH", "10"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "MODEL.RESNETS.NORM", "BN"),
    *("INPUT.MIN_SIZE_TEST", "130", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"),
]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """For a small model that finds something."""
    path = tmp_path_factory.mktemp("compiled") / "model.pth"
    torch.manual_seed(0)
    model = build_model(load_config(CONFIG, OPTS))
    nn.init.normal_(model.instance_head.classes.weight, std=0.5)
    nn.init.normal_(model.instance_head.kernels[-1].weight, std=0.5)
    torch.save({"model": model.state_dict()}, path)
    images = ["--images", *map(str, PHOTOS)]
    options = ["--config-file", CONFIG, "--backend", "eager", "--rounds", "1", "--cpu-time"]
    return [*options, *images, "--opts", *OPTS, "MODEL.WEIGHTS", str(path)]


@pytest.mark.slow
def test_reports_agreement_graphs_and_time(arguments, capsys):
    torch._dynamo.reset()
    check_compiled.counters.clear()
    assert check_compiled.main(arguments) == 0
    agreement, compilation, ratio = capsys.readouterr().out.splitlines()
    found = re.match(r"2 images of 1 sizes?, (\d+) instances .* IoU of masks 1\.0000", agreement)
    assert int(found[1]) > 3
    assert re.fullmatch(r"first image: \d+\.\d s; graphs: 1", compilation)
    assert re.fullmatch(r"time of the compiled / the other: \d+\.\d\d \(\d.* to \d.*\)", ratio)


def test_difference_is_an_error(arguments, monkeypatch, capsys):
    def other(model, **options):
        model.mask_threshold = 0.8

    monkeypatch.setattr(check_compiled, "compile_inference", other)
    assert check_compiled.main(arguments) == 1
    assert "the compiled model differs from the original" in capsys.readouterr().err


def test_times_are_of_the_two_in_turns():
    """A clock that stands still but for the models, of which one takes half the other's time."""
    clock = [0.0]

    def takes(seconds):
        def predictor(image):
            clock[0] += seconds * image

        return predictor

    found = check_compiled.ratios(takes(4.0), takes(2.0), [1.0, 3.0], 3, lambda: clock[0])
    assert found == (0.5, 0.5, 0.5)


def test_settings_go_with_a_config_only(capsys):
    with pytest.raises(SystemExit):
        check_compiled.parse_arguments(["--model", "x", "--images", "a.png", "--opts", "A", "1"])
    assert "--opts go with --config-file" in capsys.readouterr().err
