import numpy as np
import pytest
from examples_of_reports import random_case, rectangle, rle

from isda.report.outcomes import OF_INSTANCES, OF_PREDICTIONS, count_outcomes, image_outcomes
from isda.report.scores import Scores


def outcomes_of(content, predictions, threshold=0.0):
    detections = Scores(content, predictions, "segm").detections()
    return image_outcomes(content, predictions, detections, threshold)


def test_every_kind_in_constructed_images(content, predictions):
    found = outcomes_of(content, predictions)
    # Ids and indices count through conftest's lists.
    assert found[1].instances == {1: "found", 2: "found"}
    assert found[1].predictions == {0: "correct", 1: "correct"}
    # 41 x 20 over two of 20 x 20: IoU 0.49 with each.
    assert found[2].instances == {3: "merged", 4: "merged", 5: "missed"}
    assert found[2].predictions == {2: "merged"}
    assert found[3].instances == {6: "found", 7: "confused"}
    assert found[3].predictions == {3: "correct", 5: "confused", 4: "double"}
    assert found[3].ious[4] == pytest.approx(27 / 30)
    assert found[4].instances == found[4].predictions == {}


def one_image(content, annotation_boxes, prediction_boxes):
    annotations = [
        {"id": i + 1, "image_id": 4, "category_id": 3, "iscrowd": 0, "bbox": list(box)}
        | {"area": box[2] * box[3], "segmentation": rectangle(*box)}
        for i, box in enumerate(annotation_boxes)
    ]
    predictions = [
        {"image_id": 4, "category_id": 3, "score": 0.9 - i / 10, "segmentation": rle(*box, 60, 90)}
        for i, box in enumerate(prediction_boxes)
    ]
    return outcomes_of(content | {"annotations": annotations}, predictions)[4]


def test_a_part_of_an_instance_is_imprecise_and_the_rest_background(content):
    found = one_image(content, [(10, 10, 40, 20)], [(10, 10, 10, 20), (60, 40, 10, 10)])
    assert found.instances == {1: "imprecise"}
    assert found.predictions == {0: "imprecise", 1: "background"}


@pytest.mark.parametrize("x, width, kind", [(18, 24, "merged"), (22, 16, "imprecise")])
def test_two_are_merged_where_half_of_each_is_covered(content, x, width, kind):
    """60 and 40 percent of two neighbours."""
    found = one_image(content, [(10, 10, 20, 20), (30, 10, 20, 20)], [(x, 10, width, 20)])
    assert found.instances == {1: kind, 2: kind}
    assert found.predictions == {0: kind}


def test_a_correct_mask_that_swallows_a_small_neighbour_merges_it(content):
    found = one_image(content, [(10, 10, 40, 20), (50, 10, 6, 20)], [(10, 10, 46, 20)])
    assert found.instances == {1: "found", 2: "merged"}
    assert found.predictions == {0: "correct"}


def test_below_the_threshold_nothing_is_predicted(content, predictions):
    found = outcomes_of(content, predictions, threshold=0.88)
    instances, counted = count_outcomes(found)
    assert counted.total() == 3
    # The prediction of instance 2 has a score of 0.8.
    assert found[1].instances == {1: "found", 2: "missed"}
    assert instances["found"] == 2


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_kinds_add_up_and_agree_with_cocos_recall(threshold):
    content, predictions = random_case(seed=7)
    confident = [p for p in predictions if p["score"] >= threshold]
    instances, counted = count_outcomes(outcomes_of(content, predictions, threshold))
    real = [a for a in content["annotations"] if not a["iscrowd"]]
    assert instances.total() == len(real)
    assert list(instances) == list(OF_INSTANCES) and list(counted) == list(OF_PREDICTIONS)
    scores = Scores(content, confident, "segm")
    assert counted.total() == len(scores.detections())
    assert instances["found"] == counted["correct"] > 0
    # Weighted by their instances, the recalls of the classes count what is found.
    recall = scores._evaluation.eval["recall"][0, :, 0, -1]
    sizes = [sum(a["category_id"] == i for a in real) for i in (1, 2, 3)]
    assert instances["found"] == pytest.approx(float(np.dot(recall, sizes)))
