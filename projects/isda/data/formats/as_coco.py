"""Data sets of every format as files in COCO's format, without a copy of the images."""

import os
from pathlib import Path

from isda import strict_json
from isda.data.errors import DatasetError
from isda.data.formats.annotated import AnnotatedImage, Report
from isda.data.formats.detection import detect_format, diagnosis
from isda.data.formats.registry import Options
from isda.data.formats.writing import class_names, coco_content
from isda.data.layouts import Split, annotation_format, find_dataset
from isda.data.registration import temporary_folder
from isda.files import write_bytes, write_text
from isda.wording import listed

__all__ = ["find_any_dataset"]

_KNOWN = ("coco", "broken")  # which those who read them say all about


def find_any_dataset(path: str | os.PathLike) -> tuple[list[Split], list[str]]:
    """The splits of a data set in COCO's format, or in any other of :mod:`isda.data.formats`.

    Of other formats, COCO files are written to a temporary folder that ends with the process.

    Returns:
        As :func:`isda.data.layouts.find_dataset`, and what the user should know.

    Raises:
        DatasetError: there is no data set, or it cannot be read whole.
    """
    path = Path(path).expanduser()
    refusal = None
    try:
        splits = find_dataset(path)
        if all(annotation_format(split.json_file) in _KNOWN for split in splits):
            return splits, []
    except DatasetError as error:
        refusal = error
        if not path.exists():
            raise
    try:
        format = detect_format(path)
    except DatasetError as error:
        if refusal is None or diagnosis(path):
            raise
        raise refusal from error
    if format.name == "coco":
        raise refusal or DatasetError(f"{path}: its splits are not all in COCO's format")
    report = Report()
    images = format.read(path, report, Options())
    if report.refused:
        more = f" ({len(report.refused) - 1} more likewise)" if len(report.refused) > 1 else ""
        raise DatasetError(
            f"{report.refused[0]}{more}; isda convert dataset leaves such images out by "
            "--skip-bad-files"
        )
    notes = [f"{path}: is {format.description}", *(f"{path}: {note}" for note in report.notes)]
    for reason, number in report.reasons().items():
        places = [place for place, of in report.skipped if of == reason]
        notes.append(f"{path}: {number} shapes left out, {reason}: {listed(places)}")
    return _written(path, images, report), notes


def _written(path: Path, images: list[AnnotatedImage], report: Report) -> list[Split]:
    classes = class_names(images, report.classes)
    if not classes:
        left_out = ", ".join(f"{number} {reason}" for reason, number in report.reasons().items())
        raise DatasetError(
            f"{path}: has no usable instance, so there is nothing to train on"
            f"{f' (left out: {left_out})' if left_out else ''}"
        )
    folder = temporary_folder()
    parts: dict[str, list[AnnotatedImage]] = {}
    has_splits = any(image.split == "val" for image in images)
    for image in images:
        name = image.split or ("train" if has_splits else "all")
        parts.setdefault(name if has_splits or name == "test" else "all", []).append(image)
    splits = []
    for name in ("train", "val", "test", "all"):
        if part := parts.get(name):
            part.sort(key=lambda image: image.name)
            names = [_file_name(image, folder / name) for image in part]
            json_file = folder / f"{name}.json"
            write_text(json_file, strict_json.dumps(coco_content(part, names, classes)))
            splits.append(Split(name, json_file, path if path.is_dir() else path.parent))
    return splits


def _file_name(image: AnnotatedImage, folder: Path) -> str:
    """Of the image on disk, where one that was embedded is written to now."""
    if isinstance(image.source, Path):
        return str(image.source.absolute())
    target = folder / image.name
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, image.source.read_bytes())
    return str(target)
