"""Data sets in COCO's format, which are read to be mended: crowds, boxes, places of images.

Whatever :mod:`isda.data.layouts` finds, cleaned as for training.
"""

from pathlib import Path

from isda.data.changes import Changes
from isda.data.classes import distinct_names, drop_placeholders
from isda.data.cleaning import clean_annotations
from isda.data.coco_json import check_image_files, read_coco_json
from isda.data.crowds import instances_of_crowds, suspicious_crowds
from isda.data.errors import DatasetError, ImageError
from isda.data.file_names import resolve_file_names
from isda.data.formats.annotated import AnnotatedImage, Instance, Report, read_size
from isda.data.formats.registry import Format, Options
from isda.data.layouts import Split, annotation_format, find_dataset

__all__ = ["FORMAT"]


def _splits(path: Path) -> list[Split]:
    """Those in COCO's format; empty if the path is in none of its layouts."""
    try:
        splits = find_dataset(path)
    except DatasetError:
        return []
    return [split for split in splits if annotation_format(split.json_file) == "coco"]


def _read(path: Path, report: Report, options: Options) -> list[AnnotatedImage]:
    contents, changes = {}, {}
    for split in find_dataset(path):
        changes[split] = Changes()
        content = read_coco_json(split.json_file, split.name != "test", changes=changes[split])
        root = options.images or split.image_root
        folder = options.images or split.folder
        content = resolve_file_names(content, root, changes[split], folder)
        check_image_files(content, split.json_file, root)
        contents[split] = content
    drop_placeholders(list(contents.values()))
    images = []
    for split, content in contents.items():
        if options.crowds_are_instances:
            content = instances_of_crowds(content, changes[split])
        images += _images(split, content, changes[split], options, report)
    return images


def _images(
    split: Split, content: dict, changes: Changes, options: Options, report: Report
) -> list[AnnotatedImage]:
    annotations = clean_annotations(content, split.json_file, changes)
    categories = sorted(distinct_names(content["categories"], changes), key=lambda c: c["id"])
    report.notes += [f"{split.json_file}: {line}" for line in changes.lines()]
    if sentence := suspicious_crowds(annotations, categories):
        report.notes.append(f"{split.json_file}: {sentence}")
    report.classes += [c["name"] for c in categories if c["name"] not in report.classes]
    names = {category["id"]: category["name"] for category in categories}
    instances: dict[int | str, list[Instance]] = {i["id"]: [] for i in content["images"]}
    for a in annotations:
        instance = Instance(names[a["category_id"]], a["segmentation"], bool(a["iscrowd"]))
        instances[a["image_id"]].append(instance)
    images = []
    for image in content["images"]:
        source = (options.images or split.image_root) / image["file_name"]
        try:
            size = read_size(source, image["height"], image["width"])
        except ImageError as error:
            report.refuse(error)
            continue
        name = _inner(image["file_name"])
        part = "" if split.name == "all" else split.name
        images.append(AnnotatedImage(name, source, size, instances[image["id"]], part))
    return images


def _inner(file_name: str) -> str:
    """The name without what leads out of the folder that will be written."""
    path = Path(file_name)
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


FORMAT = Format(
    "coco",
    "a data set in COCO's format",
    lambda path: bool(_splits(path)),
    _read,
    frozenset({"images", "crowds_are_instances"}),
)
