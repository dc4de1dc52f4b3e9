"""Models by name: their configs and, where they have been trained, their weights.

A name is the path of a config file below ``configs/`` without ``.yaml``, as
``"nuclei/isda_boxes_mobilenet_v2"``. Functions are named as in ``detectron2.model_zoo``, of which
nothing is used here::

    from isda import model_zoo

    model_zoo.list()
    model = model_zoo.get("nuclei/isda_boxes_mobilenet_v2")

A folder named by the environment variable ``ISDA_MODEL_ZOO`` adds models of your own, and is
where weights are looked for before they are downloaded; ``tools/publish_model.py`` fills one.

PyTorch and Detectron2 are imported by what needs them: names and files alone are there at once.
"""

from typing import TYPE_CHECKING

from isda.model_zoo.catalog import (
    ModelEntry,
    ModelZooError,
    entries,
    entry_of,
    get_config_file,
    is_known,
    list_models,
)

if TYPE_CHECKING:
    import torch
    from detectron2.config import CfgNode
    from torch import nn

__all__ = [
    "ModelEntry",
    "ModelZooError",
    "entries",
    "get",
    "get_checkpoint_path",
    "get_checkpoint_url",
    "get_config",
    "get_config_file",
    "is_known",
    "list",
]

list = list_models  # noqa: A001  (model_zoo.list() is what fingers type)


def get_config(name: str, trained: bool = False, overrides=()) -> "CfgNode":
    """The config of a model.

    Args:
        trained: ``MODEL.WEIGHTS`` is then the trained model's file, fetched and checked; else
            what the config file says, from which a training starts.
        overrides: ``KEY, VALUE, ...``, as after ``--opts`` of the tools.

    Raises:
        ModelZooError: there is no such model, or it has no trained weights.
        WeightsError: the weights cannot be fetched, or are not those of the table.
        ConfigError: an override is wrong.
    """
    from isda.engine.setup import load_config

    cfg = load_config(get_config_file(name), [*overrides])
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_path(name)
    return cfg


def get_checkpoint_path(name: str) -> str:
    """The file of a model's trained weights on this computer, its sha256 compared.

    Raises:
        ModelZooError: there is no such model, or it has no trained weights.
        WeightsError: the weights cannot be fetched, or are not those of the table.
    """
    from isda.model_zoo.weights import checkpoint_path

    return str(checkpoint_path(entry_of(name)))


def get_checkpoint_url(name: str) -> str:
    """What ``MODEL.WEIGHTS`` takes for a model's trained weights: ``isda://FILE``, or a URL.

    As :func:`get_checkpoint_path`, it fetches and compares the file, which is where the address
    leads to; where the folder of ``ISDA_MODEL_ZOO`` has the file, the answer is its path.
    """
    entry, path = entry_of(name), get_checkpoint_path(name)
    return entry.weights if "://" in entry.weights and not entry.local_file() else path


def get(name: str, trained: bool = True, device: "str | torch.device | None" = None) -> "nn.Module":
    """A model in evaluation mode; call ``.train()`` to train it.

    Args:
        trained: with its trained weights; else as a training would find it before its first
            step, but for ``MODEL.WEIGHTS``.
        device: None takes the config's, and the CPU where there is no GPU.

    Raises:
        ModelZooError: there is no such model, or it has no trained weights.
        WeightsError: the weights cannot be fetched, or are not those of the table.
    """
    from detectron2.modeling import build_model

    from isda.engine.inference import load_trained
    from isda.engine.setup import resolve_classes, uses_cuda

    cfg = get_config(name, trained)
    if device is not None:
        cfg.MODEL.DEVICE = str(device)
    if trained:
        return load_trained(cfg).model
    if cfg.MODEL.DEVICE.startswith("cuda") and not uses_cuda(cfg.MODEL.DEVICE):
        cfg.MODEL.DEVICE = "cpu"
    resolve_classes(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    return build_model(cfg).eval()
