"""A model with its trained weights and the names of its classes, ready for images."""

import logging
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from isda._imports import spare_convolutions_dynamo
from isda.checkpoint import Checkpointer, classes_in
from isda.console import printable
from isda.data.classes import class_names_of
from isda.engine.architectures import node_with_classes
from isda.engine.devices import check_device
from isda.engine.precision import inference_dtype
from isda.engine.setup import uses_cuda
from isda.errors import ConfigError
from isda.weights_files import read_checkpoint

__all__ = [
    "Classes",
    "TrainedModel",
    "inference_autocast",
    "load_trained",
    "saved_classes",
]


logger = logging.getLogger(__name__)

_LISTED = 5  # names of classes in a message

spare_convolutions_dynamo()


class Classes(NamedTuple):
    """The classes of a model, in the order of its outputs; None where nothing says them."""

    names: list[str] | None = None
    ids: list[int] | None = None  # category ids in the JSON of the training's data


class TrainedModel(NamedTuple):
    """A model in evaluation mode, and its classes."""

    model: nn.Module
    classes: Classes


def inference_autocast(cfg: CfgNode, model: nn.Module) -> torch.autocast:
    """The context in which ``model`` infers in the precision of ``TEST.AMP``.

    That is float32, with a line in the log, where the device would be slower.
    """
    device = next(model.parameters()).device
    dtype = inference_dtype(cfg, device)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def load_trained(cfg: CfgNode) -> TrainedModel:
    """The model of a config with the weights that ``MODEL.WEIGHTS`` names.

    Number and names of the classes are those that the file carries, else those of the config's
    data sets. Without a GPU the model goes to the CPU.

    Raises:
        WeightsError: there is no such file, or it cannot be read.
        ConfigError: ``MODEL.WEIGHTS`` is empty, does not hold the whole model, or is for another
            number of classes, or there is no such device.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            "MODEL.WEIGHTS is empty, so the model would be untrained: name the file of a "
            "training, as in MODEL.WEIGHTS output/model_final.pth"
        )
    check_device(cfg.MODEL.DEVICE, may_lack_cuda=True)
    if cfg.MODEL.DEVICE.startswith("cuda") and not uses_cuda(cfg.MODEL.DEVICE):
        cfg.MODEL.DEVICE = "cpu"
    min_matched = cfg.MODEL.WEIGHTS_MIN_MATCHED
    saved = saved_classes(cfg.MODEL.WEIGHTS)
    _compare_intensity(cfg)
    if saved and min_matched > 0:
        _compare_number(cfg, saved.names)
    classes = saved or _classes_of_datasets(cfg)
    node = node_with_classes(cfg)
    if node and cfg.MODEL[node].NUM_CLASSES == 0:
        cfg.MODEL[node].NUM_CLASSES = len(classes.names or ())
    if min_matched > 0 and cfg.MODEL.TORCH_BACKBONE.WEIGHTS == "pretrained":
        cfg.MODEL.TORCH_BACKBONE.WEIGHTS = ""  # a download that the weights would overwrite
    model = build_model(cfg).eval()
    checkpointer = Checkpointer if min_matched == 0 else _WholeModelCheckpointer
    checkpointer(model, min_matched=min_matched).load(cfg.MODEL.WEIGHTS)
    return TrainedModel(model, classes)


def _compare_number(cfg: CfgNode, names: list[str]) -> None:
    node = node_with_classes(cfg)
    if node and cfg.MODEL[node].NUM_CLASSES not in (0, len(names)):
        more = ", ..." if len(names) > _LISTED else ""
        raise ConfigError(
            f"{cfg.MODEL.WEIGHTS} is for {len(names)} classes "
            f"({', '.join(names[:_LISTED])}{more}), and MODEL.{node}.NUM_CLASSES is "
            f"{cfg.MODEL[node].NUM_CLASSES}: give the config that it was trained with, or leave "
            "the number at 0"
        )


def _compare_intensity(cfg: CfgNode) -> None:
    """Warns where the model has learned from images that were scaled to 8 bits in another way."""
    saved = read_checkpoint(cfg.MODEL.WEIGHTS, mmap=True).get("intensity")
    if isinstance(saved, str) and saved != cfg.INPUT.INTENSITY:
        logger.warning(
            "%s was trained with INPUT.INTENSITY %r, and it is %r here: images with other than 8 "
            "bits will look different to it",
            cfg.MODEL.WEIGHTS,
            printable(saved),
            cfg.INPUT.INTENSITY,
        )


def saved_classes(weights: str) -> Classes | None:
    """What a checkpoint says of its classes; None where it says nothing.

    Args:
        weights: a path, a URL, or ``isda://FILE``.

    Raises:
        WeightsError: the file is missing, or cannot be read.
    """
    classes = classes_in(read_checkpoint(weights, mmap=True))
    if not classes:
        return None
    return Classes([printable(name) for name in classes["names"]], list(classes["ids"]))


def _classes_of_datasets(cfg: CfgNode) -> Classes:
    """Of the first data set that this program knows; None if it knows none.

    Raises:
        ConfigError: the number of classes would have to come from a data set that it does not know.
    """
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    known = [name for name in names if name in DatasetCatalog]
    if known:
        id_map = MetadataCatalog.get(known[0]).get("thing_dataset_id_to_contiguous_id")
        return Classes(class_names_of(known[0]), id_map and sorted(id_map, key=id_map.get))
    node = node_with_classes(cfg)
    if node and cfg.MODEL[node].NUM_CLASSES == 0:
        raise ValueError(
            f"the number of classes is not known: none of the data sets ({', '.join(names)}) is "
            "registered here; give the config.yaml of the training's OUTPUT_DIR, which states it"
        )
    return Classes()


class _WholeModelCheckpointer(Checkpointer):
    """Refuses weights that leave any tensor of the model as it was initialised."""

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        super()._log_incompatible_keys(incompatible)
        lacking = [
            *incompatible.missing_keys,
            *(name for name, *_ in incompatible.incorrect_shapes),
        ]
        if lacking:
            raise ConfigError(
                f"MODEL.WEIGHTS is not of this model: it lacks {len(set(lacking))} tensors, such "
                f"as {lacking[0]}; give the config that it was trained with, or set "
                "MODEL.WEIGHTS_MIN_MATCHED to 0 to predict with untrained parts"
            )
