"""The program itself, as a user calls it."""

import json

import numpy as np
import pytest
import torch
from toys import ISTR, call, toy_config, toy_data

from isda.cli.arguments import argument_parser
from isda.engine.launch import run
from isda.engine.setup import load_config
from isda.modeling.mask_dictionary import MaskDictionary
from isda.prediction.predictor import Predictor


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


def test_istr_needs_its_dictionary_file_for_training_only(train_net, tmp_path):
    """Train, delete the dictionary; evaluation, resumption and prediction go on without it."""
    file = tmp_path / "dictionary.npz"
    MaskDictionary.load("shipped").first(10).save(file)
    config = config_file(
        tmp_path,
        *(*ISTR, "SOLVER.MAX_ITER", 2, "SOLVER.EMA.ENABLED", True),
        *("MODEL.ISTR.MASK_DICTIONARY", str(file)),
    )
    trained = call(train_net, "--config-file", config)
    file.unlink()
    weights = tmp_path / "out" / "model_final.pth"
    saved = torch.load(weights)
    for name in ("components", "mean", "explained_variance"):
        expected = torch.from_numpy(getattr(MaskDictionary.load("shipped").first(10), name))
        for model in ("model", "training_model"):  # the average of equal numbers, to the last bit
            assert torch.equal(saved[model][f"mask_embedding.{name}"], expected), (model, name)
    words = ("--config-file", config, "--eval-only", "MODEL.WEIGHTS", weights)
    assert call(train_net, *words)["segm"] == pytest.approx(trained["segm"], nan_ok=True)
    call(train_net, "--config-file", config, "--resume", "SOLVER.MAX_ITER", 3)
    predictor = Predictor(load_config(str(config), ["MODEL.WEIGHTS", str(weights)]))
    instances = predictor(np.zeros((40, 50, 3), np.uint8))
    assert instances.pred_masks.shape == (len(instances), 40, 50)
    with pytest.raises(SystemExit, match="error: the model has no mask dictionary"):
        call(train_net, "--config-file", config, "OUTPUT_DIR", tmp_path / "anew")


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


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.ISDA.IN_FEATURES", ["x"], "MODEL.ISDA.IN_FEATURES names ['x'], but the backbone"),
        ("INPUT.RANDOM_FLIP", "sideways", "INPUT.RANDOM_FLIP must be none, horizontal or vertical"),
        ("INPUT.MASK_FORMAT", "x", "INPUT.MASK_FORMAT must be bitmask or polygon, got 'x'"),
        ("INPUT.DATASET_MAPPER_NAME", "x", "INPUT.DATASET_MAPPER_NAME must be one of isda, isda"),
        ("DATALOADER.SAMPLER_TRAIN", "x", "DATALOADER.SAMPLER_TRAIN must be TrainingSampler or"),
    ],
)
def test_what_only_the_part_itself_can_judge_is_a_sentence_too(
    train_net, tmp_path, key, value, message
):
    config = config_file(tmp_path, key, value)
    with pytest.raises(SystemExit) as end:
        call(train_net, "--config-file", config, "--num-gpus", 0)
    assert str(end.value).startswith(f"error: {message}")
