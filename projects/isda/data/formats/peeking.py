"""A look into the first files of a folder, by which formats are recognised."""

import functools
import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from isda.data.errors import DatasetError
from isda.data.json_files import load_json
from isda.data.walking import files_below

__all__ = ["first_files", "json_contents", "peek_json", "peek_text"]

_PEEKED = 20  # files that are looked into, at most
_HEAD = 4096  # bytes


def first_files(path: Path, *suffixes: str, most: int | None = _PEEKED) -> list[Path]:
    """The path itself, if it is a file with one of the suffixes, or such files below.

    Args:
        suffixes: in lower case.
        most: of the files; None: all.
    """
    if path.is_file():
        return [path] if path.suffix.lower() in suffixes else []
    return list(itertools.islice(files_below(path, suffixes), most))


def json_contents(path: Path, most: int | None = _PEEKED) -> Iterator[tuple[Path, object]]:
    """JSON files at or below a path that are whole, with their content."""
    for file in first_files(path, ".json", most=most):
        if (content := peek_json(file)) is not None:
            yield file, content


def peek_json(file: Path) -> object:
    """The content of a JSON file, also of one packed by gzip; None if it is none."""
    return _load(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _load(file: Path, changed: int) -> object:
    try:
        if file.suffix.lower() == ".gz":
            with gzip.open(file, "rt", encoding="utf-8-sig") as stream:
                return json.load(stream)
        return load_json(file)[0]
    except (DatasetError, OSError, EOFError, ValueError, RecursionError):
        return None


def peek_text(file: Path) -> str:
    """The first characters of a file of text; empty if it is none."""
    with file.open("rb") as stream:
        head = stream.read(_HEAD)
    return "" if b"\0" in head else head.decode("utf-8-sig", errors="replace")
