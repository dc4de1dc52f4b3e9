"""Timing of inference: what is timed, and against what."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import benchmark_inference

ROOT = Path(__file__).resolve().parents[2]
CLOCK = {"now": 0.0}


class Sleeper(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        CLOCK["now"] += self.seconds
        return x


class Model(nn.Module):
    """Two children of which one runs twice, and some work of its own."""

    device = torch.device("cpu")

    def __init__(self, scale):
        super().__init__()
        self.scale, self.first, self.second = scale, Sleeper(scale), Sleeper(2 * scale)

    def forward(self, inputs):
        self.second(self.first(self.first(inputs[0]["image"])))
        CLOCK["now"] += self.scale
        return [{"instances": [0] * 7}]


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(benchmark_inference.time, "perf_counter", lambda: CLOCK["now"])


def test_shares_and_ratios(clock):
    stopwatches = {
        "slow": benchmark_inference.Stopwatch(Model(3.0)),
        "fast": benchmark_inference.Stopwatch(Model(2.0)),
    }
    slow, fast = benchmark_inference.measure(stopwatches, torch.zeros(3, 4, 4), rounds=2)
    assert slow["shares"] == pytest.approx({"first": 0.4, "second": 0.4})
    assert (slow["seconds"], fast["seconds"], slow["masks"]) == (15.0, 10.0, 7)
    assert (slow["ratio"], fast["ratio"]) == (1.5, 1.0)


def test_models_are_compared(tmp_path, capsys):
    arguments = ["--config-files", str(ROOT / "configs/shapes/isda_tiny.yaml"), "--reference"]
    arguments += [str(ROOT / "configs/shapes/mask_rcnn_tiny.yaml"), "--height", "64"]
    arguments += ["--width", "64", "--rounds", "1", "--device", "cpu"]
    report = benchmark_inference.main([*arguments, "--output", str(tmp_path / "report.json")])
    assert json.loads((tmp_path / "report.json").read_text()) == report
    ours, theirs = report["rows"]
    assert (ours["config"], theirs["config"]) == ("isda_tiny", "mask_rcnn_tiny")
    assert theirs["ratio"] == 1.0
    assert ours["ratio"] == pytest.approx(ours["seconds"] / theirs["seconds"])
    assert 0.5 < sum(ours["shares"].values()) < 1
    table = capsys.readouterr().out
    assert "|isda_tiny|" in table
    assert "roi_heads" in table
