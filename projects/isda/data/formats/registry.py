"""Formats of annotations: name, how it is recognised, reader.

Each module of this package that has a ``FORMAT`` is found by itself, so that another format is
another file.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from isda.data.formats.annotated import AnnotatedImage, Report

__all__ = ["Format", "Options", "formats"]


@dataclass(frozen=True)
class Options:
    """What a user says of the annotations; each format names those that it reads."""

    images: Path | None = None  # the folder of the images, if it is another one
    class_attribute: str | None = None  # the attribute of regions that names their class
    class_name: str | None = None  # of all instances
    unannotated_are_empty: bool = False  # whether images without a file have no instances
    crowds_are_instances: bool = False  # whether iscrowd is ignored

    def given(self) -> list[str]:
        """Names of those that are not as by default."""
        return [f.name for f in fields(self) if getattr(self, f.name) != f.default]


@dataclass(frozen=True)
class Format:
    """One format of annotations.

    Attributes:
        name: that the user calls it by.
        description: what is at the path, to follow "is" in a sentence.
        recognises: whether a path holds it, by content, not by names alone. It is called with
            paths of all kinds, and opens a few files at most.
        read: ``(path, report, options)`` to every image; raises DatasetError where there is none,
            and tells the report of files and shapes that cannot be used.
        options: names of the fields of :class:`Options` that ``read`` reads.
    """

    name: str
    description: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, Report, Options], list[AnnotatedImage]]
    options: frozenset[str] = frozenset()


@functools.cache
def formats() -> dict[str, Format]:
    """All formats by their names, in alphabetical order."""
    package = importlib.import_module("isda.data.formats")
    found = {}
    for module in pkgutil.iter_modules(package.__path__, "isda.data.formats."):
        format = getattr(importlib.import_module(module.name), "FORMAT", None)
        for entry in format if isinstance(format, tuple) else (format,):
            if entry is not None:
                found[entry.name] = entry
    return dict(sorted(found.items()))
