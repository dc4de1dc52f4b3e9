"""Datumaro's JSON: ``annotations/SUBSET.json``, images in ``images/SUBSET``.

Documented at openvinotoolkit.github.io/datumaro (Datumaro format). Polygons, masks as COCO's RLE,
rectangles, ellipses; annotations of one ``group`` and label are one instance.
"""

import math
from pathlib import Path

import numpy as np

from isda.data.errors import DatasetError
from isda.data.formats.annotated import (
    AnnotatedImage,
    Instance,
    Report,
    UnusableShapeError,
    merge,
    read_size,
)
from isda.data.formats.outlines import ellipse, polygon, rotated_rectangle
from isda.data.formats.peeking import json_contents
from isda.data.formats.places import ImagePlaces, split_of
from isda.data.formats.registry import Format, Options

__all__ = ["FORMAT"]

_WITHOUT_AREA = (
    "label",
    "points",
    "polyline",
    "caption",
    "cuboid_3d",
    "skeleton",
    "feature_vector",
)


def _is_datumaro(content: object) -> bool:
    return (
        isinstance(content, dict)
        and isinstance(content.get("items"), list)
        and isinstance(content.get("categories"), dict)
    )


def _read(path: Path, report: Report, options: Options) -> list[AnnotatedImage]:
    images = []
    for file, content in json_contents(path, most=None):
        if not _is_datumaro(content):
            continue
        labels = content["categories"].get("label", {}).get("labels", [])
        names = [str(label.get("name")) for label in labels if isinstance(label, dict)]
        report.classes += [name for name in names if name not in report.classes]
        root = file.parent.parent if file.parent.name == "annotations" else file.parent
        places = ImagePlaces(root, options.images)
        for item in content["items"]:
            try:
                image = _image(item, file, names, places, report)
            except DatasetError as error:
                report.refuse(error)
                continue
            image.split = split_of(file.stem)
            images.append(image)
    return images


def _image(
    item: object, file: Path, names: list[str], places: ImagePlaces, report: Report
) -> AnnotatedImage:
    item = item if isinstance(item, dict) else {}
    image = item.get("image") if isinstance(item.get("image"), dict) else {}
    where = f"item {item.get('id')} of {file.name}"
    name = image.get("path") or str(item.get("id"))
    source = places.find(_with_subset(name, file, places), where)
    stated = image.get("size") or (None, None)
    size = read_size(source, *map(_whole, stated))
    parts: dict[tuple, list] = {}
    for index, annotation in enumerate(item.get("annotations") or []):
        place = f"annotation {index + 1} of {where}"
        try:
            label, group, part = _shape(annotation, names, size)
            part = merge([part], size)
        except UnusableShapeError as error:
            report.skip(place, str(error))
            continue
        parts.setdefault((label, group or f"annotation {index}"), []).append(part)
    instances = [Instance(label, merge(members, size)) for (label, _), members in parts.items()]
    return AnnotatedImage(places.name_of(source), source, size, instances)


def _with_subset(name: str, file: Path, places: ImagePlaces) -> str:
    """The path below the folder, where the images lie in one for each subset."""
    tried = [f"images/{file.stem}/{name}", f"images/{name}"]
    return next((path for path in tried if (places.folder / path).is_file()), name)


def _whole(value: object) -> int | None:
    return int(value) if type(value) in (int, float) else None


def _shape(
    annotation: object, names: list[str], size: tuple[int, int]
) -> tuple[str, int, list | dict]:
    """Class, group (0: none), and polygons or RLE of one annotation.

    Raises:
        UnusableShapeError: nothing can be made of it.
    """
    if not isinstance(annotation, dict):
        raise UnusableShapeError("malformed")
    kind, number = annotation.get("type"), annotation.get("label_id")
    if kind in _WITHOUT_AREA:
        raise UnusableShapeError(f"of type {kind}, which has no mask")
    if type(number) is not int or not 0 <= number < len(names):
        raise UnusableShapeError("without a label")
    group = annotation.get("group")
    group = group if type(group) is int else 0
    try:
        if kind == "mask":
            rle = annotation["rle"]
            if list(rle["size"]) != list(size):
                raise UnusableShapeError("with a mask of another size than its image")
            return names[number], group, {"size": list(rle["size"]), "counts": rle["counts"]}
        if kind == "polygon":
            outline = polygon(np.reshape(annotation["points"], (-1, 2)))
        elif kind == "ellipse":
            x0, y0, x1, y1 = annotation["points"]
            outline = ellipse(((x0 + x1) / 2, (y0 + y1) / 2), ((x1 - x0) / 2, (y1 - y0) / 2))
        elif kind == "bbox":
            x, y, w, h = annotation["bbox"]
            outline = rotated_rectangle((x + w / 2, y + h / 2), (w, h), 0)
        elif kind == "rotated_bbox":
            x, y, w, h, degrees = (annotation[k] for k in ("cx", "cy", "w", "h", "r"))
            outline = rotated_rectangle((x, y), (w, h), math.radians(degrees))
        else:
            raise UnusableShapeError(f"of the unknown type {kind!r}")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UnusableShapeError):
            raise
        raise UnusableShapeError("malformed") from error
    return names[number], group, [outline]


FORMAT = Format(
    "datumaro",
    "Datumaro's JSON: annotations/SUBSET.json, and images/",
    lambda path: any(_is_datumaro(content) for _, content in json_contents(path)),
    _read,
    frozenset({"images"}),
)
