"""Differences of a training's configuration from what it builds on."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from isda.config import present_names
from isda.engine.setup import load_config
from isda.errors import ConfigError
from isda.model_zoo import get_config_file, is_known
from isda.report.training import Training, flatten

__all__ = ["Difference", "command_words", "config_file", "differences"]


class Difference(NamedTuple):
    """A key whose value is not the one that it would have had."""

    key: str
    before: object
    value: object
    source: str  # who set it: "command line", "config file", or "program"


def config_file(training: Training) -> str | None:
    """The ``--config-file`` of the training, as it was typed; None if that is not known."""
    words = command_words(training)
    for word, following in zip(words, [*words[1:], ""]):
        if word == "--config-file":
            return following
        if word.startswith("--config-file="):
            return word.partition("=")[2]
    return None


def command_words(training: Training) -> list[str]:
    """The command that started the training; empty if it is not known."""
    return shlex.split(training.sessions[0]["command"]) if training.sessions else []


def differences(training: Training) -> tuple[list[Difference], str | None]:
    """The keys that have another value than in the config which the training's is based on.

    Returns:
        The differences, in the order of the keys; and the name of that base, None for the
        defaults of all keys, which are compared with where there is no base to be found.
    """
    typed = config_file(training)
    path = _located(typed, training) if typed else None
    own = _load(path) if path else {}
    base = own.pop("_BASE_", None) if path else None
    before = _values(path.parent / os.path.expanduser(base)) if path and base else None
    name = os.path.basename(base) if before else None
    before = before or flatten(load_config())
    typed_keys = set(present_names(dict.fromkeys(command_words(training))))
    found = [
        Difference(key, before[key], value, _source(key, typed_keys, own))
        for key, value in training.config.items()
        if key in before and value != before[key]
    ]
    return found, name


def _source(key: str, typed_keys: set[str], own: Mapping) -> str:
    if key in typed_keys:
        return "command line"
    return "config file" if key in own or not own else "program"


def _located(typed: str, training: Training) -> Path | None:
    """Where the config file is now, if it is still there; else the package's of this name."""
    path = Path(training.sessions[0].get("folder", "."), os.path.expanduser(typed))
    if not path.is_file() and is_known(typed):
        path = Path(get_config_file(typed))
    return path if path.is_file() else None


def _load(path: Path) -> dict:
    """The file's own keys, flat, without those of its base."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return present_names(flatten(content)) if isinstance(content, dict) else {}


def _values(path: Path) -> dict | None:
    """All values of a base; None if it cannot be read any more."""
    try:
        return flatten(load_config(str(path)))
    except ConfigError:
        return None
