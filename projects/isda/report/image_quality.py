"""Segmentation quality of single images, to rank them: AP is of a whole data set only."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pycocotools.mask as mask_util
from scipy.optimize import linear_sum_assignment

from isda.data.masks import compressed_rle

__all__ = ["ImageQuality", "best_threshold", "image_qualities"]

_THRESHOLDS = tuple(step / 20 for step in range(1, 20))
# A prediction of which this share lies in a crowd is a part of it, unless its IoU with an
# annotated instance says that it is that one.
_IN_CROWD = 0.5
_IS_MATCH = 0.5


class ImageQuality(NamedTuple):
    """What became of one image."""

    image_id: int | str
    quality: float  # from 0 to 1
    annotated: int  # instances, without crowds
    predicted: int  # instances above the threshold, without those of crowds
    matched: int  # pairs that overlap


class _Image(NamedTuple):
    """Annotated and predicted instances of one image and class, ready for any threshold."""

    scores: np.ndarray  # (P,)
    ious: np.ndarray  # (P, G)
    in_crowd: np.ndarray  # (P,) bool


def image_qualities(
    annotated: Mapping, predictions: Sequence[Mapping], threshold: float | None = None
) -> list[ImageQuality]:
    """The quality of each image's masks, best first.

    Predicted and annotated instances of a class are paired such that the sum of their IoU is the
    largest; quality is 2 Σ IoU / (annotated + predicted), over all classes. That is panoptic
    quality (arXiv 1801.00868, eq. 1) without its limit of IoU 0.5, which would call a bad mask
    and none the same: 1 where every mask is exact, 0 where nothing overlaps. An image without
    instances has 1 when nothing is predicted. Predictions inside a crowd do not count.

    Args:
        annotated: content of a COCO annotation file.
        predictions: in COCO's format for results, with ``segmentation``, ids as in the file.
        threshold: lowest score of a prediction that counts; None takes :func:`best_threshold`.

    Returns:
        One entry per image of the file; among equal ones those with more instances first.
    """
    images = _prepare(annotated, predictions)
    threshold = _best_threshold(images) if threshold is None else threshold
    qualities = [_quality(image_id, parts, threshold) for image_id, parts in images.items()]
    return sorted(qualities, key=lambda q: (-q.quality, -q.annotated, str(q.image_id)))


def best_threshold(annotated: Mapping, predictions: Sequence[Mapping]) -> float:
    """The score, in steps of 0.05, with the best mean quality: for ``--confidence-threshold``.

    Takes what :func:`image_qualities` takes.
    """
    return _best_threshold(_prepare(annotated, predictions))


def _best_threshold(images: Mapping[int | str, list[_Image]]) -> float:
    def mean(threshold: float) -> float:
        return sum(_quality(i, parts, threshold).quality for i, parts in images.items())

    return max(_THRESHOLDS, key=mean)


def _quality(image_id: int | str, parts: Sequence[_Image], threshold: float) -> ImageQuality:
    overlap, annotated, predicted, matched = 0.0, 0, 0, 0
    for part in parts:
        ious = part.ious[(part.scores >= threshold) & ~part.in_crowd]
        pairs = ious[linear_sum_assignment(ious, maximize=True)]
        overlap += float(pairs.sum())
        matched += int((pairs > 0).sum())
        predicted += ious.shape[0]
        annotated += ious.shape[1]
    total = annotated + predicted
    return ImageQuality(
        image_id, 2 * overlap / total if total else 1.0, annotated, predicted, matched
    )


def _prepare(annotated: Mapping, predictions: Sequence[Mapping]) -> dict[int | str, list[_Image]]:
    """Per image its classes' instances; every image of the file is there."""
    truth = _by_image_and_class(annotated["annotations"])
    found = _by_image_and_class(predictions)
    images: dict[int | str, list[_Image]] = {}
    for image in annotated["images"]:
        ours, theirs = truth.get(image["id"], {}), found.get(image["id"], {})
        images[image["id"]] = [
            _image_of_class(image, ours.get(category, ()), theirs.get(category, ()))
            for category in sorted(ours.keys() | theirs.keys())
        ]
    return images


def _by_image_and_class(instances: Sequence[Mapping]) -> dict[int | str, dict[int, list[Mapping]]]:
    grouped: dict = defaultdict(lambda: defaultdict(list))
    for instance in instances:
        if instance.get("segmentation"):
            grouped[instance["image_id"]][instance["category_id"]].append(instance)
    return grouped


def _image_of_class(
    image: Mapping, annotations: Sequence[Mapping], predictions: Sequence[Mapping]
) -> _Image:
    size = (image["height"], image["width"])
    is_crowd = [bool(annotation.get("iscrowd", 0)) for annotation in annotations]
    masks = [compressed_rle(annotation["segmentation"], size) for annotation in annotations]
    predicted = [compressed_rle(prediction["segmentation"], size) for prediction in predictions]
    # With a crowd pycocotools divides by the prediction alone, not by the union.
    ious = np.zeros((len(predicted), len(masks)))
    if predicted and masks:
        ious = np.asarray(mask_util.iou(predicted, masks, is_crowd)).reshape(ious.shape)
    crowds = np.asarray(is_crowd, dtype=bool)
    in_crowd = ious[:, crowds].max(axis=1, initial=0) >= _IN_CROWD
    in_crowd &= ious[:, ~crowds].max(axis=1, initial=0) < _IS_MATCH
    scores = np.array([prediction["score"] for prediction in predictions], dtype=float)
    return _Image(scores, ious[:, ~crowds], in_crowd)
