"""Summary of a training: curves, its best and worst images, a report."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from isda.data.images import ImageOptions, read_image
from isda.engine.evaluation import PREDICTIONS, evaluation_folder
from isda.engine.hooks import BEST, BEST_PREFIX
from isda.report import write_report
from isda.report.image_quality import ImageQuality, best_threshold, image_qualities
from isda.visualization import (
    class_labels,
    contact_sheet,
    draw_annotations,
    draw_instances,
    plot_curves,
    read_metrics,
    side_by_side,
    write_image,
)

__all__ = ["write_summary"]

logger = logging.getLogger(__name__)

_NUM_PICTURES = 4  # of the best and of the worst images
_SIDE = 560  # pixels, the longer side of a drawn image
_MOST_LABELS = 12  # more of them hide the image


def write_summary(cfg: CfgNode) -> None:
    """Draws curves, the best and the worst images and a report into ``OUTPUT_DIR``.

    The files are ``curves.png``, ``best_images.jpg``, ``worst_images.jpg`` and ``report.html``
    (:func:`isda.report.write_report`). The images are those of the first data set in
    ``DATASETS.TEST`` with the highest and the lowest quality
    (:func:`isda.report.image_quality.image_qualities`), as the weights in ``model_best.pth``
    segment them, beside their ground truth. What cannot be drawn is logged: a training that has
    ended does not fail by its pictures.

    Args:
        cfg: of a training that this process has evaluated. All processes call it together; the
            main one writes.
    """
    if comm.is_main_process():
        _write(cfg)
    comm.synchronize()


def _write(cfg: CfgNode) -> None:
    folder = Path(cfg.OUTPUT_DIR)
    written = []
    for draw in (_draw_curves, _draw_extremes, _draw_report):
        try:
            written += draw(cfg, folder)
        except (OSError, ValueError, cv2.error) as error:
            logger.warning("not all pictures of the training: %s", error)
    _announce(folder, written)


def _draw_curves(cfg: CfgNode, folder: Path) -> list[Path]:
    curves = folder / "curves.png"
    plot_curves({folder.resolve().name: read_metrics(folder / "metrics.json")}, curves)
    return [curves]


def _draw_report(cfg: CfgNode, folder: Path) -> list[Path]:
    return [write_report(folder)]


def _draw_extremes(cfg: CfgNode, folder: Path) -> list[Path]:
    predictions = _predictions_file(cfg)
    if predictions is None:
        return []
    name = cfg.DATASETS.TEST[0]
    content = json.loads(Path(MetadataCatalog.get(name).json_file).read_text(encoding="utf-8"))
    found = json.loads(predictions.read_text(encoding="utf-8"))
    threshold = best_threshold(content, found)
    found = [p for p in found if p["score"] >= threshold and p.get("segmentation")]
    ranked = [q for q in image_qualities(content, found, threshold) if q.annotated]
    count = min(_NUM_PICTURES, -(-len(ranked) // 2))
    sheets = {"best": ranked[:count], "worst": ranked[::-1][: min(count, len(ranked) - count)]}
    logger.info(
        "the best and the worst of %d images, at the score that suits them best, %.2f",
        len(ranked),
        threshold,
    )
    return [
        _draw_sheet(folder / f"{kind}_images.jpg", cfg, qualities, content, found)
        for kind, qualities in sheets.items()
        if qualities
    ]


def _predictions_file(cfg: CfgNode) -> Path | None:
    """Of the best evaluation, else of the last; None if there is none in COCO's format."""
    if not cfg.DATASETS.TEST:
        return None
    folder = Path(evaluation_folder(cfg, cfg.DATASETS.TEST[0]))
    files = [folder / f"{BEST_PREFIX}{PREDICTIONS}", folder / PREDICTIONS]
    return next((file for file in files if file.is_file()), None)


def _draw_sheet(
    path: Path, cfg: CfgNode, qualities: Sequence[ImageQuality], content: dict, found: list[dict]
) -> Path:
    dataset, options = cfg.DATASETS.TEST[0], ImageOptions.from_config(cfg)
    records = {record["image_id"]: record for record in DatasetCatalog.get(dataset)}
    names = {category["id"]: category["name"] for category in content["categories"]}
    rows = []
    for quality in qualities:
        record = records[quality.image_id]
        image = read_image(record["file_name"], "RGB", options)
        predictions = [p for p in found if p["image_id"] == quality.image_id]
        truth = f"{Path(record['file_name']).name}: ground truth, {quality.annotated} instances"
        prediction = f"prediction, {quality.predicted} instances, quality {quality.quality:.2f}"
        rows.append(
            side_by_side(
                {
                    truth: _draw_truth(image, record, dataset),
                    prediction: _draw_predictions(image, predictions, names),
                }
            )
        )
    write_image(path, contact_sheet(rows, 1))
    return path


def _draw_truth(image: np.ndarray, record: dict, dataset: str) -> np.ndarray:
    annotations = record["annotations"]
    return draw_annotations(
        image,
        annotations,
        MetadataCatalog.get(dataset).thing_classes,
        with_labels=len(annotations) <= _MOST_LABELS,
        scale=_SIDE / max(image.shape[:2]),
    )


def _draw_predictions(
    image: np.ndarray, predictions: Sequence[dict], names: dict[int, str]
) -> np.ndarray:
    labels = None
    if len(predictions) <= _MOST_LABELS:
        classes = [names[p["category_id"]] for p in predictions]
        labels = class_labels(range(len(classes)), classes, [p["score"] for p in predictions])
    masks = [p["segmentation"] for p in predictions]
    return draw_instances(image, masks, labels=labels, scale=_SIDE / max(image.shape[:2]))


def _announce(folder: Path, written: Sequence[Path]) -> None:
    best = folder / BEST
    weights = best if best.is_file() else folder / "model_final.pth"
    logger.info(
        "%s holds weights (%s), config.yaml, metrics.json and log.txt%s. Masks on your images: "
        "isda predict --model %s --input IMAGES --output masks",
        folder,
        weights.name,
        "".join(f", {path.name}" for path in written),
        folder,
    )
