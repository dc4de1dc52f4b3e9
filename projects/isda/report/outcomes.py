"""Outcomes of instances and predictions: found, missed, merged, and so on."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pycocotools.mask as mask_util

from isda.data.masks import compressed_rle
from isda.report.scores import CLOSE, Detection

__all__ = ["OF_INSTANCES", "OF_PREDICTIONS", "ImageOutcome", "count_outcomes", "image_outcomes"]

TOUCHING = 0.1  # IoU below which a prediction and an instance have nothing to do with each other
COVERED = 0.5  # share of an instance's pixels from which a prediction has swallowed it

# Each instance, and each prediction, is of the first kind that fits.
OF_INSTANCES = {
    "found": "a prediction of its class overlaps it with IoU 0.5 or more",
    "confused": "only a prediction of another class does",
    "merged": "one prediction covers it and a neighbour, at least half of each",
    "imprecise": "the best prediction overlaps it with IoU between 0.1 and 0.5",
    "missed": "nothing is predicted there",
}
OF_PREDICTIONS = {
    "correct": "overlaps an instance of its class with IoU 0.5 or more",
    "confused": "overlaps so an instance that only other classes were predicted for",
    "double": "overlaps so an instance that another prediction with a higher score has found",
    "merged": "covers two instances or more, at least half of each",
    "imprecise": "its best overlap with an instance is between IoU 0.1 and 0.5",
    "background": "there is nothing",
}


@dataclass
class ImageOutcome:
    """Kinds of an image's instances and predictions."""

    instances: dict[int, str] = field(default_factory=dict)  # annotation id: kind
    predictions: dict[int, str] = field(default_factory=dict)  # index of the prediction: kind
    ious: dict[int, float] = field(default_factory=dict)  # index: IoU with the closest instance


def image_outcomes(
    annotated: Mapping,
    predictions: Sequence[Mapping],
    detections: Sequence[Detection],
    threshold: float,
) -> dict[int | str, ImageOutcome]:
    """The outcome of every image of the file.

    Args:
        annotated: content of a COCO annotation file, every instance with a segmentation.
        predictions: in COCO's format for results, with ``segmentation``.
        detections: which of them count, and what they match, of :class:`Scores`.
        threshold: lowest score of a prediction that counts.
    """
    instances, confident = defaultdict(list), defaultdict(list)
    for annotation in annotated["annotations"]:
        if not annotation.get("iscrowd", 0):
            instances[annotation["image_id"]].append(annotation)
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score >= threshold:
            confident[predictions[detection.index]["image_id"]].append(detection)
    return {
        image["id"]: _outcome(image, instances[image["id"]], confident[image["id"]], predictions)
        for image in annotated["images"]
    }


def _outcome(
    image: Mapping,
    instances: Sequence[Mapping],
    detections: Sequence[Detection],
    predictions: Sequence[Mapping],
) -> ImageOutcome:
    shown = [predictions[detection.index] for detection in detections]
    ious, inside = _overlaps(image, shown, instances)  # (P, G) each
    same = np.array([[p["category_id"] == a["category_id"] for a in instances] for p in shown])
    same = same.reshape(ious.shape).astype(bool)
    matched = {d.annotation_id for d in detections if d.annotation_id is not None}
    found = np.array([a["id"] in matched for a in instances], dtype=bool)
    confusing = (ious >= CLOSE) & ~same & ~found
    swallows = (inside >= COVERED).sum(axis=1) >= 2
    outcome = ImageOutcome()
    for row, detection in enumerate(detections):
        closest = ious[row].max(initial=0)
        outcome.ious[detection.index] = float(closest)
        outcome.predictions[detection.index] = _first(
            (detection.annotation_id is not None, "correct"),
            (confusing[row].any(), "confused"),
            (closest >= CLOSE, "double"),
            (swallows[row], "merged"),
            (closest >= TOUCHING, "imprecise"),
            (True, "background"),
        )
    for column, annotation in enumerate(instances):
        outcome.instances[annotation["id"]] = _first(
            (found[column], "found"),
            (confusing[:, column].any(), "confused"),
            ((swallows & (inside[:, column] >= COVERED)).any(), "merged"),
            (ious[:, column].max(initial=0) >= TOUCHING, "imprecise"),
            (True, "missed"),
        )
    return outcome


def _first(*kinds: tuple[bool, str]) -> str:
    return next(kind for holds, kind in kinds if holds)


def _overlaps(
    image: Mapping, predictions: Sequence[Mapping], instances: Sequence[Mapping]
) -> tuple[np.ndarray, np.ndarray]:
    """IoU, and which share of each instance is inside each prediction."""
    shape = (len(predictions), len(instances))
    if 0 in shape:
        return np.zeros(shape), np.zeros(shape)
    size = image["height"], image["width"]
    first = [compressed_rle(p["segmentation"], size) for p in predictions]
    second = [compressed_rle(a["segmentation"], size) for a in instances]
    ious = np.asarray(mask_util.iou(first, second, [False] * len(second))).reshape(shape)
    # With a crowd COCO's code divides by the area of the other one alone.
    inside = np.asarray(mask_util.iou(second, first, [True] * len(first))).reshape(shape[::-1])
    return ious, inside.T


def count_outcomes(outcomes: Mapping[int | str, ImageOutcome]) -> tuple[Counter, Counter]:
    """How many instances and how many predictions are of each kind."""
    instances = Counter(dict.fromkeys(OF_INSTANCES, 0))
    predictions = Counter(dict.fromkeys(OF_PREDICTIONS, 0))
    for outcome in outcomes.values():
        instances.update(outcome.instances.values())
        predictions.update(outcome.predictions.values())
    return instances, predictions
