"""A file of predictions in COCO's format, beside the ground truth."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from detectron2.data.catalog import Metadata

from isda.data.images import read_image
from isda.visualization import class_labels, draw_annotations, draw_instances, side_by_side

__all__ = ["draw_beside_truth", "read_predictions"]


def read_predictions(path: str, threshold: float) -> dict[int, list[dict]]:
    """``{image id: predictions}`` with scores of at least ``threshold``, the best first.

    Raises:
        OSError: there is no such file.
        ValueError: it is not a list of COCO predictions.
    """
    try:
        predictions = json.loads(Path(path).read_text(encoding="utf-8"))
        by_image = defaultdict(list)
        for prediction in sorted(predictions, key=lambda p: -p["score"]):
            if prediction["score"] >= threshold:
                by_image[prediction["image_id"]].append(prediction)
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not a list of predictions in COCO's format, with image_id, category_id and "
            f"score each ({type(error).__name__}: {error})"
        ) from error
    return by_image


def class_indices(predictions: list[dict], metadata: Metadata, path: str) -> list[int]:
    """Indices into the metadata's class names.

    Raises:
        ValueError: a category id is not the data set's.
    """
    to_index = metadata.get("thing_dataset_id_to_contiguous_id", None)
    if to_index is None:  # as LVIS, whose ids count from 1 without gaps
        to_index = {index + 1: index for index in range(len(metadata.thing_classes))}
    ids = [prediction["category_id"] for prediction in predictions]
    if unknown := sorted(set(ids) - set(to_index)):
        raise ValueError(
            f"{path} has category ids that {metadata.name} lacks, such as {unknown[0]}: is it of "
            "another data set?"
        )
    return [to_index[category_id] for category_id in ids]


def draw_beside_truth(
    record: dict,
    predictions: list[dict],
    metadata: Metadata,
    path: str,
    *,
    with_labels: bool = True,
) -> np.ndarray:
    """Predictions and ground truth of one image, side by side.

    Args:
        path: of the predictions, for messages.

    Raises:
        ValueError: a category id is not the data set's.
    """
    image, names = read_image(record["file_name"], "RGB"), metadata.thing_classes
    labels = None
    if with_labels:
        indices = class_indices(predictions, metadata, path)
        labels = class_labels(indices, names, [p["score"] for p in predictions])
    masks = [p["segmentation"] for p in predictions if p.get("segmentation")]
    boxes = None
    if len(masks) < len(predictions):  # a file of boxes
        masks, boxes = None, [xyxy(p["bbox"]) for p in predictions]
    annotations = record.get("annotations", [])
    return side_by_side(
        {
            f"predictions: {len(predictions)}": draw_instances(
                image, masks, boxes=boxes, labels=labels
            ),
            f"ground truth: {len(annotations)}": draw_annotations(
                image, annotations, names, with_labels=with_labels
            ),
        }
    )


def xyxy(box: list[float]) -> list[float]:
    """COCO's (x, y, width, height) as two corners."""
    x, y, width, height = box
    return [x, y, x + width, y + height]
