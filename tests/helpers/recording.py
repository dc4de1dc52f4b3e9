"""Configurations under test: one that notes which of its keys are read, and other values."""

from collections.abc import Callable
from typing import ClassVar

from detectron2.config import CfgNode

__all__ = ["Recording", "changed", "keys_read", "recording"]


class Recording(CfgNode):
    """A node that notes the full name of each key that is read from it or from its copies."""

    read: ClassVar[set[str]] = set()

    def __getitem__(self, key):
        value = super().__getitem__(key)
        if not isinstance(value, CfgNode):
            self.read.add(f"{self.__dict__['_prefix']}{key}")
        return value


def recording(cfg: CfgNode, prefix: str = "") -> Recording:
    node = Recording()
    node.__dict__["_prefix"] = prefix
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            value = recording(value, f"{prefix}{key}.")
        dict.__setitem__(node, key, value)
    return node


def keys_read(cfg: CfgNode, action: Callable[[CfgNode], object]) -> set[str]:
    """Full names of the keys that ``action(cfg)`` reads."""
    Recording.read.clear()
    action(recording(cfg))
    return set(Recording.read)


def changed(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + (1 if isinstance(value, int) else 0.25)
    if isinstance(value, str):
        return {"smooth_l1": "giou"}.get(value, value)
    return value
