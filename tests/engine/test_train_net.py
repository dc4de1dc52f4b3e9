"""The program itself, as a user calls it."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from toys import toy_config, toy_data

from isda.engine.launch import argument_parser, run

PROGRAM = Path(__file__).parents[2] / "train_net.py"


@pytest.fixture(scope="module")
def train_net():
    spec = importlib.util.spec_from_file_location("train_net", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(train_net, *words):
    """What ``main`` returns."""
    results = []
    arguments = argument_parser().parse_args(list(map(str, words)))
    run(lambda args: results.append(train_net.main(args)), arguments)
    return results[0]


def config_file(folder, *overrides):
    toy_data(folder)
    path = folder / "toy.yaml"
    path.write_text(toy_config(folder / "out", *overrides).dump())
    return path


def test_train_evaluate_and_resume(train_net, tmp_path):
    config = config_file(
        tmp_path, "SOLVER.MAX_ITER", 3, "TEST.EVAL_PERIOD", 1, "SOLVER.EMA.ENABLED", True
    )
    out = tmp_path / "out"
    trained = call(train_net, "--config-file", config, "--num-gpus", 0)
    metrics = [json.loads(line) for line in (out / "metrics.json").open()]
    assert any("total_loss" in line for line in metrics)
    best = torch.load(out / "model_best.pth")
    assert best["metric"] == "segm/AP"
    assert "trainer" not in best
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    assert (out / "config.yaml").is_file()
    assert list(out.glob("events.out.tfevents.*"))
    assert (out / "inference" / "coco_instances_results.json").is_file()

    words = ("--config-file", config, "--eval-only", "MODEL.WEIGHTS")
    final = call(train_net, *words, out / "model_final.pth")
    assert final["segm"] == pytest.approx(trained["segm"], nan_ok=True)
    assert call(train_net, *words, out / "model_best.pth")["segm"]["AP"] == best["value"]

    call(train_net, "--config-file", config, "--resume", "SOLVER.MAX_ITER", 4)
    resumed = torch.load(out / "model_final.pth")
    assert resumed["trainer"]["images"] == 8
    assert torch.load(out / "model_best.pth")["value"] >= best["value"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("SOLVER.ACCUMULATION", 3), "error: SOLVER.IMS_PER_BATCH must be a multiple of 3"),
        (("MODEL.WEIGHTS", "gone.pth"), "error: no weights at gone.pth"),
        (("DATASETS.TRAIN", "('gone',)"), "error: no data set 'gone' is registered"),
        (("MODEL.ISDA.NUM_CLASSES", 5), "error: .*MODEL.ISDA.NUM_CLASSES"),
        (("SOLVER.BASE_LR", "fast"), "error: SOLVER.BASE_LR in the command line must be of type"),
        (("MODEL.META_ARCHITECTURE", "PoisonedISDA", "SOLVER.MAX_NONFINITE_STEPS", 1), "poison"),
    ],
)
def test_what_the_user_can_mend_ends_in_one_message(train_net, tmp_path, words, message):
    config = config_file(tmp_path)
    if "PoisonedISDA" in words:
        toy_data(tmp_path, file_names=["poison.png", "poison_too.png"])
    with pytest.raises(SystemExit, match=message):
        call(train_net, "--config-file", config, *words)


def test_an_interruption_says_how_to_continue(tmp_path):
    def interrupted(args):
        raise KeyboardInterrupt

    arguments = argument_parser().parse_args(["--config-file", str(config_file(tmp_path))])
    with pytest.raises(SystemExit, match="--resume continues from the last checkpoint"):
        run(interrupted, arguments)


def test_a_launcher_does_not_bury_the_message(tmp_path):
    words = ["--config-file", str(config_file(tmp_path)), "--num-gpus", "3"]
    with pytest.raises(SystemExit, match=r"IMS_PER_BATCH must be a multiple of 3 \(3 processes"):
        run(lambda args: None, argument_parser().parse_args(words))


def test_more_gpus_than_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    words = ["--config-file", str(config_file(tmp_path, "MODEL.DEVICE", "cuda")), "--num-gpus", "2"]
    with pytest.raises(SystemExit, match="error: --num-gpus 2, but this machine has 1"):
        run(lambda args: None, argument_parser().parse_args(words))
