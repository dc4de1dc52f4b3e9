import importlib.util
import logging

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from toys import toy_config, toy_data

from isda.engine.evaluation import build_evaluator, id_problems

SIZE = (64, 64)


@pytest.fixture
def crowded(tmp_path):
    """One image with 150 instances, which COCO's 100 detections cannot all find."""
    name = "crowded"
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    annotations = []
    for number in range(150):
        x, y = number % 15 * 4, number // 15 * 4
        box = [x, y, 3, 3]
        polygon = [x, y, x + 3, y, x + 3, y + 3, x, y + 3]
        annotations.append(
            {"bbox": box, "bbox_mode": 1, "category_id": 0, "segmentation": [polygon]}
        )
    record = {"file_name": "a.png", "image_id": 1, "height": 64, "width": 64}
    DatasetCatalog.register(name, lambda: [{**record, "annotations": annotations}])
    MetadataCatalog.pop(name, None)
    MetadataCatalog.get(name).set(thing_classes=["dot"])
    return name


def perfect_prediction():
    masks = torch.zeros(150, *SIZE, dtype=torch.bool)
    for number in range(150):
        x, y = number % 15 * 4, number // 15 * 4
        masks[number, y : y + 3, x : x + 3] = True
    corners = torch.tensor([[n % 15 * 4, n // 15 * 4] for n in range(150)]).float()
    return Instances(
        SIZE,
        pred_masks=masks,
        pred_boxes=Boxes(torch.cat([corners, corners + 3], dim=1)),
        scores=torch.linspace(1, 0.5, 150),
        pred_classes=torch.zeros(150, dtype=torch.int64),
    )


@pytest.mark.parametrize(("limit", "expected"), [(100, 66.3), (150, 100)])
def test_more_than_100_instances_can_be_evaluated(tmp_path, crowded, caplog, limit, expected):
    cfg = toy_config(tmp_path, "TEST.DETECTIONS_PER_IMAGE", limit)
    evaluator = build_evaluator(cfg, crowded, str(tmp_path))
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": perfect_prediction()}])
    with caplog.at_level(logging.INFO):
        results = evaluator.evaluate()
    assert f"crowded: AP counts the best {limit} detections of each image and class" in caplog.text
    assert results["segm"]["max_detections"] == results["bbox"]["max_detections"] == limit
    assert results["segm"]["AP"] == pytest.approx(expected, abs=0.5)
    assert results["bbox"]["AP"] == pytest.approx(expected, abs=0.5)


def test_no_prediction_at_all_still_gives_both_tasks(tmp_path, crowded):
    evaluator = build_evaluator(toy_config(tmp_path), crowded, str(tmp_path))
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": perfect_prediction()[:0]}])
    assert set(evaluator.evaluate()) == {"bbox", "segm"}


ANNOTATED = {
    "images": [{"id": 1}, {"id": 2}],
    "annotations": [{"image_id": 1, "category_id": 7}, {"image_id": 2, "category_id": 9}],
}


def predictions(image_id, category_id):
    return [{"image_id": image_id, "instances": [{"category_id": category_id}]}]


def test_ids_without_overlap_are_explained():
    assert id_problems(ANNOTATED, predictions(2, 9), None) == []
    assert id_problems(ANNOTATED, predictions(2, 0), {0: 7}) == []
    (images,) = id_problems(ANNOTATED, predictions(55, 7), None)
    assert "no predicted image id is annotated, so AP will be 0: predicted 55" in images
    (classes,) = id_problems(ANNOTATED, predictions(1, 3), {3: 30})
    assert "no predicted category id is annotated" in classes
    assert "predicted 30, annotated 7, 9" in classes
    crowd = {"images": [{"id": 1}], "annotations": [{"iscrowd": 1, "category_id": 7}]}
    (nothing,) = id_problems(crowd, predictions(1, 7), None)
    assert "AP is undefined" in nothing


def test_the_warning_reaches_the_log(tmp_path, crowded, caplog):
    evaluator = build_evaluator(toy_config(tmp_path), crowded, str(tmp_path))
    evaluator.reset()
    instances = perfect_prediction()
    evaluator._coco_api.dataset["annotations"][0]["iscrowd"] = 0
    for annotation in evaluator._coco_api.dataset["annotations"]:
        annotation["category_id"] = 5
    evaluator.process([{"image_id": 1}], [{"instances": instances}])
    with caplog.at_level(logging.WARNING):
        evaluator.evaluate()
    assert "crowded: no predicted category id is annotated" in caplog.text


def test_unknown_type_and_missing_packages(tmp_path, monkeypatch):
    toy_data(tmp_path)
    cfg, metadata = toy_config(tmp_path), MetadataCatalog.get("some_set")
    metadata.evaluator_type = "ade20k"
    with pytest.raises(ValueError, match="evaluator_type 'ade20k'.*coco, lvis and cityscapes"):
        build_evaluator(cfg, "some_set", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for kind, package in (
        ("lvis", "package hotcoco"),
        ("cityscapes_instance", "packages cityscapesscripts and shapely"),
    ):
        MetadataCatalog.pop("some_set")
        MetadataCatalog.get("some_set").evaluator_type = kind
        with pytest.raises(ImportError, match=f"'some_set' needs the {package}: pip"):
            build_evaluator(cfg, "some_set", str(tmp_path))
    MetadataCatalog.pop("some_set")
