import itertools

import numpy as np
import pycocotools.mask as mask_util
import pytest

from isda.report.image_quality import best_threshold, image_qualities

SIZE = (40, 60)  # height, width


def mask(x, y, width, height):
    pixels = np.zeros(SIZE, dtype=bool)
    pixels[y : y + height, x : x + width] = True
    return pixels


def rle(pixels):
    encoded = mask_util.encode(np.asfortranarray(pixels, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def annotation(pixels, image_id=1, category_id=1, iscrowd=0):
    ids = {"image_id": image_id, "category_id": category_id, "iscrowd": iscrowd}
    return {**ids, "segmentation": rle(pixels)}


def prediction(pixels, score=0.9, image_id=1, category_id=1):
    ids = {"image_id": image_id, "category_id": category_id}
    return {**ids, "score": score, "segmentation": rle(pixels)}


def content(*annotations, images=(1,)):
    records = [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in images]
    return {"images": records, "annotations": list(annotations)}


LEFT, RIGHT = mask(2, 2, 10, 10), mask(30, 5, 12, 20)


def one(annotated, predictions, threshold=0.5):
    (quality,) = image_qualities(annotated, predictions, threshold)
    return quality


def test_exact_masks_give_one_and_none_give_zero():
    annotated = content(annotation(LEFT), annotation(RIGHT, category_id=2))
    exact = [prediction(RIGHT, category_id=2), prediction(LEFT)]
    assert one(annotated, exact) == (1, 1.0, 2, 2, 2)
    assert one(annotated, []) == (1, 0.0, 2, 0, 0)
    assert one(annotated, [prediction(LEFT)]).quality == pytest.approx(2 / 3)
    swapped = [prediction(LEFT, category_id=2), prediction(RIGHT)]
    assert one(annotated, swapped) == (1, 0.0, 2, 2, 0)


def test_an_image_without_instances():
    assert one(content(), []) == (1, 1.0, 0, 0, 0)
    assert one(content(), [prediction(LEFT)]) == (1, 0.0, 0, 1, 0)


def test_polygons_and_runs_are_the_same_mask():
    polygon = [[2, 2, 12, 2, 12, 12, 2, 12]]
    runs = np.diff([0, *np.flatnonzero(np.diff(LEFT.flatten(order="F"))) + 1, LEFT.size])
    for segmentation in (polygon, {"size": list(SIZE), "counts": runs.tolist()}):
        annotated = content({**annotation(LEFT), "segmentation": segmentation})
        assert one(annotated, [prediction(LEFT)]).quality == 1


def test_against_all_pairings():
    """Random rectangles: the definition written out, with every possible pairing tried."""
    rng = np.random.default_rng(0)

    def rectangle():
        x, y, width, height = rng.integers((0, 0, 5, 5), (40, 25, 20, 15))
        return mask(x, y, width, height)

    for annotated, predicted in itertools.product(range(1, 4), range(1, 5)):
        truth = [rectangle() for _ in range(annotated)]
        found = [rectangle() for _ in range(predicted)]
        iou = [[(t & f).sum() / (t | f).sum() for f in found] for t in truth]
        few, many = sorted((annotated, predicted))
        pairs = [list(zip(range(few), order)) for order in itertools.permutations(range(many), few)]
        if annotated > predicted:
            pairs = [[(t, f) for f, t in pairing] for pairing in pairs]
        best = max(sum(iou[t][f] for t, f in pairing) for pairing in pairs)
        quality = one(content(*map(annotation, truth)), list(map(prediction, found)))
        assert quality.quality == pytest.approx(2 * best / (annotated + predicted))


def test_what_lies_in_a_crowd_does_not_count():
    crowd = annotation(mask(25, 0, 30, 40), iscrowd=1)
    inside = prediction(RIGHT)
    assert one(content(annotation(LEFT), crowd), [prediction(LEFT), inside]) == (1, 1.0, 1, 1, 1)
    # An instance that is annotated in a crowd is one all the same.
    annotated = content(annotation(LEFT), annotation(RIGHT), crowd)
    assert one(annotated, [prediction(LEFT), inside]) == (1, 1.0, 2, 2, 2)
    outside = prediction(mask(15, 0, 11, 10))
    assert one(content(annotation(LEFT), crowd), [prediction(LEFT), outside]).predicted == 2


def test_ranking_from_best_to_worst():
    half = mask(2, 2, 5, 10)
    annotated = content(*(annotation(LEFT, i) for i in (1, 2, 3)), images=(1, 2, 3, 4))
    predictions = [prediction(half, image_id=1), prediction(LEFT, image_id=3)]
    ranked = image_qualities(annotated, predictions, 0.5)
    assert [q.image_id for q in ranked] == [3, 4, 1, 2]  # 4 is empty, so below 3
    assert [q.quality for q in ranked] == [1, 1, 0.5, 0]


def test_the_threshold_is_the_scores_that_separate():
    annotated = content(annotation(LEFT), annotation(RIGHT))
    predictions = [
        prediction(LEFT, 0.42),
        prediction(RIGHT, 0.38),
        prediction(mask(15, 20, 8, 8), 0.32),
    ]
    assert best_threshold(annotated, predictions) == 0.35
    assert one(annotated, predictions, None).quality == 1
    assert one(annotated, predictions, 0.5).quality == 0
    assert one(annotated, predictions, 0.3).quality == pytest.approx(4 / 5)
