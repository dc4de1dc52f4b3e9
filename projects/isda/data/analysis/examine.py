"""Examination of a data set: everything that is wrong, and measures of what is there."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from isda.data.analysis.files import equal_files, read_all, stray_images
from isda.data.analysis.findings import ERROR, NOTE, WARNING, Finding
from isda.data.analysis.geometry import Geometry, measure
from isda.data.changes import Changes
from isda.data.classes import distinct_names, drop_placeholders
from isda.data.cleaning import clean_annotations
from isda.data.coco_json import (
    check_image_files,
    find_missing_images,
    find_problems,
    read_coco_json,
)
from isda.data.crowds import crowds_instead, instances_of_crowds, suspicious_crowds
from isda.data.errors import DatasetError
from isda.data.file_names import resolve_file_names
from isda.data.images import DEFAULT_OPTIONS, ImageOptions
from isda.data.layouts import Split
from isda.data.masks import compressed_rle
from isda.data.pixel_centres import polygons_through_centres
from isda.data.walking import real_path
from isda.wording import listed, plural

__all__ = ["ImageRecord", "SplitAnalysis", "Analysis", "examine"]

_TINY = 4  # pixels along the shorter side of a box: nothing smaller survives a stride of 4
_FEW_IMAGES = 10


@dataclass
class ImageRecord:
    """One image whose records can be used, with the usable annotations."""

    file_name: str
    size: tuple[int, int]  # (height, width)
    annotations: list[dict]  # crowds are not among them
    num_crowds: int
    geometry: Geometry


@dataclass
class SplitAnalysis:
    """One annotation file with its images."""

    name: str
    json_file: Path
    image_root: Path
    categories: list[dict]  # by id
    images: list[ImageRecord]

    @property
    def class_names(self) -> list[str]:
        """In the order of the model's outputs."""
        return [str(category["name"]) for category in self.categories]

    def class_counts(self) -> Counter:
        """Instances by category id."""
        return Counter(a["category_id"] for image in self.images for a in image.annotations)


@dataclass
class Analysis:
    """What :func:`examine` has found."""

    splits: list[SplitAnalysis] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    image_options: ImageOptions = DEFAULT_OPTIONS  # how images are read

    @property
    def will_train(self) -> bool:
        """Whether nothing was found that training stops at."""
        return all(finding.level != ERROR for finding in self.findings)


def examine(
    splits: Sequence[Split],
    *,
    reads_images: bool = True,
    crowds_are_instances: bool = False,
    advance: Callable[[], None] = lambda: None,
    options: ImageOptions = DEFAULT_OPTIONS,
) -> Analysis:
    """Checks annotations and images of all splits, and measures the instances.

    Args:
        splits: as :func:`isda.data.layouts.find_dataset` returns them.
        reads_images: whether every image is decoded; else only their presence is checked.
        crowds_are_instances: whether ``iscrowd`` is ignored, which some tools set for every RLE.
        advance: called after each image that was decoded.
        options: how training will read the images.
    """
    analysis = Analysis(image_options=options)
    parts = []
    for split in splits:
        changes = Changes()
        try:
            content = read_coco_json(
                split.json_file, split.name != "test", is_checked=False, changes=changes
            )
        except DatasetError as error:
            analysis.findings.append(Finding(ERROR, str(error), split.name))
            continue
        problems = list(find_problems(content, split.json_file))
        analysis.findings += [Finding(ERROR, problem, split.name) for problem in problems]
        parts.append(_Part(split, _sound(content), changes, not problems))
    drop_placeholders([part.content for part in parts])
    for part in parts:
        if crowds_are_instances:
            part.content = instances_of_crowds(part.content, part.changes)
        _examine_part(part, analysis, reads_images, advance)
    in_order = {part.split.name for part in parts if part.is_in_order}
    analysis.findings += [
        *_of_classes([split for split in analysis.splits if split.name in in_order]),
        *_of_equal_files(analysis.splits),
    ]
    if len(in_order) == len(splits):
        analysis.findings += _of_stray_images(analysis.splits)
    if "val" not in {split.name for split in splits}:
        text = "there is no validation split, so training evaluates a fifth of the images instead"
        analysis.findings.append(Finding(NOTE, text))
    return analysis


@dataclass
class _Part:
    """A split on its way, as far as its records and references are in order."""

    split: Split
    content: dict
    changes: Changes
    is_in_order: bool  # all of its records are


def _examine_part(
    part: _Part, analysis: Analysis, reads_images: bool, advance: Callable[[], None]
) -> None:
    split, changes = part.split, part.changes
    content = resolve_file_names(part.content, split.image_root, changes, split.folder)
    try:
        check_image_files(content, split.json_file, split.image_root)
    except DatasetError as error:
        analysis.findings.append(Finding(ERROR, str(error), split.name))
    errors: dict[str, str] = {}
    annotations = clean_annotations(content, split.json_file, changes, errors.setdefault)
    content["categories"] = distinct_names(content["categories"], changes)
    categories = content["categories"]
    by_image = defaultdict(list)
    for annotation in annotations:
        by_image[annotation["image_id"]].append(annotation)
    records = [_record(image, by_image[image["id"]], categories) for image in content["images"]]
    examined = SplitAnalysis(split.name, split.json_file, split.image_root, categories, records)
    analysis.splits.append(examined)
    analysis.findings += [
        *_together(errors, split.name),
        *_of_changes(changes, split.name),
        *_of_annotations(annotations, content, split, part.is_in_order and not errors),
        *_of_entries(examined, part.is_in_order),
        *_of_instances(examined),
    ]
    if reads_images:
        missing = set(find_missing_images(content, split.image_root))
        present = [image for image in content["images"] if image["file_name"] not in missing]
        analysis.findings += _of_pixels(examined, present, advance, analysis.image_options)


def _together(errors: Mapping[str, str], split: str) -> Iterator[Finding]:
    """An error for each kind of message, with the first one and the number of the others.

    Args:
        errors: the image of each message.
    """
    kinds = defaultdict(list)
    for message, file in errors.items():
        before, _, text = message.partition(f"{file}: ")
        # What a message says of its own image begins with a number, or stands in brackets.
        kinds[re.split(r"[\d(]", text or before)[0]].append(message)
    for messages in kinds.values():
        more = f" ({len(messages) - 1} more likewise)" if len(messages) > 1 else ""
        files = tuple(errors[message] for message in messages)
        yield Finding(ERROR, f"{messages[0]}{more}", split, files)


def _of_changes(changes: Changes, split: str) -> Iterator[Finding]:
    """What training leaves out, and what it puts in the place of other values."""
    for reason, culprits in changes.left_out.items():
        text = (
            f"{plural(len(culprits), 'annotation')} {reason}, which training leaves out: "
            f"{listed(culprits.places)}"
        )
        yield Finding(WARNING, text, split, tuple(dict.fromkeys(culprits.files)))
    for what, culprits in changes.mended.items():
        text = f"{len(culprits):,} {what}: {listed(culprits.places)}"
        level = NOTE if culprits.is_note else WARNING
        yield Finding(level, text, split, tuple(dict.fromkeys(filter(None, culprits.files))))


def _of_annotations(
    annotations: Sequence[dict], content: dict, split: Split, is_in_order: bool
) -> Iterator[Finding]:
    """Of what makes all annotations of a file doubtful."""
    if is_in_order and split.name != "test" and all(a["iscrowd"] for a in annotations):
        text = (
            f"{split.json_file}: has no annotation that can be used (crowds do not count)"
            f"{crowds_instead(content | {'annotations': annotations})}"
        )
        yield Finding(ERROR, text, split.name)
    elif sentence := suspicious_crowds(annotations, content["categories"]):
        yield Finding(WARNING, sentence, split.name)
    if sentence := polygons_through_centres(annotations):
        yield Finding(WARNING, sentence, split.name)


def _sound(content: dict) -> dict:
    """Images, annotations and categories (by id) whose records and references are in order."""
    images = [
        image
        for image in _records(content, "images", "file_name", "height", "width")
        if isinstance(image["file_name"], str)
        and all(type(image[key]) is int and image[key] > 0 for key in ("height", "width"))
    ]
    categories = _records(content, "categories", "name")
    known = {image["id"] for image in images}
    classes = {category["id"] for category in categories}
    annotations = [
        a
        for a in _records(content, "annotations", "image_id", "category_id")
        if _is_id(a["image_id"])
        and _is_id(a["category_id"])
        and a["image_id"] in known
        and a["category_id"] in classes
    ]
    categories.sort(key=lambda c: (str(type(c["id"])), c["id"]))
    return {"images": images, "annotations": annotations, "categories": categories}


def _records(content: dict, section: str, *keys: str) -> list[dict]:
    records = content.get(section)
    return [
        record
        for record in (records if isinstance(records, list) else [])
        if isinstance(record, dict)
        and _is_id(record.get("id"))
        and all(key in record for key in keys)
    ]


def _is_id(value: object) -> bool:
    return type(value) in (int, str)


def _names(members: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for _, name in members))


def _record(image: dict, annotations: list[dict], categories: list[dict]) -> ImageRecord:
    size = image["height"], image["width"]
    instances = [annotation for annotation in annotations if not annotation["iscrowd"]]
    rles = [compressed_rle(a["segmentation"], size) for a in instances]
    numbers = {category["id"]: index for index, category in enumerate(categories)}
    geometry = measure(rles, [numbers[a["category_id"]] for a in instances], size)
    num_crowds = len(annotations) - len(instances)
    return ImageRecord(image["file_name"], size, instances, num_crowds, geometry)


def _of_entries(split: SplitAnalysis, is_in_order: bool) -> Iterator[Finding]:
    """Of images that are listed twice or without instances, and, if all can be used, too few."""
    counts = Counter(image.file_name for image in split.images)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        text = f"{plural(len(twice), 'image')} listed more than once: {listed(twice)}"
        yield Finding(WARNING, text, split.name, tuple(twice))
    empty = [image.file_name for image in split.images if not image.annotations]
    if empty:
        text = f"{plural(len(empty), 'image')} without instances: {listed(empty)}"
        yield Finding(NOTE, text, split.name, tuple(empty))
    if is_in_order and split.name == "train" and len(split.images) < _FEW_IMAGES:
        text = f"only {plural(len(split.images), 'image')} to train on"
        yield Finding(WARNING, text, split.name)


def _of_instances(split: SplitAnalysis) -> Iterator[Finding]:
    """Of objects that are annotated twice, and of those too small to be seen."""
    same, differing, tiny = [], [], []
    for image in split.images:
        for i, j in image.geometry.same:
            first, second = image.annotations[i], image.annotations[j]
            where = f"{first['id']} and {second['id']} of {image.file_name}"
            alike = first["category_id"] == second["category_id"]
            (same if alike else differing).append((where, image.file_name))
        small = (image.geometry.boxes[:, 2:].min(axis=1, initial=_TINY) < _TINY).nonzero()[0]
        tiny += [
            (f"{image.annotations[i]['id']} of {image.file_name}", image.file_name) for i in small
        ]
    for members, noun, what in (
        (same, "object", "annotated twice (masks nearly equal, one class)"),
        (differing, "object", "annotated with two classes (masks nearly equal)"),
        (tiny, "instance", f"narrower than {_TINY} pixels, which hardly any model sees"),
    ):
        if members:
            shown = listed([where for where, _ in members])
            text = f"{plural(len(members), noun)} {what}: annotations {shown}"
            yield Finding(WARNING, text, split.name, _names(members))


def _of_pixels(
    split: SplitAnalysis, images: list[dict], advance: Callable[[], None], options: ImageOptions
) -> Iterator[Finding]:
    broken, turned, constant = read_all(images, split.image_root, advance, options)
    yield from _together({problem: name for name, problem in broken.items()}, split.name)
    if turned:
        text = (
            f"{plural(len(turned), 'image')} turned by an EXIF tag, which is applied before "
            f"training: {listed(turned)}: make sure that the annotations are for the upright image"
        )
        yield Finding(NOTE, text, split.name, tuple(turned))
    if constant:
        text = (
            f"{plural(len(constant), 'image')} whose pixels are all equal, so that there is "
            f"nothing to see: {listed(constant)}: is it the page, the channel, the file that is "
            "meant?"
        )
        yield Finding(WARNING, text, split.name, tuple(constant))


def _of_classes(splits: Sequence[SplitAnalysis]) -> Iterator[Finding]:
    """Of classes that a split does not show, and of their ids and names."""
    for split in splits:
        counts = split.class_counts()
        missing = [str(c["name"]) for c in split.categories if not counts[c["id"]]]
        effect = {
            "train": "so they cannot be learnt",
            "all": "so they cannot be learnt",
            "val": "so their AP is not measured",
        }.get(split.name, "which changes nothing but the number of classes")
        if missing and split.images:
            text = f"{plural(len(missing), 'class')} without instances, {effect}: {listed(missing)}"
            yield Finding(WARNING, text, split.name)
        ids = [category["id"] for category in split.categories]
        if ids and all(type(i) is int for i in ids) and ids != list(range(1, len(ids) + 1)):
            text = (
                f"the {len(ids)} category ids go from {min(ids)} to {max(ids)}: training numbers "
                "the classes from 0 in their order"
            )
            yield Finding(NOTE, text, split.name)


def _of_equal_files(splits: Sequence[SplitAnalysis]) -> Iterator[Finding]:
    """Of images that are there twice, under two names or in two splits."""
    owners = defaultdict(set)
    for split in splits:
        for image in split.images:
            path = real_path(os.path.join(split.image_root, image.file_name))
            owners[Path(path)].add(split.name)
    shared = [path for path, names in owners.items() if len(names) > 1]
    groups = [[path] for path in shared] + equal_files(owners)
    leaks = [g for g in groups if len(set().union(*(owners[path] for path in g))) > 1]
    if leaks:
        text = (
            f"{plural(len(leaks), 'image')} in more than one split, which makes AP too good: "
            f"{listed([path.name for path, *_ in leaks])}: keep each in one"
        )
        yield Finding(WARNING, text, files=tuple(path.name for path, *_ in leaks))
    copies = [group for group in groups if group not in leaks]
    if copies:
        pairs = [f"{first.name} = {second.name}" for first, second, *_ in copies]
        text = f"{plural(len(copies), 'image')} there under several names: {listed(pairs)}"
        yield Finding(WARNING, text, files=tuple(first.name for first, *_ in copies))


def _of_stray_images(splits: Sequence[SplitAnalysis]) -> Iterator[Finding]:
    """Of images beside those of the data set that no record names."""
    named = {split.image_root / image.file_name for split in splits for image in split.images}
    strays = stray_images({split.image_root for split in splits}, named)
    if strays:
        text = (
            f"{plural(len(strays), 'image')} in the folders that no record names, so not used: "
            f"{listed(strays)}"
        )
        yield Finding(NOTE, text)
