"""The embedded data sets: registered, found, generated, and sound under COCO's evaluation."""

import importlib
import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from isda.data import DatasetError, builtin, check_datasets
from isda.data.shapes import ShapesParameters

ROOT = Path(__file__).parents[2]
NUCLEI = ROOT / "datasets" / "nuclei_mini"


@pytest.fixture
def small_shapes(tmp_path, monkeypatch):
    """shapes_val with 12 images, a third of them with crowds or empty, in a folder of its own."""
    parameters = ShapesParameters((64, 80), crowd_share=0.2, empty_share=0.2, seed=9)
    monkeypatch.setitem(builtin.SHAPES, "shapes_val", (12, parameters))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def score_of_ground_truth(name: str, evaluator: COCOEvaluator, step: int = 1) -> dict:
    """AP when every annotation but the crowds is predicted; plus a find inside each crowd.

    Of every ``step``-th image.
    """
    evaluator.reset()
    records = DatasetCatalog.get(name)[::step]
    for record in records:
        masks = [mask_util.decode(a["segmentation"]) for a in record["annotations"]]
        # Half of a crowd, with the best score of all: COCO's evaluation must ignore it.
        for mask, annotation in zip(masks, record["annotations"]):
            if annotation["iscrowd"]:
                mask[:, np.nonzero(mask)[1].max()] = 0
        instances = Instances((record["height"], record["width"]))
        masks = np.array(masks).reshape(-1, record["height"], record["width"])
        instances.pred_masks = torch.as_tensor(masks, dtype=torch.bool)
        boxes = [mask_util.toBbox(a["segmentation"]) for a in record["annotations"]]
        boxes = torch.as_tensor(np.array(boxes).reshape(-1, 4))
        boxes[:, 2:] += boxes[:, :2]
        instances.pred_boxes = Boxes(boxes)
        crowds = torch.tensor([a["iscrowd"] for a in record["annotations"]])
        instances.scores = 0.5 + 0.5 * crowds
        instances.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]])
        evaluator.process([record], [{"instances": instances}])
    with redirect_stdout(io.StringIO()):
        return evaluator.evaluate([record["image_id"] for record in records])


def test_ground_truth_of_nuclei_scores_100():
    evaluator = COCOEvaluator("nuclei_mini_val", ("bbox", "segm"), distributed=False)
    results = score_of_ground_truth("nuclei_mini_val", evaluator, step=6)
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_ground_truth_of_shapes_scores_100_also_when_the_evaluator_comes_first(small_shapes):
    assert not any(small_shapes.iterdir())
    evaluator = COCOEvaluator("shapes_val", ("bbox", "segm"), distributed=False)
    results = score_of_ground_truth("shapes_val", evaluator)
    records = DatasetCatalog.get("shapes_val")
    assert any(a["iscrowd"] for record in records for a in record["annotations"])
    assert any(not record["annotations"] for record in records)
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_shapes_pass_the_checks_and_belong_below_detectron2_datasets(small_shapes):
    check_datasets([], ["shapes_val"])
    metadata = MetadataCatalog.get("shapes_val")
    assert Path(metadata.json_file) == small_shapes / "shapes/shapes_val/instances.json"
    assert Path(metadata.image_root) == small_shapes / "shapes/shapes_val"
    assert len(DatasetCatalog.get("shapes_val")) == 12


def test_train_val_and_tiny_shapes_differ():
    seeds = [parameters.seed for _, parameters in builtin.SHAPES.values()]
    assert len(set(seeds)) == len(seeds) == 3
    assert {name: number for name, (number, _) in builtin.SHAPES.items()} == {
        "shapes_train": 4000,
        "shapes_val": 200,
        "shapes_tiny8_train": 8,
    }


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "file"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DatasetError, match="'shapes_tiny8_train' in .*set DETECTRON2_DATASETS to"):
        DatasetCatalog.get("shapes_tiny8_train")


def test_importing_registers_without_touching_a_disk_and_can_be_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "none"))
    names = [*builtin.SHAPES, *builtin.NUCLEI]
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    importlib.reload(builtin)
    loaders = {name: DatasetCatalog[name] for name in names}
    importlib.reload(builtin)
    for name in names:
        assert DatasetCatalog[name] is loaders[name]
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluator_type == "coco"
        ids = metadata.thing_dataset_id_to_contiguous_id
        assert ids == {i + 1: i for i in range(len(metadata.as_dict()["thing_classes"]))}
    assert MetadataCatalog.get("shapes_train").thing_classes == ["circle", "square", "triangle"]
    assert MetadataCatalog.get("nuclei_mini_val").thing_classes == ["nucleus"]
    assert not any(tmp_path.iterdir())


def test_nuclei_that_are_nowhere_are_told_where_they_belong(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "_CHECKOUT", tmp_path / "elsewhere")
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    with pytest.raises(DatasetError) as raised:
        COCOEvaluator("nuclei_mini_val", distributed=False)
    message = str(raised.value)
    assert str(tmp_path / "elsewhere/datasets/nuclei_mini") in message
    assert "$DETECTRON2_DATASETS/nuclei_mini (DETECTRON2_DATASETS is not set)" in message
    assert "copy datasets/nuclei_mini there" in message
    monkeypatch.setenv("DETECTRON2_DATASETS", str(ROOT / "datasets"))
    assert len(DatasetCatalog.get("nuclei_mini_val")) == 39


def test_whole_nuclei_are_made_by_a_tool(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DatasetError) as error:
        COCOEvaluator("nuclei_val", distributed=False)
    assert f"$DETECTRON2_DATASETS/nuclei (DETECTRON2_DATASETS is {tmp_path})" in str(error.value)
    assert "tools/make_nuclei.py makes it" in str(error.value)
    (tmp_path / "nuclei").symlink_to(NUCLEI)
    assert len(DatasetCatalog.get("nuclei_val")) == 39


@pytest.mark.parametrize("split", ["train", "val"])
def test_nuclei_are_what_source_says(split):
    content = json.loads((NUCLEI / f"instances_{split}.json").read_text())
    colours = 0
    annotations_of = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        annotations_of[annotation["image_id"]].append(annotation)
    for image in content["images"]:
        path = str(NUCLEI / "images" / image["file_name"])
        colours += cv2.imread(path, cv2.IMREAD_UNCHANGED).ndim == 3
        for order in ("RGB", "BGR"):
            assert read_image(path, order).shape == (image["height"], image["width"], 3)
        if image["id"] % 8:
            continue
        annotations = annotations_of[image["id"]]
        assert 0 < len(annotations) <= 100
        masks = mask_util.decode([a["segmentation"] for a in annotations])
        assert masks.shape[:2] == (image["height"], image["width"])
        np.testing.assert_array_equal(masks.sum(axis=(0, 1)), [a["area"] for a in annotations])
        assert (masks.sum(axis=2) > 1).sum() <= 9  # as SOURCE.md of the whole set counts
    row = f"| {len(content['images'])} | {colours} | {len(content['annotations']):,} |"
    assert f"| `instances_{split}.json` {row}" in (NUCLEI / "SOURCE.md").read_text()


def test_nuclei_of_train_and_val_are_different_images_and_small():
    names = [
        {
            image["file_name"][:16]
            for image in json.loads((NUCLEI / f"instances_{split}.json").read_text())["images"]
        }
        for split in ("train", "val")
    ]
    assert not names[0] & names[1]
    files = [path for path in NUCLEI.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6_000_000
    assert len(files) == len(names[0]) + len(names[1]) + 3
