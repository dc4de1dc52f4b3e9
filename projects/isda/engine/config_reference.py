"""Reference of a config key: default, meaning, range, and what reads it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from isda.config import add_config
from isda.engine.architectures import node_requirements
from isda.engine.config_keys import KNOWN_MODELS, flattened, idle_reason, on_resume
from isda.engine.setup import REQUIREMENTS

__all__ = ["KeyReference", "all_keys", "meanings", "reference"]

_PACKAGE = Path(__file__).resolve().parents[1]
# Of the checkout, and of an installed wheel.
_PAGES = (_PACKAGE.parents[1] / "docs/CONFIG.md", _PACKAGE / "docs/CONFIG.md")
_ROW = re.compile(r"^\|`([A-Z0-9_.]+)`\|`.*?`\|(.+)\|$", re.MULTILINE)
_LINK = re.compile(r"\[([^]]+)\]\([^)]+\)")
_OF_DETECTRON2 = "Detectron2's own: https://detectron2.readthedocs.io/en/latest/modules/config.html"
_ARCHITECTURE = "MODEL.META_ARCHITECTURE is "


@dataclass(frozen=True)
class KeyReference:
    """A key of the configuration.

    Attributes:
        requirement: what a value must be, in words; "" where every value of its type is taken.
        readers: meta-architectures for which it has an effect; empty: all of them.
        idle: why it has no effect while the other keys have their defaults; "" if it has one.
        resumed: what a change does to a training that is resumed.
    """

    name: str
    default: Any
    meaning: str
    requirement: str
    readers: tuple[str, ...]
    idle: str
    resumed: str


def all_keys() -> dict[str, Any]:
    """Defaults of Detectron2's keys and ours, by their full names."""
    return flattened(_defaults())


def meanings() -> dict[str, str]:
    """What docs/CONFIG.md says of the keys that this project adds, without links."""
    page = next(page for page in _PAGES if page.is_file())
    rows = _ROW.findall(page.read_text(encoding="utf-8"))
    return {key: _LINK.sub(r"\1", meaning) for key, meaning in rows}


def reference(key: str) -> KeyReference:
    """What is known of a key, of which :func:`all_keys` has all."""
    cfg = _defaults()
    decision = on_resume(key)
    readers, idle = _readers(key)
    return KeyReference(
        name=key,
        default=flattened(cfg)[key],
        meaning=meanings().get(key, _OF_DETECTRON2),
        requirement=_requirement(key),
        readers=readers,
        idle=idle,
        resumed=decision.value if decision else "",
    )


def _defaults(architecture: str | None = None) -> CfgNode:
    cfg = get_cfg()
    add_config(cfg)
    if architecture:
        cfg.MODEL.META_ARCHITECTURE = architecture
    return cfg


def _requirement(key: str) -> str:
    """Of all models, or of the one whose node has the key."""
    requirements = dict(REQUIREMENTS)
    for name in KNOWN_MODELS:
        requirements |= node_requirements(_defaults(name))
    return requirements[key][1] if key in requirements else ""


def _readers(key: str) -> tuple[tuple[str, ...], str]:
    """As :class:`KeyReference` has them."""
    condition = idle_reason(key)
    if condition is None:
        return (), ""
    reasons = {name: condition(_defaults(name)) for name in KNOWN_MODELS}
    readers = [n for n, reason in reasons.items() if not reason.startswith(_ARCHITECTURE)]
    idle = {reasons[name] for name in readers} or {"no model reads it"}
    everyone = len(readers) in (0, len(KNOWN_MODELS))
    return () if everyone else tuple(readers), idle.pop() if len(idle) == 1 else ""
