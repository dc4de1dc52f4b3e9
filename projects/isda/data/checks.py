"""Checks of the annotations of COCO data sets before hours of training are spent on them.

Nothing here hands a segmentation to pycocotools before it was looked at: it crashes on some
malformed ones.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data.catalog import Metadata

from isda.data.classes import check_categories, registered_metadata
from isda.data.coco_json import check_image_files, read_coco_json
from isda.data.errors import DatasetError
from isda.data.masks import UnusableSegmentationError, compressed_rle, parse_segmentation

__all__ = [
    "CleanedAnnotations",
    "check_coco_json",
    "check_datasets",
    "clean_annotations",
    "is_box",
    "unusable_reason",
]

logger = logging.getLogger(__name__)

# pycocotools reads these of every annotation that it evaluates.
_EVALUATED = ("bbox", "area", "iscrowd")
_MALFORMED = "malformed"


@dataclass
class CleanedAnnotations:
    """The usable annotations of a file, and what happened to the others."""

    annotations: list[dict]
    left_out: Counter = field(default_factory=Counter)  # reason: how many
    repaired: Counter = field(default_factory=Counter)  # what was filled in: how many
    first: dict[str, str] = field(default_factory=dict)  # reason: the first such annotation

    def summary(self) -> str:
        """One line on what is not as in the file; empty if nothing is."""
        parts = [
            f"{n} {reason} (first: {self.first[reason]})" for reason, n in self.left_out.items()
        ]
        left_out = f"{self.left_out.total()} annotations left out: {', '.join(parts)}"
        repaired = f"filled in: {', '.join(f'{n} {what}' for what, n in self.repaired.items())}"
        return "; ".join([left_out] * bool(parts) + [repaired] * bool(self.repaired))


def clean_annotations(content: dict, json_file: str | os.PathLike) -> CleanedAnnotations:
    """Leaves out what nothing can be learnt from, and fills in what evaluation reads.

    Left out are annotations without segmentation, malformed (not finite, absurdly far off, runs
    that do not add up), of zero area, or outside the image. Filled in are missing ``iscrowd``,
    ``area`` and ``bbox``, and an id of 0, which COCO's evaluation takes for "not matched".

    Args:
        content: of :func:`read_coco_json`; stays as it is.
        json_file: for messages.

    Raises:
        DatasetError: an RLE is of another size than its image.
    """
    cleaned = CleanedAnnotations([])
    free_id = max((a["id"] for a in content["annotations"]), default=0) + 1
    for annotation, image, reason in _with_reasons(content, json_file):
        if reason:
            cleaned.left_out[reason] += 1
            cleaned.first.setdefault(reason, _named(annotation, image))
            continue
        changes = _repairs(annotation, image)
        if annotation["id"] == 0:
            changes["id"] = free_id
        cleaned.repaired.update(changes.keys())
        cleaned.annotations.append(annotation | changes if changes else annotation)
    return cleaned


def _with_reasons(content: dict, json_file) -> Iterator[tuple[dict, dict, str]]:
    """Each annotation, its image, and why it is unusable; an empty string if it is not."""
    images = {image["id"]: image for image in content["images"]}
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        try:
            yield annotation, image, unusable_reason(annotation, image)
        except ValueError as error:
            raise DatasetError(f"{json_file}: {_named(annotation, image)}: {error}") from error


def unusable_reason(annotation: dict, image: dict) -> str:
    """Why nothing can be learnt from an annotation; an empty string if something can.

    Args:
        annotation, image: records of a COCO file that belong together.

    Raises:
        ValueError: an RLE is of another size than its image.
    """
    segmentation = annotation.get("segmentation")
    try:
        parse_segmentation(segmentation, (image["height"], image["width"]))
    except UnusableSegmentationError as error:
        return str(error) if segmentation else "without segmentation"
    is_rle = isinstance(segmentation, dict)
    return _MALFORMED if is_rle and not _has_integers(segmentation) else ""


def _has_integers(rle: dict) -> bool:
    counts = rle["counts"] if isinstance(rle["counts"], list) else []
    return all(type(number) is int for number in (*rle["size"], *counts))


def _repairs(annotation: dict, image: dict) -> dict:
    """What has to be put in the place of missing or senseless values of a usable annotation."""
    segmentation, changes = annotation["segmentation"], {}
    size = image["height"], image["width"]
    if isinstance(segmentation, list) and _has_short_part(segmentation):
        # pycocotools takes four numbers for a box, and fails on fewer.
        segmentation = [part for part in segmentation if len(part) >= 6]
        changes["segmentation"] = segmentation
    if "iscrowd" not in annotation:
        changes["iscrowd"] = 0
    if not is_box(annotation.get("bbox")):
        changes["bbox"] = mask_util.toBbox(compressed_rle(segmentation, size)).tolist()
    if not _is_finite(annotation.get("area")):
        changes["area"] = int(mask_util.area(compressed_rle(segmentation, size)))
    return changes


def _has_short_part(polygons: list) -> bool:
    return any(len(part) < 6 for part in polygons)


def is_box(box: object) -> bool:
    """Whether a value is a COCO box, [x, y, width, height], of positive size."""
    return (
        isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box)) and min(box[2:]) > 0
    )


def _is_finite(number: object) -> bool:
    return type(number) in (int, float) and bool(np.isfinite(number))


def check_coco_json(
    json_file: str | os.PathLike, image_root: str | os.PathLike, evaluated: bool = False
) -> None:
    """Checks a COCO data set that Detectron2 itself will read, and COCO's evaluation.

    Those take the file as it is. So what would kill or stop them is fatal here, and other
    degenerate annotations, which training leaves out, are counted in a warning.

    Args:
        json_file: annotation file in COCO's format for instances.
        image_root: the folder that the file names in it are relative to.
        evaluated: whether the data set is evaluated on; else it is trained on.

    Raises:
        DatasetError: the first reason not to use it.
    """
    content = read_coco_json(json_file, needs_annotations=not evaluated)
    check_image_files(content, json_file, image_root)
    _check_annotations(content, json_file, evaluated)


def _check_annotations(content: dict, json_file, evaluated: bool) -> None:
    if not evaluated and all(a.get("iscrowd", 0) for a in content["annotations"]):
        raise DatasetError(
            f"{json_file}: has no annotation to train on (crowds do not count): is it a test set?"
        )
    counts: Counter[str] = Counter()
    for annotation, image, reason in _with_reasons(content, json_file):
        counts[reason] += 1
        culprit = f"is {reason}" if reason == _MALFORMED else ""
        if evaluated:
            culprit = culprit or _breaks_evaluation(annotation)
        if culprit:
            raise DatasetError(
                f"{json_file}: {_named(annotation, image)} {culprit}, which COCO's own code does "
                "not survive: correct it, or register the data set by "
                "isda.data.register_coco_json, which leaves out or repairs such annotations"
            )
    if evaluated and any(annotation["id"] == 0 for annotation in content["annotations"]):
        logger.warning(
            f"{json_file}: has an annotation with id 0, which COCO's evaluation takes for missed, "
            "whatever is predicted: count ids from 1"
        )
    del counts[""]
    if counts:
        listed = ", ".join(f"{number} {reason}" for reason, number in counts.items())
        logger.warning(f"{json_file}: annotations that nothing can be learnt from: {listed}")


def _breaks_evaluation(annotation: dict) -> str:
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return "is without segmentation"
    if isinstance(segmentation, list) and _has_short_part(segmentation):
        return "has a polygon of fewer than 6 numbers"
    missing = [key for key in _EVALUATED if key not in annotation]
    if missing:
        return f"is without {' and '.join(missing)}"
    return "" if is_box(annotation["bbox"]) else "has a bbox that is not [x, y, width, height]"


def check_datasets(train_names: Iterable[str], test_names: Iterable[str]) -> None:
    """Checks the data sets of a configuration that have COCO annotations.

    Others (LVIS, Cityscapes) are left to Detectron2. Generates what is generated on first use.

    Args:
        train_names, test_names: as in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

    Raises:
        DatasetError: a name is not registered, or what :func:`check_coco_json` finds.
    """
    checked = set()
    for names, evaluated in ((train_names, False), (test_names, True)):
        for name in names:
            metadata = registered_metadata(name)
            if metadata.get("evaluator_type") == "coco" and (name, evaluated) not in checked:
                checked.add((name, evaluated))
                _check_dataset(name, metadata, evaluated)


def _check_dataset(name: str, metadata: Metadata, evaluated: bool) -> None:
    json_file = metadata.get("json_file")
    if json_file is None:
        return
    content = read_coco_json(json_file, needs_annotations=not evaluated)
    check_categories(name, content["categories"])
    check_image_files(content, json_file, metadata.image_root)
    _check_annotations(content, json_file, evaluated)


def _named(annotation: dict, image: dict) -> str:
    return f"annotation {annotation['id']} of {image['file_name']}"
