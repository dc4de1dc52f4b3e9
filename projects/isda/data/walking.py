"""The files of a user's folder, without what programs hide in it."""

import functools
import os
from collections.abc import Collection, Iterator
from pathlib import Path

__all__ = [
    "IMAGE_SUFFIXES",
    "files_below",
    "image_files",
    "is_hidden",
    "real_path",
    "regular_files",
]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
# Copies that Jupyter keeps, what macOS packs beside every file, thumbnails of a NAS.
_HIDDEN = ("__macosx", "@eadir")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's."""
    return name.startswith(".") or name.lower() in _HIDDEN


def files_below(folder: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """Regular files with one of the suffixes (of lower case), a folder's own before its folders'.

    Links are followed but for those that lead in a circle.
    """
    yield from _files(str(folder), suffixes, frozenset())


def image_files(folder: Path) -> list[Path]:
    """All images below a folder, sorted."""
    return sorted(files_below(folder, IMAGE_SUFFIXES))


def _files(folder: str, suffixes: Collection[str], above: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # not readable, or gone meanwhile: nothing can be used of it
        return
    entries = [entry for entry in entries if not is_hidden(entry.name)]
    for entry in entries:
        if os.path.splitext(entry.name)[1].lower() in suffixes and os.path.isfile(entry.path):
            yield Path(entry.path)
    for entry in entries:
        if _is_folder(entry):
            yield from _files(entry.path, suffixes, above | {real})


def real_path(path: str | os.PathLike) -> str:
    """As ``os.path.realpath``, which asks for every folder on the way, but each folder once."""
    folder, name = os.path.split(os.path.abspath(path))
    path = os.path.join(_real_folder(folder), name)
    return os.path.realpath(path) if os.path.islink(path) else path


@functools.lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def regular_files(folder: str) -> Iterator[str]:
    """Names of the files in a folder, without folders, pipes, and links that lead nowhere."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_file():
                    yield entry.name
            except OSError:  # a link in a circle
                continue


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False
