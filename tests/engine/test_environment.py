import json
import platform
from datetime import datetime

import detectron2
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from toys import register_toy_data, toy_config, toy_data

from isda.data import register_coco_json
from isda.engine.environment import machine, read_environment, versions
from isda.engine.trainer import Trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One training of 2 iterations, resumed to 3."""
    folder = tmp_path_factory.mktemp("environment")
    toy_data(folder)
    for last in (2, 3):
        cfg = toy_config(folder / "out", "SOLVER.MAX_ITER", last, "DATASETS.TEST", ())
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()
    return folder


def test_each_process_that_trained_is_a_session(folder):
    first, second = read_environment(folder / "out")["sessions"]
    assert (first["first_iteration"], first["iterations"], first["planned_iterations"]) == (0, 2, 2)
    assert (second["first_iteration"], second["iterations"]) == (2, 3)
    for session in (first, second):
        started, ended = (datetime.fromisoformat(session[key]) for key in ("started", "ended"))
        assert started.tzinfo is not None
        assert (ended - started).total_seconds() == pytest.approx(session["seconds"], abs=2)
        assert 0.05 < session["peak_memory"]["host"] < 100
        assert session["machine"]["gpus"] == []
        assert session["command"].split()[0].strip("'") != ""


def test_files_of_the_data_are_named(folder):
    data = read_environment(folder / "out")["data"]
    source = {"json_file": str(folder / "toy.json"), "image_root": str(folder)}
    assert data == {"train": [{"name": "toy"} | source], "test": []}


def test_a_new_training_in_the_folder_starts_anew(folder):
    register_toy_data(folder)
    trainer = Trainer(toy_config(folder / "out", "SOLVER.MAX_ITER", 1, "DATASETS.TEST", ()))
    trainer.train()
    (session,) = read_environment(folder / "out")["sessions"]
    assert session["planned_iterations"] == 1


def test_an_error_ends_a_session_too(tmp_path, monkeypatch):
    toy_data(tmp_path)
    trainer = Trainer(toy_config(tmp_path / "out", "DATASETS.TEST", ()))

    def fail():
        raise RuntimeError("the lights went out")

    monkeypatch.setattr(trainer, "run_step", fail)
    with pytest.raises(RuntimeError, match="lights"):
        trainer.train()
    (session,) = read_environment(tmp_path / "out")["sessions"]
    assert session["seconds"] > 0


def test_annotations_that_end_with_the_process_are_kept(tmp_path):
    toy_data(tmp_path, "raw")
    content = json.loads((tmp_path / "raw.json").read_text())
    content["annotations"][0]["segmentation"] = []  # left out, so that a cleaned copy is made
    (tmp_path / "raw.json").write_text(json.dumps(content))
    register_coco_json("cleaned", tmp_path / "raw.json", tmp_path)
    try:
        cfg = toy_config(tmp_path / "out", "SOLVER.MAX_ITER", 1, "DATASETS.TEST", ())
        cfg.DATASETS.TRAIN = ("cleaned",)
        Trainer(cfg).train()
    finally:
        DatasetCatalog.remove("cleaned")
        MetadataCatalog.pop("cleaned")
    (source,) = read_environment(tmp_path / "out")["data"]["train"]
    assert source["json_file"] == str(tmp_path / "out" / "annotations_cleaned.json")
    kept = json.loads((tmp_path / "out" / "annotations_cleaned.json").read_text())
    assert len(kept["annotations"]) == len(content["annotations"]) - 1


def test_machine_and_versions_are_those_of_this_process():
    assert versions()["torch"] == torch.__version__
    assert versions()["python"] == platform.python_version()
    assert versions()["detectron2"] == detectron2.__version__
    found = machine()
    assert found["cpu"] and found["cores"] >= 1 and found["processes"] == 1
    assert found["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_broken_file_is_as_good_as_none(tmp_path, text):
    (tmp_path / "environment.json").write_text(text)
    assert read_environment(tmp_path) == {}
    assert read_environment(tmp_path / "nowhere") == {}
