"""Config keys of a method: checked before a model is built, and completed by its data set."""

import contextlib
from collections.abc import Iterator

from detectron2.config import CfgNode

from isda.config import RENAMED_KEYS
from isda.data.classes import num_classes_of
from isda.data.errors import DatasetError
from isda.errors import ConfigError
from isda.requirements import ArgumentError, violation

__all__ = ["arguments_as_keys", "check_keys", "method_keys"]


def method_keys(cfg: CfgNode, method: type) -> CfgNode:
    """The node of a method's keys, ready to build a model from.

    Args:
        cfg: stays as it is.
        method: declares the node and what its keys must fulfil.

    Returns:
        A copy, in which ``NUM_CLASSES`` 0 is replaced by the number of classes of the first data
        set in ``DATASETS.TRAIN``, else in ``DATASETS.TEST``.

    Raises:
        ConfigError: a key is out of range, or contradicts another.
        DatasetError: the number of classes is left open, and no data set tells it.
    """
    name = method.config_node
    node = cfg.MODEL[name].clone()
    node.defrost()
    for old, new in RENAMED_KEYS.items():  # of a config that was merged with new keys allowed
        parent, _, key = old.rpartition(".")
        if parent == f"MODEL.{name}" and key in node:
            node[new.rpartition(".")[2]] = node.pop(key)
    check_keys(node, method)
    if node.NUM_CLASSES == 0:
        node.NUM_CLASSES = _num_classes(cfg, f"MODEL.{name}.NUM_CLASSES")
    return node


def check_keys(node: CfgNode, method: type) -> None:
    """
    Raises:
        ConfigError: a key of the method is out of range, or contradicts another.
    """
    for key, value in node.items():
        if key in method.requirements:
            text = violation(value, method.requirements[key])
            if text:
                raise ConfigError(f"MODEL.{method.config_node}.{key} {text}")
    conflict = method.conflict(CfgNode(node))  # a plain copy: a node may note what a model reads
    if conflict:
        raise ConfigError(conflict)


@contextlib.contextmanager
def arguments_as_keys(name: str) -> Iterator[None]:
    """Name the key ``MODEL.<name>.<ARGUMENT>`` in errors of constructors, not their argument."""
    try:
        yield
    except ArgumentError as error:
        raise ConfigError(f"MODEL.{name}.{error.argument.upper()} {error.text}") from error


def _num_classes(cfg: CfgNode, key: str) -> int:
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    remedy = f"set {key}, or DATASETS.TRAIN to a registered data set, which tells its classes"
    if not names:
        raise DatasetError(f"{key} is 0 and DATASETS.TRAIN is empty: {remedy}")
    try:
        return num_classes_of(names[0])
    except DatasetError as error:
        raise DatasetError(f"{key} is 0: {error}; or {remedy}") from error
