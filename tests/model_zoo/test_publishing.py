"""isda.model_zoo.publishing and tools/publish_model.py."""

import json
import shutil

import numpy as np
import pytest
import torch

import publish_model
from isda import Predictor, model_zoo
from isda.engine.inference import Classes, saved_classes
from isda.model_zoo import publishing
from isda.model_zoo.catalog import ModelEntry, read_table
from isda.model_zoo.publishing import half_precision, metrics_at, write_row, write_weights
from isda.model_zoo.weights import sha256_of

NAMES, IDS = ["bolt", "nut", "washer"], [2, 5, 11]


def test_half_precision_keeps_what_it_cannot_hold():
    torch.manual_seed(0)
    weights = {
        "ordinary": torch.randn(40, 30),
        "huge": torch.tensor([1.0, 1e6]),
        "tiny": 1e-8 * torch.randn(50),
        "whole": torch.tensor(7),
        "zero": torch.zeros(3),
    }
    halved = half_precision(weights)
    types = {name: tensor.dtype for name, tensor in halved.items()}
    assert types["ordinary"] == types["zero"] == torch.float16
    assert types["huge"] == types["tiny"] == torch.float32
    assert types["whole"] == torch.int64
    for name, tensor in weights.items():
        torch.testing.assert_close(halved[name].to(tensor.dtype), tensor, rtol=1e-3, atol=1e-3)


@pytest.fixture
def published(training, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "zoo"
    arguments = [str(training), "--name", "mine/parts", "--zoo", str(folder), "--data", "screws"]
    assert publish_model.main([*arguments, "--note", "one minute"]) == 0, capsys.readouterr().err
    monkeypatch.setenv("ISDA_MODEL_ZOO", str(folder))
    return folder


def test_a_training_is_published_into_a_folder(published, training):
    entry = model_zoo.entries()["mine/parts"]
    file = published / entry.weights
    assert file.name == f"mine_parts_{sha256_of(file)[:8]}.pth"
    assert entry.sha256 == sha256_of(file)
    assert (entry.license, entry.data) == ("Apache-2.0", "screws")
    # Of the iteration of the best weights, not of the last.
    assert entry.metrics == {"segm/AP": 31.0, "segm/AP50": 60.0, "bbox/AP": 29.5}
    assert entry.training == {"iterations": "50", "note": "one minute"}
    contents = torch.load(file)
    assert set(contents) == {"model", "classes"}
    assert contents["classes"] == {"names": NAMES, "ids": IDS}
    assert file.stat().st_size < 0.6 * (training / "model_best.pth").stat().st_size
    assert sorted(path.name for path in published.iterdir()) == sorted(
        [file.name, "mine", "models.json"]
    )
    config = (published / "mine" / "parts.yaml").read_text()
    assert str(training) not in config


def test_the_published_model_predicts_as_the_trained_one(published, training):
    ours, theirs = Predictor("mine/parts", threshold=0.0), Predictor(training, threshold=0.0)
    assert ours.class_names == theirs.class_names == NAMES
    assert {p.dtype for p in ours.model.parameters()} == {torch.float32}
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    mine, other = ours(image), theirs(image)
    assert len(mine) == len(other) == 10
    torch.testing.assert_close(mine.scores, other.scores, rtol=0, atol=2e-3)
    # Pairs of nearly the same score may change places.
    for score, label, mask in zip(mine.scores, mine.pred_classes, mine.pred_masks):
        same = (other.scores - score).abs() < 4e-3
        candidates = other.pred_masks[same & (other.pred_classes == label)]
        overlap = (candidates & mask).flatten(1).sum(1) / (candidates | mask).flatten(1).sum(1)
        assert overlap.max() > 0.98


def test_publishing_again_replaces_the_file(published, training, capsys):
    before = model_zoo.entries()["mine/parts"].weights
    arguments = [str(training / "model_final.pth"), "--name", "mine/parts", "--zoo", str(published)]
    assert publish_model.main([*arguments, "--data", "more screws"]) == 0
    entry = model_zoo.entries()["mine/parts"]
    assert entry.metrics == {"segm/AP": 30.0, "bbox/AP": 29.0}
    assert entry.training == {"iterations": "99"}
    assert entry.data == "more screws"
    # The weights are the same here, and so is the file.
    assert entry.weights == before
    contents = torch.load(training / "model_final.pth")
    other = {name: tensor.mul(2) for name, tensor in contents["model"].items()}
    path, sha256 = write_weights(published, "mine_parts", other, Classes(NAMES, IDS))
    changed = ModelEntry("mine/parts", path.name, sha256, "MIT", "screws")
    write_row(published / "models.json", changed, published)
    assert not (published / before).exists()
    assert path.exists()


def test_equal_weights_make_equal_files(tmp_path):
    weights = {"weight": torch.arange(6.0)}
    first, _ = write_weights(tmp_path / "a", "one", weights, Classes(NAMES))
    second, _ = write_weights(tmp_path / "b", "two", weights, Classes(NAMES))
    assert first.read_bytes() == second.read_bytes()
    assert saved_classes(str(first)) == Classes(NAMES, [1, 2, 3])
    with pytest.raises(publishing.PublishingError, match="names of the classes are not known"):
        write_weights(tmp_path, "three", weights, Classes())


def test_a_config_that_would_build_another_model_is_refused(training, capsys):
    arguments = [str(training), "--name", "shapes/isda_tiny", "--data", "screws"]
    before = publish_model.SHIPPED_TABLE.read_text()
    assert publish_model.main(arguments) == 1
    message = capsys.readouterr().err
    assert "the training differs from configs/shapes/isda_tiny.yaml: " in message
    assert "MODEL.RESNETS.RES2_OUT_CHANNELS 8 instead of 32" in message
    assert "MODEL.ISDA.NUM_CLASSES" not in message
    assert "publish under that name" in message
    assert publish_model.SHIPPED_TABLE.read_text() == before


def test_a_model_of_the_package_is_published_with_its_row_and_page(tmp_path, monkeypatch):
    cfg = model_zoo.get_config("shapes/isda_tiny", overrides=["SOLVER.BASE_LR", 0.5])
    model = model_zoo.get("shapes/isda_tiny", trained=False, device="cpu")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, run / "model_final.pth")
    page = tmp_path / "docs" / "MODEL_ZOO.md"
    page.parent.mkdir()
    shutil.copy(publish_model.DOCS, page)
    for name, path in (("ROOT", tmp_path), ("DOCS", page), ("PACKAGE", tmp_path / "package")):
        monkeypatch.setattr(publish_model, name, path)
    monkeypatch.setattr(publish_model, "SHIPPED_TABLE", tmp_path / "models.json")
    arguments = [str(run), "--name", "shapes/isda_tiny.yaml", "--data", "generated shapes"]
    assert publish_model.main(arguments) == 0
    entry = read_table(tmp_path / "models.json")["shapes/isda_tiny"]
    file = tmp_path / "package" / "weights" / entry.file_name
    assert entry.weights == f"isda://{file.name}"
    assert entry.sha256 == sha256_of(file)
    assert saved_classes(str(file)).names == ["circle", "square", "triangle"]
    command = "python train_net.py --config-file configs/shapes/isda_tiny.yaml"
    assert entry.training == {"command": command}
    assert f"|generated shapes|||||[{file.name}]" in page.read_text()
    assert f"\n- `shapes/isda_tiny`: `{command}`; sha256 `{entry.sha256}`\n" in page.read_text()


def test_metrics_are_those_of_the_weights():
    records = [
        {"iteration": 9, "segm/AP": 1.0},
        {"iteration": 19, "segm/AP": 2.126, "bbox/AP": float("nan"), "segm/AP75": 3.0},
        {"iteration": 20, "total_loss": 1.0},
    ]
    assert metrics_at(records, 9) == {"segm/AP": 1.0}
    assert metrics_at(records, None) == {"segm/AP": 2.13, "segm/AP75": 3.0}
    assert metrics_at(records, 20) == {}


def test_duration_hardware_and_commit_come_from_the_training():
    machine = {"cpu": "EPYC", "threads": 1, "gpus": []}
    first = {"seconds": 3000.0, "machine": machine, "commit": "abc1234"}
    assert publish_model.note_of({"sessions": [first]}) == (
        "50 minutes on 1 thread of EPYC, commit `abc1234`"
    )
    last = {"seconds": 6000.0, "machine": machine | {"gpus": ["H200", "H200"]}, "commit": None}
    assert publish_model.note_of({"sessions": [first, last]}) == "2.5 hours on 2 × H200"
    killed = {"machine": machine, "commit": "abc1234"}
    assert publish_model.note_of({"sessions": [killed, last]}) == publish_model.note_of({}) == ""


def test_arguments_that_are_needed_are_asked_for(capsys):
    with pytest.raises(SystemExit):
        publish_model.parse_arguments(["output/mine"])
    assert "--name and --data are needed" in capsys.readouterr().err


def test_the_page_has_the_tables_as_they_are():
    text = publish_model.DOCS.read_text()
    assert publish_model.with_tables(text) == text, "python tools/publish_model.py --update-docs"


def test_a_row_of_the_page(tmp_path, monkeypatch):
    entry = {
        "weights": "isda://small_01234567.pth",
        "sha256": "01234567" * 8,
        "license": "Apache-2.0",
        "data": "shapes",
        "metrics": {"segm/AP": 41.26, "bbox/AP": 40.0},
        "training": {"command": "python train_net.py", "iterations": "600", "note": "an hour"},
    }
    (tmp_path / "models.json").write_text(json.dumps({"shapes/isda_tiny": entry}))
    monkeypatch.setattr(publish_model, "SHIPPED_TABLE", tmp_path / "models.json")
    assert read_table(tmp_path / "models.json")["shapes/isda_tiny"].metrics["bbox/AP"] == 40
    head, rule, row, *below = publish_model.models_table().splitlines()
    cells = dict(zip(head.strip("|").split("|"), row.strip("|").split("|"), strict=True))
    assert rule.count("|") == head.count("|")
    assert cells["Config"] == "[`shapes/isda_tiny`](../configs/shapes/isda_tiny.yaml)"
    assert [cells[key] for key in ("mask AP", "AP50", "AP75", "box AP")] == ["41.3", "", "", "40.0"]
    trained = f"`python train_net.py`; 600 steps; an hour; sha256 `{'01234567' * 8}`"
    assert below[-1] == f"- `shapes/isda_tiny`: {trained}"
