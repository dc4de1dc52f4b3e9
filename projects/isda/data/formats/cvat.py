"""CVAT for images 1.1: one XML file, polygons, masks as run lengths, groups.

Documented at docs.cvat.ai (Export annotations, CVAT for images). Shapes of one ``group_id`` and
label are one instance, as in CVAT's own exports to COCO.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from isda.data.errors import DatasetError, ImageError
from isda.data.formats.annotated import (
    AnnotatedImage,
    Instance,
    Report,
    UnusableShapeError,
    encode,
    merge,
    placed,
    read_size,
)
from isda.data.formats.outlines import ellipse, polygon, rotated_rectangle
from isda.data.formats.peeking import first_files, peek_text
from isda.data.formats.places import ImagePlaces, split_of
from isda.data.formats.regions import alternating_runs
from isda.data.formats.registry import Format, Options

__all__ = ["FORMAT"]

_SHAPES = ("polygon", "mask", "box", "ellipse", "polyline", "points", "cuboid", "skeleton")
_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton")


def _files(path: Path, most: int | None = None) -> list[Path]:
    """CVAT's files at or below a path; there is one per job or task."""
    return [f for f in first_files(path, ".xml", most=most) if _is_cvat(peek_text(f))]


def _is_cvat(text: str) -> bool:
    return "<annotations" in text and ("<image " in text or "<meta>" in text or "<track" in text)


def _read(path: Path, report: Report, options: Options) -> list[AnnotatedImage]:
    images = []
    places = ImagePlaces(path, options.images)
    for file in _files(path):
        root = _parsed(file)
        if root.find("track") is not None:
            raise DatasetError(
                f"{file}: is CVAT for video: export the task as CVAT for images, with its images"
            )
        for label in root.iterfind("meta//labels/label/name"):
            if label.text and label.text not in report.classes:
                report.classes.append(label.text)
        for element in root.iterfind("image"):
            try:
                images.append(_image(element, file, places, report))
            except ImageError as error:
                report.refuse(error)
    return images


def _parsed(file: Path) -> ET.Element:
    try:
        return ET.parse(file).getroot()
    except ET.ParseError as error:
        raise DatasetError(
            f"{file}: not valid XML ({error}): is the file whole? Export it again"
        ) from error


def _image(element: ET.Element, file: Path, places: ImagePlaces, report: Report) -> AnnotatedImage:
    name = element.get("name", "")
    source = places.find(name, file)
    size = read_size(source, _whole(element, "height"), _whole(element, "width"))
    parts: dict[tuple, list] = {}
    for index, shape in enumerate(element):
        if shape.tag not in _SHAPES:
            continue
        where = f"shape {index + 1} of {name} in {file.name}"
        try:
            label = shape.get("label", "").strip()
            if not label:
                raise UnusableShapeError("without a label")
            part = merge([_outline(shape, size)], size)
        except UnusableShapeError as error:
            report.skip(where, str(error))
            continue
        group = int(shape.get("group_id") or 0)
        parts.setdefault((label, group or f"shape {index}"), []).append(part)
    instances = [Instance(label, merge(members, size)) for (label, _), members in parts.items()]
    split = split_of(element.get("subset", ""))
    return AnnotatedImage(places.name_of(source), source, size, instances, split)


def _whole(element: ET.Element, name: str) -> int | None:
    text = element.get(name, "")
    return int(float(text)) if text.replace(".", "", 1).isdigit() else None


def _outline(shape: ET.Element, size: tuple[int, int]) -> list | dict:
    """Polygons or RLE of one shape.

    Raises:
        UnusableShapeError: nothing can be made of it.
    """
    if shape.tag in _WITHOUT_AREA:
        raise UnusableShapeError(f"of type {shape.tag}, which has no mask")
    try:
        if shape.tag == "polygon":
            return [polygon(list(_points(shape.get("points", ""))))]
        if shape.tag == "mask":
            return _mask(shape, size)
        turn = math.radians(float(shape.get("rotation", 0)))
        if shape.tag == "ellipse":
            center = float(shape.get("cx")), float(shape.get("cy"))
            return [ellipse(center, (float(shape.get("rx")), float(shape.get("ry"))), turn)]
        x0, y0, x1, y1 = (float(shape.get(key)) for key in ("xtl", "ytl", "xbr", "ybr"))
        center = (x0 + x1) / 2, (y0 + y1) / 2
        return [rotated_rectangle(center, (x1 - x0, y1 - y0), turn)]
    except (TypeError, ValueError) as error:
        if isinstance(error, UnusableShapeError):
            raise
        raise UnusableShapeError("malformed") from error


def _points(text: str) -> Iterator[tuple[float, float]]:
    for pair in text.split(";"):
        x, y = pair.split(",")
        yield float(x), float(y)


def _mask(shape: ET.Element, size: tuple[int, int]) -> dict:
    """Of run lengths along the rows of a box, background first."""
    left, top, width, height = (
        int(float(shape.get(key))) for key in ("left", "top", "width", "height")
    )
    runs = [int(run) for run in shape.get("rle", "").split(",")]
    bitmap = alternating_runs(runs, (height, width))
    return encode(placed(bitmap, (left, top), size))


FORMAT = Format(
    "cvat",
    "CVAT for images 1.1: annotations.xml, with images/ beside it",
    lambda path: bool(_files(path, most=20)),
    _read,
    frozenset({"images"}),
)
