"""The images that a command line means, and the files that results go to."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from isda.prediction.errors import RequestError

__all__ = ["IMAGE_SUFFIXES", "find_images", "make_folders", "output_paths", "split_outputs"]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def split_outputs(paths: list[str]) -> tuple[str | None, str | None]:
    """Of the arguments of ``--output``: where pictures go, and the JSON file; None where none.

    Raises:
        RequestError: there are two of a kind.
    """
    results = [path for path in paths if Path(path).suffix.lower() == ".json"]
    pictures = [path for path in paths if path not in results]
    for kind in (results, pictures):
        if len(kind) > 1:
            raise RequestError(
                f"--output {' '.join(kind)}: give one folder or file for pictures, and one .json "
                "file for instances, at most"
            )
    if results and Path(results[0]).is_dir():
        raise RequestError(
            f"--output {results[0]} is a folder, and instances are written into a file"
        )
    return (pictures or [None])[0], (results or [None])[0]


def find_images(inputs: list[str]) -> tuple[list[Path], dict[str, str]]:
    """Files that the arguments of ``--input`` mean: themselves, matches, contents of folders.

    Returns:
        The files, and ``{argument: reason}`` of the arguments that mean none.

    Raises:
        RequestError: there is no file at all.
    """
    found: list[Path] = []
    missing: dict[str, str] = {}
    for item in inputs:
        path = Path(item).expanduser()
        if path.is_dir():
            files = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
        elif path.exists():  # first, because names may contain brackets
            files = [path]
        else:
            files = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not files:
            missing[item] = "no image there"
        found += files
    if not found:
        raise RequestError(f"--input {' '.join(inputs)}: no image there")
    return list(dict.fromkeys(found)), missing


def output_paths(images: list[Path], output: str) -> list[Path]:
    """Where each image's result goes: into the folder ``output``, or to the file of that name.

    Files of one name from several folders are numbered.

    Raises:
        RequestError: a file is to hold several results, or a result would replace an image.
    """
    target = Path(output)
    if target.suffix.lower() in IMAGE_SUFFIXES and not target.is_dir():
        if len(images) > 1:
            raise RequestError(f"--output {output} is one file, but there are {len(images)} images")
        paths = [target]
    else:
        paths = _numbered(images, target)
    originals = {image.resolve() for image in images}
    if replaced := [path for path in paths if path.resolve() in originals]:
        raise RequestError(f"--output {output} would replace {replaced[0]}: give another folder")
    return paths


def _numbered(images: list[Path], folder: Path) -> list[Path]:
    taken: set[str] = set()
    paths = []
    for image in images:
        # Pillow reads formats that OpenCV cannot write.
        suffix = image.suffix if image.suffix.lower() in IMAGE_SUFFIXES else ".png"
        name, number = image.stem + suffix, 1
        while name in taken:
            number += 1
            name = f"{image.stem}_{number}{suffix}"
        taken.add(name)
        paths.append(folder / name)
    return paths


def make_folders(files: Iterable[str | Path]) -> None:
    """Where results will be written; seen to before there are any.

    Raises:
        RequestError: a folder cannot be made or written into.
    """
    for folder in {Path(file).parent for file in files}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(
                f"--output: the folder {folder} cannot be made ({error.strerror}): give another one"
            ) from error
        if not os.access(folder, os.W_OK):
            raise RequestError(f"--output: the folder {folder} cannot be written: give another one")
