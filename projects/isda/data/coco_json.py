"""Reading COCO annotation files: structure, ids, references and image files are checked.

What cannot be trusted stops everything, with one sentence that names the culprit and the remedy.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from detectron2.utils.file_io import PathManager

from isda.console import printable
from isda.data.changes import Changes
from isda.data.errors import DatasetError
from isda.data.json_files import load_json
from isda.data.walking import regular_files

__all__ = ["check_image_files", "find_missing_images", "find_problems", "read_coco_json"]

_REQUIRED = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id"),
}
_NUM_EXAMPLES = 3


def read_coco_json(
    json_file: str | os.PathLike,
    needs_annotations: bool = True,
    is_checked: bool = True,
    changes: Changes | None = None,
) -> dict:
    """Reads a COCO annotation file and checks all but its segmentations and image files.

    Whole numbers that were written with a point (72.0) are whole numbers, and names of classes
    text.

    Args:
        json_file: a path, or an address that iopath understands.
        needs_annotations: else the list ``annotations`` may be absent, as in COCO's test sets.
        is_checked: else nothing more is known of the content than that it is an object.
        changes: told of what is not as in the file.

    Raises:
        DatasetError: the file is missing, no JSON or lacks a key; an id is there twice; an
            annotation refers to an image or a category that is not there.
    """
    changes = Changes() if changes is None else changes
    content = _read_json(str(json_file), changes)
    if not isinstance(content, dict):
        raise DatasetError(
            f"{json_file}: holds a JSON {type(content).__name__} instead of an object with images, "
            "annotations and categories: is it a file of results? Name the annotation file"
        )
    if not needs_annotations:
        content.setdefault("annotations", [])
    _make_whole(content, changes)
    problem = next(find_problems(content, json_file), None) if is_checked else None
    if problem:
        raise DatasetError(problem)
    _show_names(content.get("categories"), changes)
    return content


# What must be a whole number, and is written with a point by programs that know no others.
_WHOLE = {
    "images": ("id", "height", "width"),
    "categories": ("id",),
    "annotations": ("id", "image_id", "category_id", "iscrowd"),
}


def _make_whole(content: dict, changes: Changes) -> None:
    """Replace 72.0 by 72, in place."""
    for section, keys in _WHOLE.items():
        records = content.get(section)
        for record in records if isinstance(records, list) else ():
            for key in keys if isinstance(record, dict) else ():
                value = record.get(key)
                if type(value) is float and value.is_integer():
                    record[key] = int(value)
                    changes.is_rewritten = True


def _show_names(categories: object, changes: Changes) -> None:
    """Names of classes become text in which a terminal finds nothing to obey, in place."""
    for category in categories if isinstance(categories, list) else ():
        name = category.get("name") if isinstance(category, dict) else None
        if type(name) in (int, float, str):
            category["name"] = printable(str(name))
            changes.is_rewritten |= category["name"] != name


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


def _read_json(json_file: str, changes: Changes) -> object:
    if not PathManager.isfile(json_file):
        kind = "is no file" if PathManager.exists(json_file) else "no such annotation file"
        raise DatasetError(
            f"{json_file}: {kind}: correct the path under which the data set is "
            "registered, or DETECTRON2_DATASETS, which Detectron2's own data sets are below"
        )
    content, has_mark = load_json(PathManager.get_local_path(json_file), json_file)
    changes.is_rewritten |= has_mark  # which Detectron2's reader does not take
    return content


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
    faults = []
    for index, record in enumerate(records):
        missing = [key for key in keys if not isinstance(record, dict) or key not in record]
        if missing:
            lacks = f"has no {' and no '.join(missing)}: each needs {', '.join(keys)}"
            faults.append((lacks, f"{section}[{index}]{_known_as(record)}"))
    yield from _once_each(faults, json_file)


def _known_as(record: object) -> str:
    """The id and name of a record whose place alone says little; empty if it has none."""
    known = [] if not isinstance(record, dict) else [record.get("file_name"), record.get("name")]
    known = [repr(value) for value in known if isinstance(value, str)]
    if isinstance(record, dict) and type(record.get("id")) in (int, str):
        known.insert(0, f"id {record['id']!r}")
    if isinstance(record, dict) and type(record.get("image_id")) in (int, str):
        known.append(f"image_id {record['image_id']!r}")
    return f" ({', '.join(known)})" if known else ""


def _once_each(faults: Iterable[tuple[str, str]], json_file) -> Iterator[str]:
    """A sentence for each fault, with the first culprit and the number of the others.

    Args:
        faults: (what is wrong, culprit), many of which may have the same fault.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for fault, culprit in faults:
        groups[fault].append(culprit)
    for fault, culprits in groups.items():
        more = f" ({len(culprits) - 1} more likewise)" if len(culprits) > 1 else ""
        yield f"{json_file}: {culprits[0]} {fault}{more}"


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
    names, sizes = [], []
    for image in content["images"]:
        if not isinstance(image["file_name"], str) or not image["file_name"]:
            names.append(f"image {image['id']} has the file_name {image['file_name']!r}")
        if not all(type(image[key]) is int and image[key] > 0 for key in ("height", "width")):
            sizes.append(
                f"image {image['id']} ({image['file_name']}) has height {image['height']!r} and "
                f"width {image['width']!r}"
            )
    for faults, remedy in (
        (names, "it must be a path below the image folder"),
        (sizes, "they must be its pixels"),
    ):
        yield from _with_number(faults, remedy, json_file)


def _with_number(faults: list[str], remedy: str, json_file) -> Iterator[str]:
    """One sentence on all that have a fault, of which the first is told."""
    if faults:
        more = f" ({len(faults) - 1} more likewise)" if len(faults) > 1 else ""
        yield f"{json_file}: {faults[0]}: {remedy}{more}"


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
    crowds, ignored = [], []
    for annotation in content["annotations"]:
        if annotation.get("iscrowd") not in (0, 1, None):
            crowds.append(f"annotation {annotation['id']} has iscrowd {annotation['iscrowd']!r}")
        if annotation.get("ignore"):
            ignored.append(
                f"annotation {annotation['id']} has 'ignore', which COCO's evaluation overwrites"
            )
    yield from _with_number(crowds, "it must be 0 or 1", json_file)
    yield from _with_number(ignored, "set its iscrowd to 1 instead", json_file)
    unnamed = [
        f"category {category['id']} has the name {category['name']!r}"
        for category in content["categories"]
        if type(category["name"]) not in (str, int, float)
    ]
    yield from _with_number(unnamed, "it must be text", json_file)


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
            listings[folder] = _file_names(folder)
        # Asked again, as upper and lower case may be the same to the file system.
        if name not in listings[folder] and not PathManager.isfile(path):
            missing.append(image["file_name"])
    return missing


def _file_names(folder: str) -> set[str]:
    """Names of the regular files in a folder; of an address, of all that is there."""
    if os.path.isdir(folder):
        return set(regular_files(folder))
    return set(PathManager.ls(folder)) if PathManager.isdir(folder) else set()


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
