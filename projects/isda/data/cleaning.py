"""Cleaning of the annotations of a COCO file: what is left out, and what is mended.

The one place that decides: training, evaluation and the checker take what is returned here.
Nothing is handed to pycocotools before it was looked at: it crashes on some malformed
segmentations.
"""

import os
from collections.abc import Callable, Iterator
from typing import NoReturn

import numpy as np
import pycocotools.mask as mask_util

from isda.data.changes import Changes
from isda.data.errors import DatasetError
from isda.data.masks import UnusableSegmentationError, usable_rle

__all__ = [
    "MALFORMED",
    "clean_annotations",
    "has_short_part",
    "is_box",
    "named",
    "unusable_reason",
    "with_reasons",
]

MALFORMED = "malformed"
# Pixels between an edge of a stated box and that of the mask, up to which rounding explains them,
# and beyond which nothing does; between, the IoU of the boxes decides.
_EDGES = (1.0, 2.0)
_BOX_IOU = 0.5
# Share of such boxes from which on no box of the file is trusted: their numbers mean something
# else, and of some objects that is nearly the same box.
_MANY_BOXES = 0.05
_BEYOND = 0.01  # of the image, by which normalised coordinates may leave [0, 1]
_SAME_OUTLINE = "the same class and outline as another one of the image"


def _raise(message: str) -> NoReturn:
    raise DatasetError(message)


def clean_annotations(
    content: dict,
    json_file: str | os.PathLike,
    changes: Changes,
    on_error: Callable[[str, str], object] = lambda message, _: _raise(message),
) -> list[dict]:
    """The annotations that something can be learnt from, such that everything loads them.

    Left out are annotations without segmentation, malformed (not finite, absurdly far off, runs
    that do not add up), without a pixel, outside the image, or there twice. Filled in are missing
    ``iscrowd``, ``area`` and ``bbox``, and an id of 0, which COCO's evaluation takes for "not
    matched". Boxes that are not those of the masks, which training does not use, become such, as
    box AP is measured by them. Polygons in shares of the image's size become pixels.

    Args:
        content: of :func:`isda.data.coco_json.read_coco_json`; stays as it is.
        json_file: for messages.
        changes: told of all that is done.
        on_error: takes a message, and the image, of an RLE of another size than its image; by
            default it is raised.

    Raises:
        DatasetError: an RLE is of another size than its image.
    """
    content = _in_pixels(content, changes)
    free_id = max((a["id"] for a in content["annotations"] if type(a["id"]) is int), default=0)
    cleaned, boxes, wrong, seen = [], [], [], set()
    for annotation, image, reason, rle in with_reasons(content, json_file, on_error):
        place, file = named(annotation, image), image["file_name"]
        if not reason and (key := _identity(annotation, rle)) in seen:
            reason = _SAME_OUTLINE
        if reason:
            changes.leave_out(reason, place, file)
            continue
        seen.add(key)
        mended = _mended(annotation, rle, changes, place, file)
        if annotation["id"] == 0:
            changes.fill("id")
            mended["id"] = free_id = free_id + 1
        box = mask_util.toBbox(rle)
        if "bbox" not in mended and _is_other_box(annotation["bbox"], box):
            wrong.append((len(cleaned), place, file))
        boxes.append(box)
        cleaned.append(annotation | mended if mended else annotation)
    _mend_boxes(cleaned, boxes, wrong, changes)
    return cleaned


def with_reasons(
    content: dict,
    json_file: str | os.PathLike,
    on_error: Callable[[str, str], object] = lambda message, _: _raise(message),
) -> Iterator[tuple[dict, dict, str, dict | None]]:
    """Each annotation, its image, why it is unusable (else an empty string), and its RLE if not.

    Args and Raises: as of :func:`clean_annotations`.
    """
    images = {image["id"]: image for image in content["images"]}
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        try:
            reason, rle = unusable_reason(annotation, image)
        except ValueError as error:
            on_error(f"{json_file}: {named(annotation, image)}: {error}", image["file_name"])
            continue
        yield annotation, image, reason, rle


def unusable_reason(annotation: dict, image: dict) -> tuple[str, dict | None]:
    """Why nothing can be learnt from an annotation; an empty string, and its RLE, if it can.

    Args:
        annotation, image: records of a COCO file that belong together.

    Raises:
        ValueError: an RLE is of another size than its image.
    """
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return "without segmentation", None
    if isinstance(segmentation, dict) and not _has_integers(segmentation):
        return MALFORMED, None
    try:
        return "", usable_rle(segmentation, (image["height"], image["width"]))
    except UnusableSegmentationError as error:
        return str(error), None


def _has_integers(rle: dict) -> bool:
    """Whether an RLE has numbers that Python takes for the same as pycocotools does."""
    size, counts = rle.get("size"), rle.get("counts")
    numbers = [*(size if isinstance(size, list) else [None])]
    numbers += counts if isinstance(counts, list) else []
    return all(type(number) is int for number in numbers)


def _identity(annotation: dict, rle: dict) -> tuple:
    """What two annotations share if one object was annotated twice by mistake."""
    counts = rle["counts"].encode() if isinstance(rle["counts"], str) else rle["counts"]
    keys = "image_id", "category_id"
    return *(annotation[key] for key in keys), bool(annotation.get("iscrowd")), hash(counts)


def _in_pixels(content: dict, changes: Changes) -> dict:
    """The content with polygons in pixels, if most are in shares of the image's size.

    A few such polygons among others are dots that somebody clicked into a corner.
    """
    outlines = [a for a in content["annotations"] if isinstance(a.get("segmentation"), list)]
    shares = [a for a in outlines if _is_normalised(a["segmentation"])]
    if 2 * len(shares) <= len(outlines):
        return content
    images = {image["id"]: image for image in content["images"]}
    scaled = {}
    for annotation in shares:
        image = images[annotation["image_id"]]
        scale = np.array([image["width"], image["height"]], dtype=np.float64)
        parts = [np.array(part, dtype=np.float64) for part in annotation["segmentation"]]
        polygons = [(part.reshape(-1, 2) * scale).reshape(-1).tolist() for part in parts]
        scaled[id(annotation)] = annotation | {"segmentation": polygons}
        changes.mend(
            "annotations in normalised coordinates (0 to 1), multiplied by the image's size",
            named(annotation, image),
            image["file_name"],
            is_note=True,
        )
    annotations = [scaled.get(id(a), a) for a in content["annotations"]]
    return content | {"annotations": annotations}


def _is_normalised(polygons: list) -> bool:
    try:
        return all(
            len(part) % 2 == 0
            and len(part) >= 6
            and min(part) >= -_BEYOND
            and max(part) <= 1 + _BEYOND
            for part in polygons
        ) and bool(polygons)
    except TypeError:  # not numbers
        return False


def _mended(annotation: dict, rle: dict, changes: Changes, place: str, file: str) -> dict:
    """What has to be put in the place of missing or senseless values of a usable annotation."""
    segmentation, mended = annotation["segmentation"], {}
    if isinstance(segmentation, list):
        if has_short_part(segmentation):
            # pycocotools takes four numbers for a box, and fails on fewer.
            mended["segmentation"] = [part for part in segmentation if len(part) >= 6]
            what = "annotations with parts of fewer than three points, left without these"
            changes.mend(what, place, file)
        if any(isinstance(number, str) for part in segmentation for number in part):
            parts = mended.get("segmentation", segmentation)
            mended["segmentation"] = [list(map(float, part)) for part in parts]
            changes.mend("annotations with polygons written as text, read", place, file)
    if annotation.get("iscrowd") is None:
        mended["iscrowd"] = 0
        changes.fill("iscrowd")
    if not is_box(annotation.get("bbox")):
        mended["bbox"] = mask_util.toBbox(rle).tolist()
        if "bbox" in annotation:
            what = "boxes that are none (four finite numbers, width and height above 0), made anew"
            changes.mend(what, f"{place} has {annotation['bbox']!r}", file)
        else:
            changes.fill("bbox")
    if not _is_finite(annotation.get("area")):
        mended["area"] = int(mask_util.area(rle))
        if "area" in annotation:
            what = "areas that are no finite number, made anew"
            changes.mend(what, f"{place} has {annotation['area']!r}", file)
        else:
            changes.fill("area")
    if "keypoints" in annotation and not _are_keypoints(annotation["keypoints"]):
        mended["keypoints"] = []
        what = "lists of keypoints that are not [x, y, visibility, ...], emptied"
        changes.mend(what, place, file)
    return mended


def has_short_part(polygons: list) -> bool:
    """Whether a polygon has fewer than three points."""
    return any(len(part) < 6 for part in polygons)


def is_box(box: object) -> bool:
    """Whether a value is a COCO box, [x, y, width, height], of positive size."""
    return (
        isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box)) and min(box[2:]) > 0
    )


def _is_finite(number: object) -> bool:
    return type(number) in (int, float) and bool(np.isfinite(number))


def _are_keypoints(keypoints: object) -> bool:
    """Whether Detectron2 can read them."""
    return keypoints is None or isinstance(keypoints, list) and all(map(_is_finite, keypoints))


def _is_other_box(stated: list[float], box: np.ndarray) -> bool:
    """Whether a stated box, XYWH, is not that of the mask by any convention."""
    x, y, w, h = stated
    x1, y1, w1, h1 = box.tolist()
    edge = max(abs(x - x1), abs(y - y1), abs(x + w - x1 - w1), abs(y + h - y1 - h1))
    if not _EDGES[0] < edge <= _EDGES[1]:
        return edge > _EDGES[1]
    shared = max(min(x + w, x1 + w1) - max(x, x1), 0) * max(min(y + h, y1 + h1) - max(y, y1), 0)
    return shared < _BOX_IOU * (w * h + w1 * h1 - shared)


def _mend_boxes(
    cleaned: list[dict],
    boxes: list[np.ndarray],
    wrong: list[tuple[int, str, str]],
    changes: Changes,
) -> None:
    """Boxes of the masks in the place of others, in place."""
    what = "boxes that are not [x, y, width, height] of the mask, made anew from it"
    for _, place, file in wrong:
        changes.mend(what, place, file)
    chosen = [index for index, _, _ in wrong]
    if len(wrong) > _MANY_BOXES * len(cleaned):
        chosen = range(len(cleaned))
    for index in chosen:
        cleaned[index] = cleaned[index] | {"bbox": boxes[index].tolist()}


def named(annotation: dict, image: dict) -> str:
    """How messages call an annotation."""
    return f"annotation {annotation['id']} of {image['file_name']}"
