"""Going through a data set: everything that is wrong, and the measures of what is there."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util

from isda.data.analysis.files import equal_files, read_all, stray_images
from isda.data.analysis.findings import ERROR, NOTE, WARNING, Finding
from isda.data.analysis.geometry import Geometry, measure
from isda.data.checks import is_box, unusable_reason
from isda.data.coco_json import (
    check_image_files,
    find_missing_images,
    find_problems,
    read_coco_json,
)
from isda.data.errors import DatasetError
from isda.data.images import DEFAULT_OPTIONS, ImageOptions
from isda.data.layouts import Split
from isda.data.masks import compressed_rle
from isda.wording import listed, plural

__all__ = ["ImageRecord", "SplitAnalysis", "Analysis", "examine"]

_TINY = 4  # pixels along the shorter side of a box: nothing smaller survives a stride of 4
_FEW_IMAGES = 10
_BOX_IOU = 0.5  # of a stated box with that of its mask, below which it is another box


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
    image_options: ImageOptions = field(default_factory=ImageOptions)  # how images are read

    @property
    def will_train(self) -> bool:
        """Whether nothing was found that training stops at."""
        return all(finding.level != ERROR for finding in self.findings)


def examine(
    splits: Sequence[Split],
    *,
    reads_images: bool = True,
    advance: Callable[[], None] = lambda: None,
    options: ImageOptions = DEFAULT_OPTIONS,
) -> Analysis:
    """Checks annotations and images of all splits, and measures the instances.

    Args:
        splits: as :func:`isda.data.layouts.find_dataset` returns them.
        reads_images: whether every image is decoded; else only their presence is checked.
        advance: called after each image that was decoded.
        options: how training will read the images.
    """
    analysis = Analysis(image_options=options)
    for split in splits:
        try:
            content = read_coco_json(split.json_file, split.name != "test", is_checked=False)
        except DatasetError as error:
            analysis.findings.append(Finding(ERROR, str(error), split.name))
            continue
        _examine_split(split, content, analysis)
        if reads_images:
            analysis.findings += _of_pixels(
                analysis.splits[-1], _sound(content)[0], advance, options
            )
    analysis.findings += [
        *_of_classes(analysis.splits),
        *_of_equal_files(analysis.splits),
        *_of_stray_images(analysis.splits),
    ]
    if "val" not in {split.name for split in splits}:
        text = "there is no validation split, so training evaluates a fifth of the images instead"
        analysis.findings.append(Finding(NOTE, text))
    return analysis


def _examine_split(split: Split, content: dict, analysis: Analysis) -> None:
    problems = find_problems(content, split.json_file)
    analysis.findings += [Finding(ERROR, problem, split.name) for problem in problems]
    images, annotations, categories = _sound(content)
    try:
        check_image_files({"images": images}, split.json_file, split.image_root)
    except DatasetError as error:
        analysis.findings.append(Finding(ERROR, str(error), split.name))
    usable = _usable(images, annotations, split, analysis.findings)
    records = [_record(image, usable[image["id"]], categories) for image in images]
    split_analysis = SplitAnalysis(
        split.name, split.json_file, split.image_root, categories, records
    )
    analysis.splits.append(split_analysis)
    analysis.findings += [
        *_of_entries(split_analysis),
        *_of_instances(split_analysis),
        *_of_stated_boxes(split_analysis),
    ]


def _sound(content: dict) -> tuple[list[dict], list[dict], list[dict]]:
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
    return images, annotations, sorted(categories, key=lambda c: (str(type(c["id"])), c["id"]))


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


def _usable(
    images: list[dict], annotations: list[dict], split: Split, findings: list[Finding]
) -> dict[int | str, list[dict]]:
    """Annotations by image id that something can be learnt from; the others become findings."""
    by_id = {image["id"]: image for image in images}
    usable, useless = defaultdict(list), defaultdict(list)
    for annotation in annotations:
        image = by_id[annotation["image_id"]]
        where = f"annotation {annotation['id']} of {image['file_name']}"
        try:
            reason = unusable_reason(annotation, image)
        except ValueError as error:
            text = f"{split.json_file}: {where}: {error}"
            findings.append(Finding(ERROR, text, split.name, (image["file_name"],)))
            continue
        if reason:
            useless[reason].append((where, image["file_name"]))
        else:
            usable[annotation["image_id"]].append(annotation)
    for reason, members in useless.items():
        text = (
            f"{plural(len(members), 'annotation')} {reason}, which training leaves out: "
            f"{listed([where for where, _ in members])}"
        )
        findings.append(Finding(WARNING, text, split.name, _names(members)))
    if split.name != "test" and not any(
        not a.get("iscrowd", 0) for of_image in usable.values() for a in of_image
    ):
        text = f"{split.json_file}: has no annotation that can be used (crowds do not count)"
        findings.append(Finding(ERROR, text, split.name))
    return usable


def _names(members: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for _, name in members))


def _record(image: dict, annotations: list[dict], categories: list[dict]) -> ImageRecord:
    size = image["height"], image["width"]
    instances = [_without_short_parts(a) for a in annotations if not a.get("iscrowd", 0)]
    rles = [compressed_rle(a["segmentation"], size) for a in instances]
    numbers = {category["id"]: index for index, category in enumerate(categories)}
    geometry = measure(rles, [numbers[a["category_id"]] for a in instances], size)
    num_crowds = len(annotations) - len(instances)
    return ImageRecord(image["file_name"], size, instances, num_crowds, geometry)


def _without_short_parts(annotation: dict) -> dict:
    """pycocotools takes a part of four numbers for a box."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        return annotation
    return annotation | {"segmentation": [part for part in segmentation if len(part) >= 6]}


def _of_entries(split: SplitAnalysis) -> Iterator[Finding]:
    """Of images that are listed twice or without instances."""
    counts = Counter(image.file_name for image in split.images)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        text = f"{plural(len(twice), 'image')} listed more than once: {listed(twice)}"
        yield Finding(WARNING, text, split.name, tuple(twice))
    empty = [image.file_name for image in split.images if not image.annotations]
    if empty:
        text = f"{plural(len(empty), 'image')} without instances: {listed(empty)}"
        yield Finding(NOTE, text, split.name, tuple(empty))
    if split.name == "train" and len(split.images) < _FEW_IMAGES:
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


def _of_stated_boxes(split: SplitAnalysis) -> Iterator[Finding]:
    """Of boxes that are not those of their masks, as when axes or corners were confused."""
    wrong = []
    for image in split.images:
        for annotation, box in zip(image.annotations, image.geometry.boxes):
            stated = annotation.get("bbox")
            if is_box(stated) and _iou(stated, box) < _BOX_IOU:
                wrong.append((f"{annotation['id']} of {image.file_name}", image.file_name))
    if wrong:
        text = (
            f"{plural(len(wrong), 'annotation')} whose bbox is not [x, y, width, height] of the "
            f"mask: {listed([where for where, _ in wrong])}; training uses the masks alone"
        )
        yield Finding(WARNING, text, split.name, _names(wrong))


def _iou(first: Sequence[float], second: Sequence[float]) -> float:
    boxes = np.array([first, second], dtype=np.float64)
    return float(mask_util.iou(boxes[:1], boxes[1:], [0])[0, 0])


def _of_pixels(
    split: SplitAnalysis,
    images: list[dict],
    advance: Callable[[], None],
    options: ImageOptions,
) -> Iterator[Finding]:
    missing = set(find_missing_images({"images": images}, split.image_root))
    present = [image for image in images if image["file_name"] not in missing]
    broken, turned, constant = read_all(present, split.image_root, advance, options)
    for name, problem in broken.items():
        yield Finding(ERROR, problem, split.name, (name,))
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
        missing = [name for name in missing if not _is_placeholder(name, split.categories)]
        effect = {
            "train": "so they cannot be learnt",
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
        doubled = [name for name, n in Counter(split.class_names).items() if n > 1]
        if doubled:
            text = f"several categories have one name: {listed(doubled)}"
            yield Finding(WARNING, text, split.name)


def _is_placeholder(name: str, categories: Sequence[dict]) -> bool:
    """Of Roboflow, which puts the group of all classes before them; training leaves it out."""
    others = [category for category in categories if str(category["name"]) != name]
    return bool(others) and all(category.get("supercategory") == name for category in others)


def _of_equal_files(splits: Sequence[SplitAnalysis]) -> Iterator[Finding]:
    """Of images that are there twice, under two names or in two splits."""
    owners = defaultdict(set)
    for split in splits:
        for image in split.images:
            owners[(split.image_root / image.file_name).resolve()].add(split.name)
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
