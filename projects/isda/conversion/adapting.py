"""A checkpoint of another implementation, and the configuration that it is to be used with."""

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from isda.conversion.sources import SOURCES, detect
from isda.errors import UserError

__all__ = [
    "ConversionError",
    "apply_settings",
    "check_backbone",
    "expected_weights",
    "find_source",
]

_CLASSIFIERS = ("torchvision", "timm")


class ConversionError(UserError, ValueError):
    """A file that cannot be converted; the message says why and what to do."""


def find_source(weights: Mapping[str, Tensor], path: str) -> str:
    """
    Raises:
        ConversionError: no source has such names.
    """
    source = detect(weights)
    if source is None:
        known = "\n".join(f"  {key}: {table.title}" for key, table in SOURCES.items())
        raise ConversionError(
            f"{path} has the names of no known source (its first: {', '.join(list(weights)[:3])}). "
            f"If it is one of these after all, say so with --from:\n{known}"
        )
    return source


def apply_settings(
    cfg: CfgNode, settings: Mapping[str, Any], asked: Sequence[str] = (), *, partial: bool = False
) -> dict[str, Any]:
    """Set what the weights need, and return what of it the config file does not have.

    Args:
        asked: keys that the user has set.
        partial: whether these may contradict the weights.

    Raises:
        ConversionError: the user has asked for something else.
    """
    changed = {}
    for key, value in settings.items():
        node = cfg
        for name in key.split(".")[:-1]:
            node = node[name]
        name = key.rpartition(".")[2]
        current = node[name]
        if current == value or (partial and key in asked):
            continue
        if key in asked:
            raise ConversionError(
                f"the weights were trained with {key} {value}, the command line says {current}: "
                "leave it out, or give --partial to insist"
            )
        node[name] = changed[key] = value
    return changed


def check_backbone(cfg: CfgNode, source: str, weights: str, config_file: str) -> None:
    """
    Raises:
        ConversionError: the backbone reads the file as it is.
    """
    if cfg.MODEL.BACKBONE.NAME.startswith("build_torch_") and source in _CLASSIFIERS:
        raise ConversionError(
            f"{config_file} has a backbone of torchvision or timm, which reads such a file as "
            f"it is: MODEL.TORCH_BACKBONE.WEIGHTS {weights}"
        )


def expected_weights(cfg: CfgNode) -> dict[str, Tensor]:
    """The state dict of the config's model, whose own dictionary and weights are not read."""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ISTR.MASK_DICTIONARY = ""
    return build_model(cfg).state_dict()
