"""Registering a folder of the user's: splits, classes, and what is counted on the way."""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from isda.data.changes import Changes
from isda.data.classes import distinct_names, drop_placeholders
from isda.data.cleaning import clean_annotations
from isda.data.coco_json import check_image_files, read_coco_json
from isda.data.crowds import crowds_instead, instances_of_crowds, suspicious_crowds
from isda.data.errors import DatasetError
from isda.data.file_names import resolve_file_names
from isda.data.formats.as_coco import find_any_dataset
from isda.data.layouts import Split
from isda.data.pixel_centres import polygons_through_centres
from isda.data.registration import register_located, write_copy
from isda.wording import listed

__all__ = ["CustomData", "forget_folders", "register_folder"]

_VALIDATION_SHARE = 0.2  # of the images of a data set that has no validation split
_LISTED = 5
_registered: dict[str, Path] = {}  # name in Detectron2's catalogs: the folder it is of


@dataclass(frozen=True)
class CustomData:
    """What :func:`register_folder` has registered."""

    names: dict[str, str]  # of "train", "val" and, where it is there, "test" in the catalogs
    classes: list[str]  # in the order of the model's outputs
    instances: dict[str, list[int]]  # per split the instances of each image, without crowds
    notes: list[str]  # what the user should know: left out, split, not taken for a class


def register_folder(path: str | os.PathLike, crowds_are_instances: bool = False) -> CustomData:
    """Registers the data set at ``path`` with Detectron2 as ``NAME_train``, ``NAME_val`` and so on.

    NAME is the folder's. Annotations are checked and cleaned as by ``register_coco_json``. Where
    there is no validation split, a fifth of the training images, the same ones each time, become
    one. The placeholder that Roboflow writes before the classes is left out. Registering the same
    path again replaces what it registered before.

    Args:
        path: anything that :func:`isda.data.formats.as_coco.find_any_dataset` understands.
        crowds_are_instances: whether ``iscrowd`` is ignored, which some tools set for every RLE.

    Raises:
        DatasetError: there is no such data set, it cannot be used, or its splits have different
            classes.
    """
    splits, notes = find_any_dataset(path)
    files = {split.name: split for split in splits}
    changes = {name: Changes() for name in files}
    contents = {name: _read(split, changes[name]) for name, split in files.items()}
    for number, name in drop_placeholders(list(contents.values())).items():
        notes.append(
            f"category {number} '{name}' has no instances and is the group of all others, as in "
            "Roboflow's exports: it is not taken for a class"
        )
        for of_split in changes.values():
            of_split.is_rewritten = True
    for name, split in files.items():
        contents[name] = _cleaned(contents[name], split, changes[name], crowds_are_instances)
        notes += [f"{split.json_file}: {line}" for line in changes[name].lines()]
        notes += _notes(contents[name], split)
    notes += _shared_images(contents, files)
    _compare_categories(files, contents)
    unchanged = {name for name, of_split in changes.items() if not of_split}
    if "val" not in contents:
        source = "all" if "all" in contents else "train"
        _split(contents, source, files[source].json_file, notes)
        files |= {"train": files[source], "val": files[source]}
        unchanged -= {"train", "val"}
    _check_instances(contents, files, notes)
    names = _register(Path(path), contents, files, unchanged)
    instances = {name: _counts(content) for name, content in contents.items()}
    return CustomData(names, _class_names(contents["train"]), instances, notes)


def _read(split: Split, changes: Changes) -> dict:
    """The checked content of a split's file."""
    content = read_coco_json(
        split.json_file, needs_annotations=split.name != "test", changes=changes
    )
    content = resolve_file_names(content, split.image_root, changes, split.folder)
    check_image_files(content, split.json_file, split.image_root)
    return content


def _cleaned(content: dict, split: Split, changes: Changes, crowds_are_instances: bool) -> dict:
    if crowds_are_instances:
        content = instances_of_crowds(content, changes)
    return content | {
        "annotations": clean_annotations(content, split.json_file, changes),
        "categories": distinct_names(content["categories"], changes),
    }


def _notes(content: dict, split: Split) -> Iterator[str]:
    """What is odd in a file but can be used as it is."""
    if sentence := suspicious_crowds(content["annotations"], content["categories"]):
        yield f"{split.json_file}: {sentence}"
    if sentence := polygons_through_centres(content["annotations"]):
        yield f"{split.json_file}: {sentence}"
    names = Counter(image["file_name"] for image in content["images"])
    if twice := [name for name, count in names.items() if count > 1]:
        yield f"{split.json_file}: {len(twice)} images are listed more than once: {listed(twice)}"


def _shared_images(contents: Mapping[str, dict], files: Mapping[str, Split]) -> Iterator[str]:
    """Of images that are in two splits."""
    owners = defaultdict(list)
    for name, content in contents.items():
        root = os.path.realpath(files[name].image_root)
        for file_name in {image["file_name"] for image in content["images"]}:
            owners[os.path.normpath(os.path.join(root, file_name))].append(name)
    if shared := sorted(path for path, names in owners.items() if len(names) > 1):
        names = sorted({name for path in shared for name in owners[path]})
        yield (
            f"{len(shared)} images are in more than one split ({', '.join(names)}), which makes "
            f"AP too good: {listed(shared)}: keep each in one"
        )


def _compare_categories(files: Mapping[str, Split], contents: Mapping[str, dict]) -> None:
    """Raises DatasetError if the splits do not agree on ids and names."""
    first, *others = files.values()
    expected = _categories(contents[first.name])
    for split in others:
        found = _categories(contents[split.name])
        if found == expected:
            continue
        lacking = [f"{i} '{expected[i]}'" for i in expected.keys() - found.keys()]
        extra = [f"{i} '{found[i]}'" for i in found.keys() - expected.keys()]
        renamed = [
            f"{i} is '{expected[i]}' and '{found[i]}'"
            for i in expected.keys() & found.keys()
            if expected[i] != found[i]
        ]
        parts = [("lacking: ", lacking), ("additional: ", extra), ("renamed: ", renamed)]
        differences = "; ".join(title + listed(sorted(p), _LISTED) for title, p in parts if p)
        raise DatasetError(
            f"{split.json_file} has other categories than {first.json_file} ({differences}): write "
            "the same list 'categories', with the same ids, into both; classes without "
            "instances do no harm"
        )


def _categories(content: dict) -> dict[int, str]:
    return {category["id"]: category["name"] for category in content["categories"]}


def _class_names(content: dict) -> list[str]:
    return [name for _, name in sorted(_categories(content).items())]


def _split(contents: dict[str, dict], source: str, json_file: Path, notes: list[str]) -> None:
    """Put ``train`` and ``val`` in the place of ``source``.

    An image is chosen by the hash of its name, so that a data set that grows keeps its split.
    Copies of one image, which Roboflow names ``NAME.rf.HASH.jpg``, stay together.

    Raises:
        DatasetError: fewer than two images have instances.
    """
    content = contents.pop(source)
    annotated = {a["image_id"] for a in content["annotations"] if not a["iscrowd"]}
    groups = defaultdict(list)
    for image in content["images"]:
        groups[image["file_name"].partition(".rf.")[0]].append(image)
    chosen: set[int | str] = set()
    # With and without instances apart, so that neither split is left without any.
    for has_instances in (True, False):
        kind = [
            group
            for _, group in sorted(groups.items(), key=lambda item: _hash(item[0]))
            if any(image["id"] in annotated for image in group) is has_instances
        ]
        if has_instances and len(kind) < 2:
            raise DatasetError(
                f"{json_file}: has no validation split, and {len(kind)} images with instances are "
                "too few to make one"
                f"{crowds_instead(content) or ': annotate more, or give the same images for both'}"
            )
        count = max(round(_VALIDATION_SHARE * len(kind)), int(has_instances))
        chosen |= {image["id"] for group in kind[:count] for image in group}
    contents["train"] = _part(content, lambda image_id: image_id not in chosen)
    contents["val"] = _part(content, lambda image_id: image_id in chosen)
    names = sorted(image["file_name"] for image in contents["val"]["images"])
    notes.append(
        f"{json_file}: there is no validation split, so {len(names)} of the "
        f"{len(content['images'])} images are not trained on but evaluated "
        f"({listed(names, _LISTED)}; the same each time). To decide yourself, write train.json and "
        "val.json"
    )


def _hash(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


def _part(content: dict, keep) -> dict:
    images = [image for image in content["images"] if keep(image["id"])]
    annotations = [a for a in content["annotations"] if keep(a["image_id"])]
    return content | {"images": images, "annotations": annotations}


def _check_instances(
    contents: Mapping[str, dict], files: Mapping[str, Split], notes: list[str]
) -> None:
    """Raises DatasetError if there is nothing to train on or to evaluate by."""
    for name, purpose in (("train", "train on"), ("val", "choose the best weights by")):
        if not any(_counts(contents[name])):
            raise DatasetError(
                f"{files[name].json_file}: has no annotation to {purpose} (crowds do not count)"
                f"{crowds_instead(contents[name])}"
            )
    instances = [a for a in contents["train"]["annotations"] if not a["iscrowd"]]
    trained = {annotation["category_id"] for annotation in instances}
    names = [name for i, name in _categories(contents["train"]).items() if i not in trained]
    if names:
        notes.append(
            f"{files['train'].json_file}: no instance to learn these classes from: "
            f"{listed(names, _LISTED)}"
        )


def _counts(content: dict) -> list[int]:
    """Instances of each image, without crowds."""
    counts = Counter(a["image_id"] for a in content["annotations"] if not a["iscrowd"])
    return [counts[image["id"]] for image in content["images"]]


def _register(
    path: Path,
    contents: Mapping[str, dict],
    files: Mapping[str, Split],
    unchanged: Collection[str],
) -> dict[str, str]:
    """Names in the catalogs; what is not as in its file is written to a copy."""
    path = path.expanduser().resolve()
    forget_folders(path)
    folder = path if path.is_dir() else path.parent
    stem = re.sub(r"[^\w-]+", "_", folder.name) or "data"
    names = {}
    for split, content in contents.items():
        name = names[split] = _free_name(f"{stem}_{split}")
        json_file = str(files[split].json_file)
        if split not in unchanged:
            json_file = write_copy(content, f"{split}.json")
        located = json_file, str(files[split].image_root)
        ids = sorted(_categories(content))
        register_located(
            name,
            lambda located=located: located,
            thing_classes=_class_names(content),
            thing_dataset_id_to_contiguous_id={i: number for number, i in enumerate(ids)},
        )
        _registered[name] = path
    return names


def forget_folders(path: Path | None = None) -> None:
    """Takes what :func:`register_folder` registered, for ``path`` or in all, out again."""
    for name in [name for name, of in _registered.items() if path in (None, of)]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        del _registered[name]


def _free_name(wanted: str) -> str:
    """``wanted``, with a number behind it if another data set is called so."""
    name, number = wanted, 1
    while name in DatasetCatalog:
        number += 1
        name = f"{wanted}_{number}"
    return name
