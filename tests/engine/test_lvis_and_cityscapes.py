"""LVIS and Cityscapes, read and evaluated by Detectron2's parts with the packages that we name."""

import importlib.util
import json
import math
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.cityscapes import load_cityscapes_instances
from detectron2.data.datasets.lvis import load_lvis_json
from detectron2.structures import Boxes, Instances
from PIL import Image
from toys import toy_config, toy_data

from isda.data.packages import prepare_packages
from isda.engine.evaluation import build_evaluator
from isda.engine.setup import setup
from isda.errors import MissingPackageError

SIDE = 128
FREQUENCIES = "rrccff"  # of the classes 1 to 6


@pytest.fixture
def lvis_set(tmp_path, monkeypatch):
    """A registered set of 12 images; class 2 is nowhere, and so is no large object."""
    pytest.importorskip("hotcoco")
    monkeypatch.setitem(sys.modules, "lvis", None)  # what a test provides ends with it
    random = np.random.default_rng(1)
    images, annotations = [], []
    for number in range(1, 13):
        absent, vague = random.choice([1, 3, 4, 5, 6], 2, replace=False)
        images.append(
            {
                "id": number,
                "coco_url": f"http://images/val2017/{number:012}.jpg",
                "height": SIDE,
                "width": SIDE,
                "neg_category_ids": [int(absent), 2],
                "not_exhaustive_category_ids": [int(vague)],
            }
        )
        for _ in range(6):
            x, y = random.integers(0, 80, 2).tolist()
            w, h = random.integers(8, 48, 2).tolist()
            category = random.choice([c for c in (1, 3, 4, 5, 6) if c != absent])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(category),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    categories = [
        {"id": number, "name": f"class {number}", "frequency": frequency}
        for number, frequency in enumerate(FREQUENCIES, 1)
    ]
    file = tmp_path / "lvis.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))
    name = "lvis_v1_of_a_test"
    DatasetCatalog.register(name, lambda: load_lvis_json(str(file), "coco/"))
    metadata = MetadataCatalog.get(name)
    metadata.set(evaluator_type="lvis", json_file=str(file))
    metadata.thing_classes = [category["name"] for category in categories]
    yield name, content
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def instances(boxes, classes, scores):
    """Rectangles as ``Instances``; boxes are x, y, width, height."""
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.bool)
    for mask, (x, y, w, h) in zip(masks, boxes):
        mask[y : y + h, x : x + w] = True
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return Instances(
        (SIDE, SIDE),
        pred_boxes=Boxes(corners),
        pred_masks=masks,
        pred_classes=torch.tensor(classes, dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32),
    )


def evaluated(cfg, name, found, folder):
    evaluator = build_evaluator(cfg, name, str(folder))
    evaluator.reset()
    for x in DatasetCatalog.get(name):
        evaluator.process([x], [{"instances": found(x)}])
    return evaluator.evaluate()


def truth(x):
    annotations = x["annotations"]
    classes = [a["category_id"] for a in annotations]
    return instances([a["bbox"] for a in annotations], classes, [0.9] * len(annotations))


def guess(x):
    """Boxes a few pixels off, some of another class, and some of nothing."""
    random = np.random.default_rng(x["image_id"])
    boxes, classes = [], []
    for a in x["annotations"]:
        for _ in range(3):
            boxes.append((np.array(a["bbox"]) + random.integers(0, 4, 4)).tolist())
            wrong = random.random() < 0.3
            classes.append(int(random.integers(0, 6)) if wrong else a["category_id"])
    return instances(boxes, classes, random.random(len(boxes)).tolist())


def test_lvis_of_what_is_annotated_is_perfect_and_of_nothing_undefined(tmp_path, lvis_set):
    name, _ = lvis_set
    results = evaluated(toy_config(tmp_path), name, truth, tmp_path / "out")
    for task in ("bbox", "segm"):
        values = results[task]
        for metric in ("AP", "AP50", "AP75", "APs", "APm", "APr", "APc", "APf"):
            assert values[metric] == pytest.approx(100), metric
        assert math.isnan(values["APl"])  # there is no large object


@pytest.mark.parametrize("limit", [5, 300])
def test_lvis_has_the_numbers_of_its_own_package(tmp_path, lvis_set, monkeypatch, limit):
    name, content = lvis_set
    cfg = toy_config(tmp_path, "TEST.DETECTIONS_PER_IMAGE", limit)
    results = evaluated(cfg, name, guess, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())
    assert len(found) == 3 * len(content["annotations"])
    monkeypatch.delitem(sys.modules, "lvis")
    lvis = pytest.importorskip("lvis")
    monkeypatch.setattr(np, "float", float, raising=False)  # which its last release asks for
    for task in ("bbox", "segm"):
        own = [{k: v for k, v in f.items() if k != "bbox" or task == "bbox"} for f in found]
        annotated = lvis.LVIS(str(tmp_path / "lvis.json"))
        oracle = lvis.LVISEval(annotated, lvis.LVISResults(annotated, own, limit), task)
        oracle.run()
        assert 0.05 < oracle.results["AP"] < 0.95
        assert results[task].pop("max_detections") == limit
        for metric, value in results[task].items():
            expected = oracle.results[metric]
            if expected == -1:
                assert math.isnan(value), metric
            else:
                assert value == pytest.approx(100 * expected, abs=1e-9), metric


def cityscapes_files(root: Path) -> dict:
    """Two images with their labels, as Cityscapes names them; the metadata of the set."""
    for number in range(2):
        stem = f"town_00000{number}_000019"
        for folder in ("images", "labels"):
            (root / folder / "town").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, SIDE)).save(root / "images/town" / f"{stem}_leftImg8bit.png")
        objects, ids = [], np.zeros((SIDE, SIDE), np.uint16)
        for place, (label, label_id) in enumerate((("car", 26), ("person", 24))):
            left = 4 + 64 * place
            corners = [[left, 8], [left + 40, 8], [left + 40, 60], [left, 60]]
            objects.append({"label": label, "polygon": corners})
            ids[8:61, left : left + 41] = label_id * 1000
        content = {"imgWidth": SIDE, "imgHeight": SIDE, "objects": objects}
        path = root / "labels/town" / f"{stem}_gtFine_polygons.json"
        path.write_text(json.dumps(content))
        Image.fromarray(ids).save(path.with_name(f"{stem}_gtFine_instanceIds.png"))
        # Which the loader wants to see, and reads only for semantic segmentation.
        path.with_name(f"{stem}_gtFine_labelIds.png").touch()
    classes = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    return {"thing_classes": classes, "gt_dir": str(root / "labels")}


def test_cityscapes_is_read_and_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where its code leaves matches.json
    pytest.importorskip("cityscapesscripts")
    pytest.importorskip("shapely")
    name = "cityscapes_of_a_test"
    metadata = cityscapes_files(tmp_path)
    folders = str(tmp_path / "images"), str(tmp_path / "labels")
    DatasetCatalog.register(name, lambda: load_cityscapes_instances(*folders))
    MetadataCatalog.get(name).set(evaluator_type="cityscapes_instance", **metadata)
    try:
        records = DatasetCatalog.get(name)
        assert [len(x["annotations"]) for x in records] == [2, 2]

        def found(x):
            classes = [a["category_id"] for a in x["annotations"]]
            assert sorted(classes) == [0, 2]  # person, car
            boxes = [(4 + 64 * (c == 0), 8, 41, 53) for c in classes]
            return instances(boxes, classes, [0.9, 0.8])

        results = evaluated(toy_config(tmp_path), name, found, tmp_path / "out")
        assert results["segm"]["AP"] == pytest.approx(100)
        assert results["segm"]["AP50"] == pytest.approx(100)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    "name, missing, message",
    [
        ("lvis_v1_train", "hotcoco", "the package hotcoco: pip install hotcoco$"),
        ("cityscapes_fine_instance_seg_val", "shapely", "the package shapely: pip install"),
        (
            "cityscapes_fine_instance_seg_train",
            "cityscapesscripts shapely",
            "the packages cityscapesscripts and shapely: pip install cityscapesscripts shapely$",
        ),
    ],
)
def test_what_is_not_installed_is_named_before_a_training(monkeypatch, name, missing, message):
    absent, present = missing.split(), importlib.util.find_spec("json")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda package: None if package in absent else present
    )
    with pytest.raises(MissingPackageError, match=f"data set '{name}' needs {message}"):
        prepare_packages(["shapes_val", name])


def test_a_training_does_not_begin_without_what_its_evaluation_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    name = "cityscapes_fine_instance_seg_val"
    toy_data(tmp_path)
    file = tmp_path / "toy.yaml"
    file.write_text(toy_config(tmp_path, "DATASETS.TEST", (name,)).dump())
    args = Namespace(config_file=str(file), opts=[], num_gpus=0, resume=False, eval_only=False)
    with pytest.raises(MissingPackageError, match="pip install cityscapesscripts shapely"):
        setup(args)
