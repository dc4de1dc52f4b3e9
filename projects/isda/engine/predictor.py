"""A trained model applied to single images."""

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from detectron2.structures import Instances

from isda.checkpoint import Checkpointer
from isda.data.classes import class_names_of
from isda.engine.setup import node_with_classes, uses_cuda

__all__ = ["Predictor", "confident"]


class Predictor:
    """The model of a config with the weights that ``MODEL.WEIGHTS`` names.

    Like Detectron2's ``DefaultPredictor``, but it refuses weights that leave a part of the model
    untrained, and takes the number of classes from the data set's metadata.
    """

    def __init__(self, cfg: CfgNode):
        """
        Raises:
            FileNotFoundError: there is no such file.
            ValueError: ``MODEL.WEIGHTS`` is empty, or does not hold the whole model.
        """
        cfg = cfg.clone()
        cfg.defrost()
        if not cfg.MODEL.WEIGHTS:
            raise ValueError(
                "MODEL.WEIGHTS is empty, so the model would be untrained: name the file of a "
                "training, as in MODEL.WEIGHTS output/model_final.pth"
            )
        if cfg.MODEL.DEVICE.startswith("cuda") and not uses_cuda(cfg.MODEL.DEVICE):
            cfg.MODEL.DEVICE = "cpu"
        self.class_names = _class_names(cfg)
        node = cfg.MODEL[node_with_classes(cfg)]
        if node.NUM_CLASSES == 0:
            node.NUM_CLASSES = len(self.class_names or ())
        self.model = build_model(cfg).eval()
        min_matched = cfg.MODEL.WEIGHTS_MIN_MATCHED
        checkpointer = Checkpointer if min_matched == 0 else _WholeModelCheckpointer
        checkpointer(self.model, min_matched=min_matched).load(cfg.MODEL.WEIGHTS)
        shortest = cfg.INPUT.MIN_SIZE_TEST
        self.resize = ResizeShortestEdge([shortest, shortest], cfg.INPUT.MAX_SIZE_TEST)
        self.format = cfg.INPUT.FORMAT

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """
        Args:
            image: ``(H, W, 3)`` uint8, RGB whatever ``INPUT.FORMAT`` is.

        Returns:
            Instances of size H×W on the CPU: ``pred_boxes``, ``pred_masks``, ``scores``,
            ``pred_classes``.
        """
        height, width = image.shape[:2]
        channels = image if self.format == "RGB" else image[:, :, ::-1]
        resized = self.resize.get_transform(channels).apply_image(channels)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1), np.float32))
        (output,) = self.model([{"image": tensor, "height": height, "width": width}])
        return output["instances"].to("cpu")


def _class_names(cfg: CfgNode) -> list[str] | None:
    """Of the first data set that this program knows; None if it knows none.

    Raises:
        ValueError: the number of classes would have to come from a data set that it does not know.
    """
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    known = [name for name in names if name in DatasetCatalog]
    if known:
        return class_names_of(known[0])
    if cfg.MODEL[node_with_classes(cfg)].NUM_CLASSES == 0:
        raise ValueError(
            f"the number of classes is not known: none of the data sets ({', '.join(names)}) is "
            "registered here; give the config.yaml of the training's OUTPUT_DIR, which states it"
        )
    return None


class _WholeModelCheckpointer(Checkpointer):
    """Refuses weights that leave any tensor of the model as it was initialised."""

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        super()._log_incompatible_keys(incompatible)
        lacking = [
            *incompatible.missing_keys,
            *(name for name, *_ in incompatible.incorrect_shapes),
        ]
        if lacking:
            raise ValueError(
                f"MODEL.WEIGHTS is not of this model: it lacks {len(set(lacking))} tensors, such "
                f"as {lacking[0]}; give the config that it was trained with, or set "
                "MODEL.WEIGHTS_MIN_MATCHED to 0 to predict with untrained parts"
            )


def confident(instances: Instances, threshold: float) -> Instances:
    """The instances with a score of at least ``threshold``."""
    return instances[instances.scores >= threshold]
