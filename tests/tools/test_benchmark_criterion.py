import json
from pathlib import Path

import pytest
import torch

import benchmark_criterion

ROOT = Path(__file__).resolve().parents[2]

SMALL = [
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.ISDA.HIDDEN_DIM", "32", "MODEL.ISDA.MASK_DIM", "32", "MODEL.ISDA.MASK_HEAD_DIM", "32"),
    *("MODEL.ISDA.ENCODER_LAYERS", "1", "MODEL.ISDA.DECODER_LAYERS", "2"),
    *("MODEL.ISDA.NUM_QUERIES", "40", "MODEL.ISDA.DROPOUT", "0.0"),
]

SMALL_ISTR = [
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ISTR.HIDDEN_DIM", "32"),
    *("MODEL.ISTR.NUM_STEPS", "2", "MODEL.ISTR.NUM_QUERIES", "40"),
    *("MODEL.ISTR.FEEDFORWARD_DIM", "32", "MODEL.ISTR.DYNAMIC_DIM", "8"),
]
ISTR_CONFIG = ROOT / "configs/COCO-InstanceSegmentation/istr_R_50_FPN_3x.yaml"
WITH_BOXES = [
    *("MODEL.ISDA.BOXES", "True", "MODEL.ISDA.BOX_REFINEMENT", "True"),
    *("MODEL.ISDA.QUERY_SELECTION", "True", "MODEL.ISDA.ELLIPSE", "True"),
    *("MODEL.ISDA.DENOISING_QUERIES", "20", "MODEL.ISDA.MASK_POINTS", "100"),
]
MODELS = [
    ([], SMALL),
    ([], [*SMALL, *WITH_BOXES]),
    (["--config-file", str(ISTR_CONFIG)], SMALL_ISTR),
]
every = pytest.mark.parametrize(
    ("config", "small"), MODELS, ids=["ISDA", "ISDA with boxes", "ISTR"]
)


@every
def test_figures_are_consistent(tmp_path, capsys, config, small):
    output = tmp_path / "criterion.json"
    sizes = ["--height", "64", "--width", "96", "--instances", "0", "30", "--repeats", "2"]
    options = [*config, *sizes, "--device", "cpu", "--output", str(output)]
    assert benchmark_criterion.main([*options, *small]) == 0
    report = json.loads(output.read_text())
    assert [row["instances"] for row in report["rows"]] == [0, 30]
    for row in report["rows"]:
        seconds = row["seconds"]
        assert all(part > 0 for part in seconds.values())
        assert row["step_seconds"] == pytest.approx(sum(seconds.values()))
        inside = sum(seconds[part] for part in ("targets", "matching", "loss", "loss_backward"))
        assert row["criterion_seconds"] == pytest.approx(inside)
        assert 0 < row["criterion_share"] < 1
        assert row["criterion_added_mb"] >= 0
        assert 50 < row["criterion_peak_mb"] <= row["step_peak_mb"] < 50_000
    table = capsys.readouterr().out.splitlines()
    assert "64×96, batch 2" in table[0]
    assert torch.__version__ in table[0]
    assert len({line.count("|") for line in table[2:]}) == 1
    assert len(table) == 6


@every
def test_the_parts_make_one_training_step(config, small):
    cfg = benchmark_criterion.load_config(
        benchmark_criterion.parse_arguments(config).config_file, [*small, "MODEL.DEVICE", "cpu"]
    )
    step = benchmark_criterion.build_step(cfg)
    inputs = benchmark_criterion.synthetic_inputs(2, 64, 96, 5, num_classes=80)
    torch.manual_seed(1)
    losses = step.model(inputs)
    sum(losses.values()).backward()
    whole = [p.grad for p in step.model.parameters() if p.requires_grad]
    step.optimizer.zero_grad(set_to_none=True)
    step.clip = lambda parameters: None
    step.optimizer.step = lambda: None
    meter = benchmark_criterion.Meter(torch.device("cpu"), with_memory=False)
    torch.manual_seed(1)  # of noise and sampled cells
    for name, loss in step(inputs, meter).items():
        torch.testing.assert_close(loss, losses[name])
    assert tuple(meter.seconds) == benchmark_criterion.PARTS
    parts = [p.grad for p in step.model.parameters() if p.requires_grad]
    for expected, found in zip(whole, parts, strict=True):
        torch.testing.assert_close(found, expected)
