import contextlib
import io

import numpy as np
import pytest
from examples_of_reports import random_case, rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from isda.report.scores import Detection, Scores, calibration, without_masks


def summary(content, predictions, task):
    """COCO's own twelve figures, in percent."""
    coco = COCO()
    coco.dataset = content | {"info": {}}
    results = [{k: v for k, v in p.items() if k != "bbox" or task == "bbox"} for p in predictions]
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [value * 100 if value > -1 else float("nan") for value in evaluation.stats]


@pytest.mark.parametrize("task", ["segm", "bbox"])
def test_figures_are_those_of_cocos_summary(task):
    content, predictions = random_case(seed=3)
    before = repr(content), repr(predictions)
    scores = Scores(content, predictions, task)
    assert (repr(content), repr(predictions)) == before
    expected = summary(content, predictions, task)
    sizes = ("small", "medium", "large")
    ours = [scores.ap(), scores.ap(iou=0.5), scores.ap(iou=0.75)]
    ours += [scores.ap(area=area) for area in sizes]
    ours += [scores.ar(max_detections=limit) for limit in (1, 10, 100)]
    ours += [scores.ar(area=area) for area in sizes]
    assert ours == pytest.approx(expected, nan_ok=True)
    assert 5 < scores.ap() < 95


def test_mean_of_classes_is_the_whole():
    content, predictions = random_case(seed=4)
    scores = Scores(content, predictions, "segm")
    assert np.mean([scores.ap(category=i) for i in (1, 2, 3)]) == pytest.approx(scores.ap())
    assert np.mean([scores.ar(category=i) for i in (1, 2, 3)]) == pytest.approx(scores.ar())
    alone = content | {"annotations": [a for a in content["annotations"] if a["category_id"] == 2]}
    of_class = [p for p in predictions if p["category_id"] == 2]
    assert scores.ap(category=2) == pytest.approx(summary(alone, of_class, "segm")[0])


def test_area_below_the_curve_is_ap():
    content, predictions = random_case(seed=5)
    scores = Scores(content, predictions, "segm")
    recall, precision = scores.curve(0.75)
    assert precision.mean() * 100 == pytest.approx(scores.ap(iou=0.75))
    assert recall[0] == 0 and recall[-1] == 1 and (np.diff(precision) <= 1e-12).all()


def test_more_detections_than_a_hundred_count_where_the_config_says_so():
    size = {"height": 300, "width": 300}
    boxes = [(x, y, 10, 10) for x in range(0, 165, 15) for y in range(0, 165, 15)]  # 121
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 100, "bbox": list(b)}
        | {"segmentation": rle(*b)}
        for i, b in enumerate(boxes)
    ]
    content = {"images": [{"id": 1, "file_name": ""} | size], "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "one"}]
    predictions = [
        {"image_id": 1, "category_id": 1, "score": 0.9 - i / 1000, "bbox": list(b)}
        for i, b in enumerate(boxes)
    ]
    assert Scores(content, predictions, "bbox", 200).ar() == pytest.approx(100)
    assert Scores(content, predictions, "bbox", 50).ar() == pytest.approx(100 / 1.21)


def test_matches_are_of_the_predictions_given(content, predictions):
    found = {d.index: d for d in Scores(content, predictions, "segm").detections()}
    assert found.keys() == set(range(len(predictions)))
    annotations = {a["id"]: a for a in content["annotations"]}
    matched = {i: d.annotation_id for i, d in found.items() if d.annotation_id is not None}
    # Two exact ones, one exact and one half in the third image; neither double nor confused.
    assert matched.keys() == {0, 1, 3} | ({2} & matched.keys())
    for index in (0, 1, 3):
        assert annotations[matched[index]]["bbox"] == predictions[index]["bbox"]
        assert found[index].score == predictions[index]["score"]


def test_predictions_inside_a_crowd_do_not_count(content, predictions):
    crowd = {"id": 99, "image_id": 4, "category_id": 3, "iscrowd": 1, "area": 1800}
    crowd |= {"bbox": [0, 0, 30, 60], "segmentation": {"size": [60, 90], "counts": [0, 1800, 3600]}}
    content["annotations"].append(crowd)
    inside = {"image_id": 4, "category_id": 3, "score": 0.9, "bbox": [0, 0, 10, 15]}
    predictions.append(inside | {"segmentation": rle(0, 0, 10, 15, 60, 90)})
    counted = {d.index for d in Scores(content, predictions, "segm").detections()}
    assert counted == set(range(len(predictions) - 1))


@pytest.mark.parametrize(
    "predictions, message",
    [([], "none there"), ([{"image_id": 12}], "image id 12 is not in the annotations")],
)
def test_predictions_that_cannot_be_evaluated(content, predictions, message):
    with pytest.raises(ValueError, match=message):
        Scores(content, predictions, "segm")


def test_calibration_of_known_scores():
    rows, error = calibration(
        [Detection(0, 0.95, 5), Detection(1, 0.91, None), Detection(2, 1.0, 6)]
        + [Detection(3, 0.12, None), Detection(4, 0.18, None)]
    )
    assert rows == [
        (pytest.approx(0.15), 0.0, 2),
        (pytest.approx((0.95 + 0.91 + 1) / 3), pytest.approx(2 / 3), 3),
    ]
    assert error == pytest.approx((2 * 0.15 + 3 * (0.95333333 - 0.66666667)) / 5)


def test_boxes_in_the_place_of_masks(content):
    annotations = content["annotations"]
    boxed = without_masks([{**a, "segmentation": []} for a in annotations])
    assert boxed == annotations
