"""``train_net.py --dataset``: from a folder to weights, with the toy model."""

import json
import logging
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from toys import ISTR, call, toy_config, write_toy_data

from isda.cli.arguments import argument_parser
from isda.data.custom_data import forget_folders
from isda.data.errors import DatasetError
from isda.engine.custom_data import use_custom_data
from isda.engine.setup import load_config, setup
from isda.engine.trainer import Trainer
from isda.errors import ConfigError
from isda.prediction.predictor import Predictor


def config_file(folder: Path, *overrides) -> Path:
    path = folder / "toy.yaml"
    path.write_text(toy_config(folder / "out", *OPEN, *overrides).dump())
    return path


@pytest.fixture(autouse=True)
def catalogs_as_before():
    yield
    forget_folders()


# As configs/finetune: classes and data are the user's.
OPEN = ("DATASETS.TRAIN", (), "DATASETS.TEST", (), "MODEL.ISDA.NUM_CLASSES", 0)


def coco(folder: Path) -> Path:
    (folder / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (folder / split).mkdir()
        write_toy_data(folder / split, f"instances_{split}")
        file = folder / split / f"instances_{split}.json"
        file.rename(folder / "annotations" / file.name)
    return folder


def roboflow(folder: Path) -> Path:
    """With the placeholder that makes three categories of two classes."""
    for split in ("train", "valid", "test"):
        (folder / split).mkdir(parents=True)
        write_toy_data(folder / split, "_annotations.coco")
        file = folder / split / "_annotations.coco.json"
        content = json.loads(file.read_text())
        for category in content["categories"]:
            category["supercategory"] = "rectangles"
        placeholder = {"id": 0, "name": "rectangles", "supercategory": "none"}
        content["categories"].insert(0, placeholder)
        file.write_text(json.dumps(content))
    return folder


def beside_images(folder: Path, prefix="") -> Path:
    (folder / "images").mkdir(parents=True)
    for split in ("train", "val"):
        write_toy_data(folder / "images", f"{prefix}{split}")
        (folder / "images" / f"{prefix}{split}.json").rename(folder / f"{prefix}{split}.json")
    return folder


def instances_beside_images(folder: Path) -> Path:
    return beside_images(folder, "instances_")


def one_file(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_toy_data(folder, "result", [f"image_{n}.png" for n in range(9)])
    return folder / "result.json"


LAYOUTS = (coco, roboflow, beside_images, instances_beside_images, one_file)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_training_in_each_layout(train_net, tmp_path, layout):
    path = layout(tmp_path / "boxes")
    config = config_file(tmp_path, "SOLVER.MAX_ITER", 2)
    results = call(train_net, "--config-file", config, "--dataset", path)
    assert set(results) == {"bbox", "segm"}
    out = tmp_path / "out"
    files = {"model_best.pth", "model_final.pth", "config.yaml", "metrics.json", "curves.png"}
    files |= {"best_images.jpg", "worst_images.jpg", "report.html", "environment.json"}
    assert files <= {f.name for f in out.iterdir()}
    for name in ("model_best", "model_final"):
        classes = torch.load(out / f"{name}.pth")["classes"]
        assert classes == {"names": ["even", "odd"], "ids": [1, 2]}
    cfg = load_config(str(out / "config.yaml"))
    assert cfg.MODEL.ISDA.NUM_CLASSES == 2
    assert cfg.DATASETS.TRAIN == ("boxes_train",)
    assert cfg.DATASETS.TEST == ("boxes_val",)
    assert str(path) == cfg.DATASETS.PATH


def test_what_the_log_says(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("isda.engine.setup.logger.warning", lambda text, *args: said.append(text))
    words = [
        "--config-file",
        str(config_file(tmp_path)),
        "--dataset",
        str(one_file(tmp_path / "a")),
    ]
    cfg = setup(argument_parser().parse_args(words))
    assert said[0].startswith(f"{tmp_path}/a/result.json: a_train with ")
    assert said[0].endswith("2 classes: even, odd")
    assert [text for text in said if "there is no validation split, so 2 of the 9 images" in text]
    assert cfg.DATASETS.TRAIN == ("a_train",)


def test_resume_evaluate_and_predict(train_net, tmp_path):
    path = roboflow(tmp_path / "boxes")
    config = config_file(tmp_path, "SOLVER.MAX_ITER", 2)
    words = ("--config-file", config, "--dataset", path)
    trained = call(train_net, *words)
    out = tmp_path / "out"
    weights = ("MODEL.WEIGHTS", out / "model_final.pth")
    # The folder's own configuration knows the data as well.
    for again in (words, ("--config-file", out / "config.yaml")):
        evaluated = call(train_net, *again, "--eval-only", *weights)
        assert evaluated["segm"] == pytest.approx(trained["segm"], nan_ok=True)
    test_split = ("DATASETS.TEST", "('boxes_test',)")
    assert set(call(train_net, *words, "--eval-only", *weights, *test_split)) == {"bbox", "segm"}
    call(train_net, "--config-file", out / "config.yaml", "--resume", "SOLVER.MAX_ITER", 3)
    resumed = torch.load(out / "model_final.pth")
    assert resumed["trainer"]["images"] == 6
    # Number and names of the classes are in the checkpoint, whatever became of the data.
    forget_folders()
    shutil.rmtree(path)
    opts = ["MODEL.ISDA.NUM_CLASSES", "0", *map(str, weights)]
    predictor = Predictor(load_config(str(out / "config.yaml"), opts))
    assert predictor.class_names == ["even", "odd"]
    assert predictor(np.zeros((40, 50, 3), np.uint8)).image_size == (40, 50)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "train.json").write_text("{"), "error: .*train.json: not valid JSON"),
        (lambda p: (p / "images" / "image_1.png").unlink(), "error: .*images: 1 of the 5 images"),
        (lambda p: (p / "val.json").write_text('{"images": []}'), "val.json: .*'images' is empty"),
        (
            lambda p: [f.unlink() for f in p.glob("*.json")],
            "error: .*no annotations in COCO's form",
        ),
    ],
    ids=["broken JSON", "missing image", "empty split", "no annotations"],
)
def test_malformed_data_ends_in_one_message(train_net, tmp_path, spoil, message):
    path = beside_images(tmp_path / "boxes")
    spoil(path)
    with pytest.raises(SystemExit, match=message):
        call(train_net, "--config-file", config_file(tmp_path), "--dataset", path)


def test_no_data_at_all(train_net, tmp_path):
    config = config_file(tmp_path)
    with pytest.raises(
        SystemExit, match="error: DATASETS.TRAIN is empty: give your own data by --d"
    ):
        call(train_net, "--config-file", config)
    with pytest.raises(
        SystemExit, match="error: DATASETS.TEST is empty: give your own data by --da"
    ):
        call(train_net, "--config-file", config, "--eval-only")
    with pytest.raises(SystemExit, match="error: nowhere: no such file or folder"):
        call(train_net, "--config-file", config, "--dataset", "nowhere")
    with pytest.raises(SystemExit, match="error: shapes_val: is no folder but a data set that is"):
        call(train_net, "--config-file", config, "--dataset", "shapes_val")


def test_the_command_line_goes_before_the_folder(tmp_path):
    path = roboflow(tmp_path / "boxes")
    cfg = toy_config(tmp_path, "DATASETS.TEST", ("toy",))
    use_custom_data(cfg, path)
    assert cfg.DATASETS.TEST == ("boxes_val",)
    cfg.DATASETS.TEST = ("boxes_test",)  # one of the folder's own
    use_custom_data(cfg, path)
    assert cfg.DATASETS.TEST == ("boxes_test",)
    cfg.DATASETS.TEST = ("toy",)
    use_custom_data(cfg, path, given=["DATASETS.TEST"])
    assert cfg.DATASETS.TEST == ("toy",)


def crowded(folder: Path, counts: list[int]) -> Path:
    """Images with so many instances each, for training and for validation."""
    folder.mkdir()
    images, annotations = [], []
    for number, count in enumerate(counts):
        name = f"{number}.png"
        cv2.imwrite(str(folder / name), np.zeros((20, 200, 3), np.uint8))
        images.append({"id": number, "file_name": name, "height": 20, "width": 200})
        for i in range(count):
            polygon = [4 * i, 2, 4 * i + 3, 2, 4 * i + 3, 9, 4 * i, 9]
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": 1}
            annotations.append(annotation | {"segmentation": [polygon]})
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "bar"}]
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(("overrides", "node"), [((), "ISDA"), (ISTR, "ISTR")])
def test_more_instances_than_queries(tmp_path, overrides, node):
    limits = ("TEST.DETECTIONS_PER_IMAGE", 30, "SOLVER.MAX_ITER", 5000)
    few = crowded(tmp_path / "few", [2, 3, 2, 4, 3, 17])
    notes = use_custom_data(toy_config(tmp_path, *overrides, *limits), few)
    expected = (
        f"1 of the 6 images that are trained on have more instances (up to 17) than MODEL.{node}."
        f"NUM_QUERIES 6 lets the model find: set MODEL.{node}.NUM_QUERIES 20, or cut the images"
    )
    assert [note for note in notes if note.startswith(expected)]
    many = crowded(tmp_path / "many", [2, 3, 2, 14, 3, 17])
    with pytest.raises(DatasetError, match="2 of the 6 images that are trained on have more inst"):
        use_custom_data(toy_config(tmp_path, *overrides), many)
    use_custom_data(toy_config(tmp_path, *overrides), many, is_training=False)


def test_more_instances_than_detections(tmp_path):
    path = crowded(tmp_path / "bars", [2, 3, 17])
    limits = ("TEST.DETECTIONS_PER_IMAGE", 16, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
    notes = use_custom_data(toy_config(tmp_path, *limits), path)
    expected = "1 of the 3 images that are evaluated have more instances (up to 17) than TEST.DETE"
    (note,) = [note for note in notes if note.startswith(expected)]
    assert "set TEST.DETECTIONS_PER_IMAGE 20" in note


def test_a_schedule_that_is_too_short(tmp_path):
    path = crowded(tmp_path / "bars", [2, 3, 1])
    notes = use_custom_data(toy_config(tmp_path, "SOLVER.EPOCHS", 10.0), path)
    assert notes[-1].startswith(
        "10 epochs of 3 images are 15 steps, which is short: SOLVER.EPOCHS 1340 makes 2000 of them"
    )
    notes = use_custom_data(toy_config(tmp_path, "SOLVER.EPOCHS", 1340.0), path)
    assert "short" not in notes[-1]


def weights_of_classes(tmp_path, number: int) -> Path:
    """A file of a model that knows so many other classes."""
    cfg = toy_config(tmp_path, "MODEL.ISDA.NUM_CLASSES", number)
    classes = {"names": [f"kind {n}" for n in range(number)], "ids": list(range(number))}
    path = tmp_path / "weights.pth"
    torch.save({"model": build_model(cfg).state_dict(), "classes": classes}, path)
    return path


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (3, "kind 2, the data have even, odd: their class layers do not fit and start anew"),
        (2, "kind 1, the data have even, odd: their class layers are used all the same, in this"),
    ],
)
def test_weights_of_other_classes(tmp_path, monkeypatch, number, message):
    """Only the class layers' shapes may differ, and it is said what becomes of them."""
    weights, said = weights_of_classes(tmp_path, number), []
    logger = logging.getLogger("isda.checkpoint")
    monkeypatch.setattr(logger, "log", lambda level, text, *args: said.append(text % args))
    monkeypatch.setattr(logger, "warning", lambda text, *args: said.append(text % args))
    words = ["--config-file", str(config_file(tmp_path))]
    words += ["--dataset", str(beside_images(tmp_path / "boxes")), "MODEL.WEIGHTS", str(weights)]
    trainer = Trainer(setup(argument_parser().parse_args(words)))
    trainer.resume_or_load(resume=False)
    assert [text for text in said if message in text]
    theirs = torch.load(weights)["model"]
    loaded = trainer.model.state_dict()
    other = {name for name in loaded if not loaded[name].equal(theirs[name])}
    (report,) = [text for text in said if text.startswith("Weights: ")]
    if number == 2:
        assert not other
    else:
        assert {loaded[name].shape[0] for name in other} == {2}
        assert f"{len(other)} of another shape, left as initialised" in report
        assert all(f"{name}: [3" in report for name in other)


def test_early_stop_needs_evaluations(tmp_path):
    overrides = ("SOLVER.EARLY_STOP.PATIENCE", 2)
    words = ["--config-file", str(config_file(tmp_path, *overrides))]
    words += ["--dataset", str(beside_images(tmp_path / "boxes"))]
    with pytest.raises(ConfigError, match="EARLY_STOP.PATIENCE counts evaluations: it needs DATAS"):
        setup(argument_parser().parse_args(words))
