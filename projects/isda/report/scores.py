"""COCO's evaluation with what its summary leaves out: curves, classes by size, single matches."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

__all__ = ["CLOSE", "Detection", "Scores", "calibration", "without_masks"]

CLOSE = 0.5  # IoU from which a prediction counts as found here; COCO's AP50
_PERCENT = 100.0


class Detection(NamedTuple):
    """A prediction, and the instance that COCO's evaluation gives it at IoU 0.5."""

    index: int  # in the list of predictions
    score: float
    annotation_id: int | None  # None: a false alarm


class Scores:
    """Average precision and recall (COCO's, in percent), as ``COCOeval`` computes them.

    Every figure is NaN where nothing is annotated.
    """

    def __init__(
        self,
        annotated: Mapping,
        predictions: Sequence[Mapping],
        task: str,
        max_detections: int = 100,
    ):
        """
        Args:
            annotated: content of a COCO annotation file.
            predictions: in COCO's format for results, at least one, ids as in the file.
            task: "segm" or "bbox".
            max_detections: per image and class, ``TEST.DETECTIONS_PER_IMAGE`` if above 100.

        Raises:
            ValueError: there is no prediction, or one is of an image that is not annotated.
        """
        known = {image["id"] for image in annotated["images"]}
        strange = [p["image_id"] for p in predictions if p["image_id"] not in known]
        if not predictions or strange:
            what = f"image id {strange[0]} is not in the annotations" if strange else "none there"
            raise ValueError(f"predictions cannot be evaluated: {what}")
        self.task = task
        self._evaluation = _evaluate(annotated, predictions, task, max(max_detections, 100))
        self._params = self._evaluation.params

    @property
    def max_detections(self) -> tuple[int, ...]:
        """The numbers of detections per image that recall is stated for."""
        return tuple(self._params.maxDets)

    def ap(
        self, *, iou: float | None = None, area: str = "all", category: int | None = None
    ) -> float:
        """Average precision, over IoU from 0.5 to 0.95 or at one."""
        precision = self._evaluation.eval["precision"]  # (IoUs, recalls, classes, areas, limits)
        values = precision[self._ious(iou)][:, :, self._categories(category), self._area(area), -1]
        return _mean(values)

    def ar(
        self, *, area: str = "all", category: int | None = None, max_detections: int | None = None
    ) -> float:
        """Average recall over IoU from 0.5 to 0.95, with the best detections of each image."""
        limits = self.max_detections
        limit = len(limits) - 1 if max_detections is None else limits.index(max_detections)
        recall = self._evaluation.eval["recall"]  # (IoUs, classes, areas, limits)
        return _mean(recall[:, self._categories(category), self._area(area), limit])

    def curve(self, iou: float) -> tuple[np.ndarray, np.ndarray]:
        """Recall, and the precision there, which classes contribute to alike; both in [0, 1]."""
        precision = self._evaluation.eval["precision"][self._ious(iou)][0, :, :, 0, -1]
        annotated = (precision > -1).all(axis=0)
        if not annotated.any():
            return np.empty(0), np.empty(0)
        return np.asarray(self._params.recThrs), precision[:, annotated].mean(axis=1)

    def detections(self) -> list[Detection]:
        """All predictions that count, without those inside crowds or beyond the limit."""
        everything = self._params.areaRng[0]
        found = []
        for image in self._evaluation.evalImgs:
            if image is None or image["aRng"] != everything:
                continue
            columns = (image["dtIds"], image["dtScores"], image["dtMatches"][0])
            for number, score, match, ignored in zip(*columns, image["dtIgnore"][0]):
                if not ignored:
                    # loadRes counts predictions from 1.
                    found.append(Detection(number - 1, float(score), int(match) or None))
        return found

    def _ious(self, iou: float | None) -> np.ndarray:
        ious = self._params.iouThrs
        return np.arange(len(ious)) if iou is None else np.flatnonzero(np.isclose(ious, iou))

    def _categories(self, category: int | None) -> slice:
        if category is None:
            return slice(None)
        index = list(self._params.catIds).index(category)
        return slice(index, index + 1)

    def _area(self, area: str) -> int:
        return self._params.areaRngLbl.index(area)


def _evaluate(
    annotated: Mapping, predictions: Sequence[Mapping], task: str, max_detections: int
) -> COCOeval:
    truth = COCO()
    # Copies: COCO's code writes into what it is given.
    truth.dataset = {**annotated, "annotations": [dict(a) for a in annotated["annotations"]]}
    truth.dataset.setdefault("info", {})  # which loadRes copies
    # With boxes there, areas would be those of the boxes.
    dropped = "bbox" if task == "segm" else "segmentation"
    results = [{k: v for k, v in p.items() if k != dropped} for p in predictions]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it is doing
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), task)
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean()) * _PERCENT if values.size else float("nan")


def calibration(
    detections: Sequence[Detection], bins: int = 10
) -> tuple[list[tuple[float, float, int]], float]:
    """How often predictions of a score are right at IoU 0.5.

    Args:
        bins: parts of equal width that [0, 1] is divided into.

    Returns:
        Per part that has predictions their mean score, the share that is right, and their number;
        and the expected calibration error (Guo et al., arXiv 1706.04599, eq. 3).
    """
    scores = np.array([d.score for d in detections])
    right = np.array([d.annotation_id is not None for d in detections])
    part = np.minimum((scores * bins).astype(int), bins - 1)
    rows = [
        (float(scores[part == i].mean()), float(right[part == i].mean()), int((part == i).sum()))
        for i in range(bins)
        if (part == i).any()
    ]
    error = sum(abs(score - share) * count for score, share, count in rows)
    return rows, error / max(len(detections), 1)


def without_masks(instances: Sequence[Mapping]) -> list[dict]:
    """The same instances with their boxes as masks, for models that predict boxes only."""
    return [{**instance, "segmentation": [_corners(instance["bbox"])]} for instance in instances]


def _corners(box: Sequence[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]
