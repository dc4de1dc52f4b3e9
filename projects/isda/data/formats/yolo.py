"""YOLO's segmentation: a text file per image, a line per instance, coordinates in [0, 1].

``data.yaml`` names the classes and the folders of the splits (Ultralytics, Roboflow, CVAT,
supervision); without one ``classes.txt`` does (Label Studio), or classes are numbers. A line is a
class and the corners of one polygon. Ultralytics joins the parts of an instance by a bridge of no
width; supervision writes a line for each, which nothing can join again. A line of five numbers is
a box and has no mask.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from isda.data.errors import DatasetError, ImageError
from isda.data.formats.annotated import (
    AnnotatedImage,
    Instance,
    Report,
    UnusableShapeError,
    merge,
    read_size,
)
from isda.data.formats.peeking import first_files, peek_text
from isda.data.formats.places import split_of
from isda.data.formats.registry import Format, Options
from isda.data.walking import IMAGE_SUFFIXES, image_files

__all__ = ["FORMAT"]

_LABELS, _IMAGES = "labels", "images"
_SPLITS = ("train", "val", "valid", "test")
_NO_LABELS = ("classes.txt", "labels.txt", "obj.names", "train.txt", "val.txt", "test.txt")


def _yaml_file(path: Path) -> Path | None:
    """The file that describes the data set."""
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    return next((f for f in sorted(path.glob("*.y*ml")) if _description(f)), None)


def _description(file: Path) -> dict:
    """The content of a ``data.yaml``; empty if it is none."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return {}
    is_one = isinstance(content, dict) and "names" in content
    return content if is_one and isinstance(content["names"], list | dict) else {}


def _recognises(path: Path) -> bool:
    if _yaml_file(path) and _description(_yaml_file(path)):
        return True
    return path.is_dir() and any(_is_label_file(file) for file in first_files(path, ".txt"))


def _is_label_file(file: Path) -> bool:
    """Whether all lines are a class and at least four numbers."""
    if file.name.lower() in _NO_LABELS:
        return False
    lines = [line.split() for line in peek_text(file).splitlines()[:3] if line.strip()]
    return bool(lines) and all(len(line) >= 5 and _numbers(line) is not None for line in lines)


def _numbers(words: list[str]) -> np.ndarray | None:
    try:
        return np.array([float(word) for word in words])
    except ValueError:
        return None


def _read(path: Path, report: Report, options: Options) -> list[AnnotatedImage]:
    file = _yaml_file(path)
    description = _description(file) if file else {}
    root = file.parent if file else path
    names = _class_names(description, root)
    report.classes += list(names.values())
    images, boxes = [], 0
    for split, image in _images(root, description, options):
        try:
            size = read_size(image)
            instances, num_boxes = _instances(image, size, names, report)
        except DatasetError as error:
            report.refuse(error)
            continue
        boxes += num_boxes
        inner = image.relative_to(root) if image.is_relative_to(root) else Path(image.name)
        images.append(AnnotatedImage(inner.as_posix(), image, size, instances, split))
    if boxes:
        report.notes.append(
            f"{boxes} lines have five numbers, which are boxes and no masks: export polygons "
            "(YOLO segmentation) of them"
        )
    if not images and not report.refused:
        raise DatasetError(
            f"{path}: no images with labels were found: YOLO has images/ and labels/ side by side"
        )
    return images


def _class_names(description: dict, root: Path) -> dict[int, str]:
    names = description.get("names")
    if names is None and (root / "classes.txt").is_file():
        names = (root / "classes.txt").read_text(encoding="utf-8-sig").split("\n")
        names = [name.strip() for name in names if name.strip()]
    if isinstance(names, dict):
        return {int(number): str(name) for number, name in names.items()}
    return {number: str(name) for number, name in enumerate(names or [])}


def _images(root: Path, description: dict, options: Options) -> Iterator[tuple[str, Path]]:
    """Each image with its split."""
    if options.images is not None:
        yield from (("", image) for image in image_files(options.images))
        return
    seen = set()
    for key in _SPLITS:
        for place in _places(description, key, root):
            for image in _of_place(place):
                if image not in seen:
                    seen.add(image)
                    yield split_of(key), image
    if seen:
        return
    for image in image_files(root):
        inner = image.relative_to(root).parts[:-1]
        if inner and _label_file(image).is_file():
            yield next(filter(None, map(split_of, inner)), ""), image


def _places(description: dict, key: str, root: Path) -> Iterator[Path]:
    """Folders or lists of images that the description names for a split, as far as they exist."""
    named = description.get(key) or []
    bases = [root, root.parent]
    if isinstance(description.get("path"), str):
        bases.insert(0, root / description["path"])
    for place in [named] if isinstance(named, str) else named:
        if not isinstance(place, str):
            continue
        # Roboflow writes ../train/images, which lies in the folder itself.
        tried = [base / place for base in bases] + [root / place.replace("../", "")]
        found = next((p for p in tried if p.exists()), None)
        if found is not None:
            yield found.resolve() if ".." in found.parts else found


def _of_place(place: Path) -> list[Path]:
    if place.is_dir():
        return image_files(place)
    lines = [line.strip() for line in place.read_text(encoding="utf-8-sig").splitlines()]
    files = [place.parent / line for line in lines if line]
    return [f for f in files if f.suffix.lower() in IMAGE_SUFFIXES]


def _label_file(image: Path) -> Path:
    """``labels/…/NAME.txt`` of ``images/…/NAME.png``, else the one beside the image."""
    parts = list(image.parts)
    if _IMAGES in parts:
        last = len(parts) - 1 - parts[::-1].index(_IMAGES)
        parts[last] = _LABELS
    file = Path(*parts).with_suffix(".txt")
    return file if file.is_file() else image.with_suffix(".txt")


def _instances(
    image: Path, size: tuple[int, int], names: dict[int, str], report: Report
) -> tuple[list[Instance], int]:
    """Instances of an image, and the number of lines that are boxes; without a file it has none."""
    if not image.is_file():
        raise ImageError(f"{image}: no such image")
    file = _label_file(image)
    instances, boxes = [], 0
    if not file.is_file():
        return instances, boxes
    extent = np.array(size[::-1], dtype=np.float64)
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        words, where = line.split(), f"line {number} of {file}"
        if not words:
            continue
        values = _numbers(words)
        if values is None or not values[0].is_integer() or len(words) == 1:
            report.skip(where, "malformed")
            continue
        if len(words) == 5:
            boxes += 1
            report.skip(where, "a box without a mask")
            continue
        # A trailing number is the confidence of a prediction, or the id of a track.
        corners = values[1 : 1 + (len(values) - 1) // 2 * 2].reshape(-1, 2)
        try:
            part = merge([[(corners * extent).reshape(-1).tolist()]], size)
        except UnusableShapeError as error:
            report.skip(where, str(error))
            continue
        label = names.get(int(values[0]), str(int(values[0])))
        instances.append(Instance(label, part))
    return instances, boxes


FORMAT = Format(
    "yolo",
    "YOLO's segmentation: data.yaml, images/ and labels/ with a text file per image",
    _recognises,
    _read,
    frozenset({"images"}),
)
