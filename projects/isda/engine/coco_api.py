"""COCO's average precision, by hotcoco where it is installed, else by pycocotools.

Both give the same arrays, bit for bit; hotcoco (Rust, MIT) is tens of times as fast.
Detectron2's own compiled evaluation is missing from the wheel that ``make env`` installs.
"""

import importlib.util
import logging
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools.coco import COCO

__all__ = ["evaluate"]

logger = logging.getLogger(__name__)


def evaluate(
    annotated: COCO,
    results: Sequence[Mapping],
    task: str,
    max_detections: int,
    image_ids: Collection[int] | None = None,
) -> COCOevalMaxDets:
    """Evaluate predictions, and print COCO's summary.

    Args:
        annotated: the annotations.
        results: in COCO's format for results, at least one, with the ids of ``annotated``.
        task: "bbox" or "segm".
        max_detections: of each image and class; AP counts those of the highest scores.
        image_ids: of the images that count; all by default.

    Returns:
        An evaluation with ``params``, ``eval`` ("precision", "recall" and "scores") and ``stats``.
    """
    # With boxes there, the areas of masks would be those of the boxes.
    dropped = "bbox" if task == "segm" else "segmentation"
    results = [{k: v for k, v in result.items() if k != dropped} for result in results]
    obstacle = _obstacle(annotated.dataset, results)
    if obstacle:
        logger.info("%s: evaluated by pycocotools, as %s", task, obstacle)
        evaluation = COCOevalMaxDets(annotated, annotated.loadRes(results), task)
    else:
        import hotcoco

        logger.info("%s: evaluated by hotcoco %s", task, hotcoco.__version__)
        truth = hotcoco.COCO(annotated.dataset)
        evaluation = hotcoco.COCOeval(truth, truth.loadRes(results), task)
    evaluation.params.maxDets = [1, 10, max_detections]
    if image_ids is not None:
        evaluation.params.imgIds = sorted(image_ids)
    evaluation.evaluate()
    evaluation.accumulate()
    summary = evaluation if obstacle else _summary(evaluation, task)
    summary.summarize()
    return summary


def _summary(evaluation, task: str) -> COCOevalMaxDets:
    """hotcoco's arrays where Detectron2 looks for pycocotools'."""
    summary = COCOevalMaxDets(iouType=task)
    summary.params.maxDets = list(evaluation.params.maxDets)
    summary.params.imgIds = list(evaluation.params.imgIds)
    summary.params.catIds = list(evaluation.params.catIds)
    arrays = evaluation.eval
    summary.eval = {name: np.asarray(arrays[name]) for name in ("precision", "recall", "scores")}
    return summary


def _obstacle(annotated: Mapping, results: Sequence[Mapping]) -> str:
    """Why hotcoco cannot be taken, or might not do as pycocotools does; "" if it can."""
    if importlib.util.find_spec("hotcoco") is None:
        return "hotcoco, which is faster, is not installed (pip install hotcoco)"
    images, categories, annotations = (
        [entry["id"] for entry in annotated.get(key, ())]
        for key in ("images", "categories", "annotations")
    )
    for name, ids in (("image", images), ("category", categories), ("annotation", annotations)):
        if not all(isinstance(i, int) and i >= 0 for i in ids):
            return f"not every {name} id is a whole number"
        if len(set(ids)) < len(ids):
            return f"{name} ids stand twice"
    if 0 in annotations:
        return "an annotation has id 0"
    if not {result["image_id"] for result in results} <= set(images):
        return "a prediction is of an unknown image"
    return ""
