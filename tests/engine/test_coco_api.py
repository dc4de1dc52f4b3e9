"""COCO's AP by hotcoco is that of pycocotools, the oracle."""

import contextlib
import copy
import importlib.util
import io
import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from isda import Predictor
from isda.data.coco_json import read_coco_json
from isda.engine.coco_api import evaluate
from isda.engine.coco_results import coco_results

SIDE = 200


def rectangle(x, y, w, h):
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle = coco_mask.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def content_and_results(seed=0):
    """All sizes, crowds, polygons beside RLE, equal scores, empty images, a class without any.

    Image 1 has more than 100 instances of one class.
    """
    random = np.random.default_rng(seed)
    images = [{"id": 3 * n + 1, "width": SIDE, "height": SIDE} for n in range(12)]
    annotations, results = [], []
    for number, image in enumerate(images):
        if number == 5:  # nothing is annotated there, and something found
            count, found = 0, 20
        elif number == 6:  # and here the other way round
            count, found = 6, 0
        else:
            count, found = (170, 210) if number == 0 else (12, 30)
        boxes, classes = [], []
        for _ in range(count):
            w, h = random.integers(3, 12 if number == 0 else 130, 2).tolist()
            x, y = (int(random.integers(0, SIDE - size)) for size in (w, h))
            boxes.append((x, y, w, h))
            classes.append(2 if number == 0 else int(random.choice([2, 5, 7])))
            crowd = random.random() < 0.05
            polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": classes[-1],
                    "bbox": [x, y, w, h],
                    "area": float(w * h),
                    "iscrowd": int(crowd),
                    "segmentation": rectangle(x, y, w, h) if crowd else polygon,
                }
            )
        for index in range(found):
            if boxes and index < len(boxes) and random.random() < 0.9:
                noise = random.integers(-2, 3, 4) * (random.random() < 0.5)
                x, y, w, h = np.maximum(np.array(boxes[index]) + noise, (0, 0, 1, 1)).tolist()
                category = classes[index]
            else:
                x, y, w, h = random.integers(1, 100, 4).tolist()
                category = int(random.choice([2, 5, 7]))
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "score": float(random.integers(0, 50)) / 50,
                    "segmentation": rectangle(x, y, w, h),
                }
            )
    categories = [{"id": i, "name": f"class {i}"} for i in (2, 5, 7, 90)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def index_of(content):
    annotated = COCO()
    annotated.dataset = {"info": {}, **copy.deepcopy(content)}
    with contextlib.redirect_stdout(io.StringIO()):
        annotated.createIndex()
    return annotated


def oracle(content, results, task, limit, image_ids=None):
    """pycocotools' own evaluation, with Detectron2's summary of any limit."""
    annotated = index_of(content)
    dropped = "bbox" if task == "segm" else "segmentation"
    found = [{k: v for k, v in copy.deepcopy(r).items() if k != dropped} for r in results]
    evaluation = COCOevalMaxDets(annotated, annotated.loadRes(found), task)
    evaluation.params.maxDets = [1, 10, limit]
    evaluation.params.imgIds = image_ids or evaluation.params.imgIds
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def assert_same(content, results, task, limit, image_ids=None):
    known = oracle(content, results, task, limit, image_ids)
    found = evaluate(index_of(content), results, task, limit, image_ids)
    for name in ("precision", "recall", "scores"):  # per IoU, class, area and limit
        np.testing.assert_array_equal(found.eval[name], known.eval[name], name)
    np.testing.assert_array_equal(found.stats, known.stats)
    return found


@pytest.mark.parametrize("limit", [100, 300])
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_hotcoco_gives_the_arrays_of_pycocotools(task, limit, caplog):
    pytest.importorskip("hotcoco")
    with caplog.at_level(logging.INFO):
        found = assert_same(*content_and_results(), task, limit)
    assert f"{task}: evaluated by hotcoco" in caplog.text
    assert 0.1 < found.stats[0] < 0.9
    assert (found.stats[:6] > -1).all()  # small, medium, large
    assert (found.eval["precision"][:, :, 3] == -1).all()  # class 90 is not annotated
    assert found.params.maxDets == [1, 10, limit]


def test_some_images_alone():
    pytest.importorskip("hotcoco")
    assert_same(*content_and_results(1), "segm", 100, image_ids=[4, 7, 16])


def test_the_limit_decides_what_ap_says():
    content, results = content_and_results()
    aps = [evaluate(index_of(content), results, "segm", limit).stats[0] for limit in (100, 400)]
    assert aps[1] > aps[0] + 0.02


def with_text_ids(content, results):
    for entry in (*content["annotations"], *results):
        entry["image_id"] = f"image {entry['image_id']}"
    for image in content["images"]:
        image["id"] = f"image {image['id']}"


def with_id_0(content, results):
    content["annotations"][0]["id"] = 0


def with_an_id_twice(content, results):
    content["annotations"][1]["id"] = content["annotations"][0]["id"]


@pytest.mark.parametrize(
    "change, reason",
    [
        (with_text_ids, "not every image id is a whole number"),
        (with_id_0, "an annotation has id 0"),
        (with_an_id_twice, "annotation ids stand twice"),
    ],
)
def test_pycocotools_is_taken_where_the_other_might_differ(change, reason, caplog):
    pytest.importorskip("hotcoco")
    content, results = content_and_results()
    change(content, results)
    with caplog.at_level(logging.INFO):
        assert_same(content, results, "bbox", 100)
    assert f"bbox: evaluated by pycocotools, as {reason}" in caplog.text


def test_pycocotools_is_taken_where_hotcoco_is_missing(monkeypatch, caplog):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO):
        assert_same(*content_and_results(), "segm", 100)
    assert "is not installed (pip install hotcoco)" in caplog.text


@pytest.mark.slow
def test_predictions_of_a_trained_model():
    """Of the shipped model on nuclei, of which some images have more than 100."""
    pytest.importorskip("hotcoco")
    predictor = Predictor("nuclei/isda_boxes_mobilenet_v2", threshold=0.0)
    records = DatasetCatalog.get("nuclei_mini_val")
    results = []
    for record in records[:4]:
        results += coco_results(predictor(record["file_name"]), record["image_id"])
    ids = {record["image_id"] for record in records[:4]}
    content = read_coco_json(MetadataCatalog.get("nuclei_mini_val").json_file)
    for result in results:
        result["category_id"] = content["categories"][0]["id"]
    for task in ("bbox", "segm"):
        found = assert_same(content, results, task, 400, sorted(ids))
        assert found.stats[0] > 0.3
