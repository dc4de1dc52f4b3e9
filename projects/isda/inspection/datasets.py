"""Pictures of a data set: as it is annotated, and as the model gets it after augmentation."""

from collections.abc import Iterator

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb

from isda.data.images import ImageOptions, read_image
from isda.engine.loader import training_dicts
from isda.engine.trainer import Trainer
from isda.visualization import class_labels, draw_annotations, draw_instances

__all__ = ["annotated", "loaded"]


def annotated(cfg: CfgNode, with_labels: bool) -> Iterator[tuple[str, np.ndarray]]:
    """File name and picture of every training image."""
    options = ImageOptions.from_config(cfg)
    for dataset in cfg.DATASETS.TRAIN:
        names = MetadataCatalog.get(dataset).get("thing_classes", None)
        for record in DatasetCatalog.get(dataset):
            image = read_image(record["file_name"], "RGB", options)
            annotations = record.get("annotations", [])
            yield (
                record["file_name"],
                draw_annotations(image, annotations, names, with_labels=with_labels),
            )


def loaded(cfg: CfgNode, with_labels: bool) -> Iterator[tuple[str, np.ndarray]]:
    """File name and picture of the images as training reads them, without an end."""
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", None)
    for batch in Trainer.build_train_loader(cfg, training_dicts(cfg)):
        for example in batch:
            image = example["image"].permute(1, 2, 0)
            image = convert_image_to_rgb(image, cfg.INPUT.FORMAT)
            instances = example["instances"]
            labels = None
            if with_labels:
                labels = class_labels(instances.gt_classes.tolist(), names)
            masks = instances.gt_masks if instances.has("gt_masks") else None
            boxes = instances.gt_boxes if with_labels or masks is None else None
            yield example["file_name"], draw_instances(image, masks, boxes=boxes, labels=labels)
