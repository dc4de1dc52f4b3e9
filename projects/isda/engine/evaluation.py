"""Evaluators of data sets."""

import logging
import os

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    LVISEvaluator,
)
from detectron2.utils import comm

from isda import strict_json
from isda.data.packages import prepare_packages
from isda.engine.architectures import has_masks
from isda.engine.coco_api import evaluate
from isda.engine.coco_results import coco_results
from isda.files import replaced_files, write_text

__all__ = ["PREDICTIONS", "CheckedCOCOEvaluator", "build_evaluator", "evaluation_folder"]

logger = logging.getLogger(__name__)

PREDICTIONS = "coco_instances_results.json"  # as COCOEvaluator calls its file

MAX_DETECTIONS = "max_detections"  # beside AP in results: of each image and class, LVIS: image

_COCO_MAX_DETECTIONS = 100


def evaluation_folder(cfg: CfgNode, dataset_name: str) -> str:
    """Where the evaluation of ``dataset_name`` leaves its files."""
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    return os.path.join(folder, dataset_name) if len(cfg.DATASETS.TEST) > 1 else folder


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """The evaluator that belongs to the data set's ``evaluator_type``.

    COCO's AP looks at the 100 best detections of an image. Where ``TEST.DETECTIONS_PER_IMAGE``
    allows more, because images hold more instances than that, so does the evaluation. With
    ``TEST.TILES`` it looks at all, as each window may have so many.

    Raises:
        MissingPackageError: a package that the evaluation needs is not installed.
        ValueError: the type is unknown.
    """
    metadata = MetadataCatalog.get(dataset_name)
    # Data sets that a user registers without a type are evaluated as COCO does.
    kind = metadata.get("evaluator_type", "coco")
    tasks = ("bbox", "segm") if has_masks(cfg) else ("bbox",)
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    prepare_packages([dataset_name])
    if kind == "coco":
        return CheckedCOCOEvaluator(
            dataset_name,
            tasks,
            output_dir=output_folder,
            max_dets_per_image=limit if limit > _COCO_MAX_DETECTIONS else None,
            all_detections=cfg.TEST.TILES.MODE != "off",
        )
    if kind == "lvis":
        return CheckedLVISEvaluator(
            dataset_name, tasks, output_dir=output_folder, max_dets_per_image=limit
        )
    if kind == "cityscapes_instance":
        return CityscapesInstanceEvaluator(dataset_name)
    raise ValueError(
        f"data set '{dataset_name}' has evaluator_type {kind!r}; there are evaluators for coco, "
        "lvis and cityscapes_instance: set MetadataCatalog.get(name).evaluator_type"
    )


class _WholeFiles:
    """Lets one of Detectron2's evaluators replace the files of an earlier evaluation all at once.

    They write while they evaluate: a kill would leave half of a file, or files of two evaluations.
    """

    _output_dir: str | None

    def evaluate(self, *args, **kwargs):
        folder = self._output_dir
        if not folder or not comm.is_main_process():
            return super().evaluate(*args, **kwargs)
        try:
            with replaced_files(folder) as self._output_dir:
                return super().evaluate(*args, **kwargs)
        finally:
            self._output_dir = folder


class _EncodedMasks:
    """Keeps masks that are encoded as they are."""

    _predictions: list[dict]

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Of each image, as Detectron2 calls it."""
        for x, output in zip(inputs, outputs, strict=True):
            found = coco_results(output["instances"], x["image_id"])
            self._predictions.append({"image_id": x["image_id"], "instances": found})


class CheckedLVISEvaluator(_WholeFiles, _EncodedMasks, LVISEvaluator):
    """LVISEvaluator whose files are whole, and whose undefined values are NaN."""

    def _eval_predictions(self, predictions: list[dict]) -> None:
        super()._eval_predictions(predictions)
        for values in self._results.values():
            values[MAX_DETECTIONS] = self._max_dets_per_image


class CheckedCOCOEvaluator(_WholeFiles, _EncodedMasks, COCOEvaluator):
    """COCOEvaluator that explains an AP of 0 or none at all where the ids are at fault."""

    def __init__(self, *args, all_detections: bool = False, **kwargs):
        """
        Args:
            all_detections: AP takes as many detections of each image as the richest one has.
        """
        super().__init__(*args, use_fast_impl=False, **kwargs)  # isda.engine.coco_api evaluates
        self._all_detections = all_detections

    def _eval_predictions(self, predictions: list[dict], img_ids=None) -> None:
        predictions, number = _finite(predictions)
        if number:
            logger.warning(
                "%s: %d predictions are left out, whose score or box is not a finite number: did "
                "the training diverge?",
                self._metadata.name,
                number,
            )
        for problem in id_problems(self._coco_api.dataset, predictions, self._category_ids()):
            logger.warning("%s: %s", self._metadata.name, problem)
        results = self._with_dataset_ids(predictions)
        if self._output_dir:
            write_text(os.path.join(self._output_dir, PREDICTIONS), strict_json.dumps(results))
        if not self._do_evaluation:
            logger.info("%s has no annotations to evaluate predictions with", self._metadata.name)
            return
        limit = self._limit(predictions)
        logger.info(
            "%s: AP counts the best %d detections of each image and class",
            self._metadata.name,
            limit,
        )
        names = self._metadata.get("thing_classes")
        for task in sorted(self._tasks):
            evaluation = None  # COCO's code makes nothing of no predictions
            if results:
                evaluation = evaluate(self._coco_api, results, task, limit, img_ids)
            values = self._derive_coco_results(evaluation, task, class_names=names)
            self._results[task] = {**values, MAX_DETECTIONS: limit}

    def _limit(self, predictions: list[dict]) -> int:
        """Of the detections of an image and class that AP counts."""
        limit = self._max_dets_per_image[2]
        if not self._all_detections:
            return limit
        return max(limit, *(len(found.get("instances", ())) for found in predictions))

    def _with_dataset_ids(self, predictions: list[dict]) -> list[dict]:
        """COCO's results of all images, with the classes' ids of the annotation file."""
        found = [instance for p in predictions for instance in p.get("instances", ())]
        ids = self._category_ids()
        if ids is None:
            return found
        strange = next((f["category_id"] for f in found if f["category_id"] not in ids), None)
        if strange is not None:
            raise ValueError(
                f"class {strange} is predicted, and '{self._metadata.name}' has {len(ids)} "
                "classes, which are counted from 0"
            )
        return [{**f, "category_id": ids[f["category_id"]]} for f in found]

    def _category_ids(self) -> dict[int, int] | None:
        """Dataset id of each predicted class; None where they are the same."""
        ids = self._metadata.get("thing_dataset_id_to_contiguous_id")
        return ids and {contiguous: dataset for dataset, contiguous in ids.items()}


def _finite(predictions: list[dict]) -> tuple[list[dict], int]:
    """What has an order, because score and box are numbers; and how many instances have not."""
    kept = []
    for of_image in predictions:
        finite = [
            found
            for found in of_image.get("instances", [])
            if np.isfinite([found["score"], *found["bbox"]]).all()
        ]
        kept.append({**of_image, "instances": finite} if "instances" in of_image else of_image)
    counts = [sum(len(p.get("instances", ())) for p in some) for some in (predictions, kept)]
    return kept, counts[0] - counts[1]


def id_problems(
    annotated: dict, predictions: list[dict], category_ids: dict[int, int] | None
) -> list[str]:
    """What makes an evaluation meaningless: nothing to find, or ids without any overlap.

    Args:
        annotated: a COCO JSON's content.
        predictions: per image ``image_id`` and ``instances``, a list with ``category_id``.
        category_ids: from predicted classes to the ids of the JSON.
    """
    annotations = [a for a in annotated.get("annotations", []) if not a.get("iscrowd", 0)]
    if "annotations" not in annotated:
        return []  # a test set, to be evaluated elsewhere
    if not annotations:
        return ["the annotation file has no annotations besides crowds, so AP is undefined"]
    problems = []
    images = {image["id"] for image in annotated["images"]}
    predicted_images = {p["image_id"] for p in predictions}
    if predicted_images.isdisjoint(images):
        problems.append(_disjoint("image", predicted_images, images))
    classes = {i["category_id"] for p in predictions for i in p.get("instances", [])}
    predicted = {(category_ids or {}).get(c, c) for c in classes}
    categories = {a["category_id"] for a in annotations}
    if predicted and predicted.isdisjoint(categories):
        problems.append(_disjoint("category", predicted, categories))
    return problems


def _disjoint(kind: str, predicted: set, annotated: set) -> str:
    return (
        f"no predicted {kind} id is annotated, so AP will be 0: predicted {_some(predicted)}, "
        f"annotated {_some(annotated)}; was the model trained on another data set?"
    )


def _some(ids: set) -> str:
    return ", ".join(map(str, sorted(ids, key=str)[:5])) + (", …" if len(ids) > 5 else "")
