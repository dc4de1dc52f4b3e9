"""Reading COCO annotation files: structure, ids, references and image files are checked.

What cannot be trusted stops everything, with one sentence that names the culprit and the remedy.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence

from detectron2.utils.file_io import PathManager

from isda.console import printable
from isda.data.errors import DatasetError

__all__ = ["check_image_files", "find_missing_images", "find_problems", "read_coco_json"]

_REQUIRED = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id"),
}
_NUM_EXAMPLES = 3


def read_coco_json(
    json_file: str | os.PathLike, needs_annotations: bool = True, is_checked: bool = True
) -> dict:
    """Reads a COCO annotation file and checks all but its segmentations and image files.

    Args:
        json_file: a path, or an address that iopath understands.
        needs_annotations: else the list ``annotations`` may be absent, as in COCO's test sets.
        is_checked: else nothing more is known of the content than that it is an object.

    Raises:
        DatasetError: the file is missing, no JSON or lacks a key; an id is there twice; an
            annotation refers to an image or a category that is not there.
    """
    content = _read_json(str(json_file))
    if not isinstance(content, dict):
        raise DatasetError(
            f"{json_file}: holds a JSON {type(content).__name__} instead of an object with images, "
            "annotations and categories: is it a file of results? Name the annotation file"
        )
    if not needs_annotations:
        content.setdefault("annotations", [])
    problem = next(find_problems(content, json_file), None) if is_checked else None
    if problem:
        raise DatasetError(problem)
    _show_names(content.get("categories"))
    return content


def _show_names(categories: object) -> None:
    """Escape what a terminal would obey in the names of the classes, in place."""
    for category in categories if isinstance(categories, list) else ():
        if isinstance(category, dict) and isinstance(category.get("name"), str):
            category["name"] = printable(category["name"])


def find_problems(content: dict, json_file: str | os.PathLike) -> Iterator[str]:
    """Everything that :func:`read_coco_json` would raise, a sentence each.

    Args:
        content: of a COCO annotation file.
        json_file: for the sentences.
    """
    required = _REQUIRED.items()
    stages = (
        (_section_problems(content, section, keys, json_file) for section, keys in required),
        (_id_problems(content[section], section, json_file) for section in _REQUIRED),
        (
            _image_problems(content, json_file),
            _reference_problems(content, json_file),
            _flag_problems(content, json_file),
        ),
    )
    for stage in stages:  # each relies on what the one before it has found in order
        problems = [problem for part in stage for problem in part]
        yield from problems
        if problems:
            return


def _read_json(json_file: str) -> object:
    if not PathManager.isfile(json_file):
        raise DatasetError(
            f"{json_file}: no such annotation file: correct the path under which the data set is "
            "registered, or DETECTRON2_DATASETS, which Detectron2's own data sets are below"
        )
    try:
        with open(PathManager.get_local_path(json_file), encoding="utf-8") as file:
            return json.load(file)
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{json_file}: not valid JSON at line {error.lineno}, column {error.colno} "
            f"({error.msg}): is the file whole? Fetch or export it again"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{json_file}: not a text file in UTF-8 (byte {error.start}): export it as plain JSON"
        ) from error


def _section_problems(
    content: dict, section: str, keys: tuple[str, ...], json_file
) -> Iterator[str]:
    records = content.get(section)
    if not isinstance(records, list):
        hint = ' ("annotations": [] if there are none)' if section == "annotations" else ""
        yield (
            f"{json_file}: has no list '{section}': export it in COCO's format for instances{hint}"
        )
        return
    if not records and section != "annotations":
        yield f"{json_file}: the list '{section}' is empty: nothing to load"
    for index, record in enumerate(records):
        missing = [key for key in keys if not isinstance(record, dict) or key not in record]
        if missing:
            yield (
                f"{json_file}: {section}[{index}] has no {' and no '.join(missing)}: each needs "
                f"{', '.join(keys)}"
            )


def _id_problems(records: list[dict], section: str, json_file) -> Iterator[str]:
    # Text may name an image, but COCO's evaluation does arithmetic with the other ids.
    allowed = (int, str) if section == "images" else (int,)
    ids = [record["id"] for record in records]
    if not any(all(type(i) is kind for i in ids) for kind in allowed):
        culprit = next(i for i in ids if type(i) is not type(ids[0]) or type(i) not in allowed)
        yield f"{json_file}: '{section}' has the id {culprit!r}: ids must be whole numbers"
    elif len(set(ids)) < len(ids):
        twice = [repr(i) for i, count in Counter(ids).items() if count > 1]
        yield (
            f"{json_file}: {len(twice)} ids are there more than once in '{section}', "
            f"{_examples(twice)}: number them anew (ids must differ also between merged files)"
        )


def _image_problems(content: dict, json_file) -> Iterator[str]:
    for image in content["images"]:
        if not isinstance(image["file_name"], str) or not image["file_name"]:
            yield (
                f"{json_file}: image {image['id']} has the file_name {image['file_name']!r}: "
                "it must be a path below the image folder"
            )
        if not all(type(image[key]) is int and image[key] > 0 for key in ("height", "width")):
            yield (
                f"{json_file}: image {image['id']} ({image['file_name']}) has height "
                f"{image['height']!r} and width {image['width']!r}: they must be its pixels"
            )


def _reference_problems(content: dict, json_file) -> Iterator[str]:
    for section, key in (("images", "image_id"), ("categories", "category_id")):
        known = {record["id"] for record in content[section]}
        strays = [a for a in content["annotations"] if not _is_member(a[key], known)]
        if strays:
            wanted = sorted({repr(annotation[key]) for annotation in strays})
            yield (
                f"{json_file}: {len(strays)} annotations, first {strays[0]['id']}, have an {key} "
                f"that no record of '{section}' has: {_examples(wanted)} (there are "
                f"{_examples(sorted(map(repr, known)))}): add it, or remove these annotations"
            )


def _flag_problems(content: dict, json_file) -> Iterator[str]:
    for annotation in content["annotations"]:
        if annotation.get("iscrowd", 0) not in (0, 1):
            yield (
                f"{json_file}: annotation {annotation['id']} has iscrowd "
                f"{annotation['iscrowd']!r}: it must be 0 or 1"
            )
        if annotation.get("ignore"):
            yield (
                f"{json_file}: annotation {annotation['id']} has 'ignore', which COCO's evaluation "
                "overwrites: set its iscrowd to 1 instead"
            )


def _is_member(value: object, known: set) -> bool:
    # True and 1.0 equal 1, but pycocotools and a data loader would not both take them for it.
    return type(value) in (int, str) and value in known


def find_missing_images(content: dict, image_root: str | os.PathLike) -> list[str]:
    """File names in ``content["images"]`` that are not below ``image_root``.

    Lists each folder once, which is far cheaper than asking for a hundred thousand files.
    """
    listings: dict[str, set[str]] = {}
    missing = []
    for image in content["images"]:
        path = os.path.join(image_root, image["file_name"])
        folder, name = os.path.split(path)
        if folder not in listings:
            is_folder = PathManager.isdir(folder)
            listings[folder] = set(PathManager.ls(folder)) if is_folder else set()
        # Asked again, as upper and lower case may be the same to the file system.
        if name not in listings[folder] and not PathManager.isfile(path):
            missing.append(image["file_name"])
    return missing


def check_image_files(content: dict, json_file, image_root: str | os.PathLike) -> None:
    """Raises DatasetError if images are missing, with their number and the first of them."""
    if not PathManager.isdir(str(image_root)):
        raise DatasetError(
            f"{image_root}: no such folder, but {json_file} has {len(content['images'])} images "
            "in it: correct the image folder under which the data set is registered"
        )
    missing = find_missing_images(content, image_root)
    if missing:
        raise DatasetError(
            f"{image_root}: {len(missing)} of the {len(content['images'])} images in {json_file} "
            f"are missing, {_examples(missing)}: fetch them, correct the image folder, or take "
            "them out of the annotation file"
        )


def _examples(names: Sequence[str]) -> str:
    """The first few, so that a message stays one."""
    shown = ", ".join(names[:_NUM_EXAMPLES])
    return f"first {shown}" if len(names) > _NUM_EXAMPLES else shown
