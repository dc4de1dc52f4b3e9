"""Supervisely's projects: ``meta.json``, and in each data set ``ann/NAME.json`` and ``img/NAME``.

Documented at docs.supervisely.com (Supervisely Format). Polygons have the coordinates of pixels,
all of which, border included, belong to the object; bitmaps are PNG images packed by zlib.
"""

import base64
import io
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

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
from isda.data.formats.outlines import as_points
from isda.data.formats.places import split_of
from isda.data.formats.registry import Format, Options
from isda.data.json_files import load_json
from isda.data.walking import IMAGE_SUFFIXES, files_below

__all__ = ["FORMAT"]

_WITHOUT_AREA = ("line", "point", "graph", "cuboid")


def _is_annotation(content: object) -> bool:
    return isinstance(content, dict) and "objects" in content and "size" in content


def _files(path: Path) -> list[Path]:
    """The annotations below a path, which lie in folders ``ann``."""
    if not path.is_dir():
        return []
    return [file for file in files_below(path, (".json",)) if file.parent.name == "ann"]


def _recognises(path: Path) -> bool:
    for file in _files(path)[:3]:
        try:
            if _is_annotation(load_json(file)[0]):
                return True
        except DatasetError:
            continue
    return False


def _read(path: Path, report: Report, options: Options) -> list[AnnotatedImage]:
    images = []
    for file in _files(path):
        try:
            images.append(_image(file, path, report))
        except DatasetError as error:
            report.refuse(error)
    meta = path / "meta.json"
    if meta.is_file():
        content, _ = load_json(meta)
        classes = content.get("classes", []) if isinstance(content, dict) else []
        report.classes += [str(c["title"]) for c in classes if isinstance(c, dict) and "title" in c]
    return images


def _image(file: Path, root: Path, report: Report) -> AnnotatedImage:
    content, _ = load_json(file)
    if not _is_annotation(content):
        raise DatasetError(f"{file}: has no objects and no size: export the project again")
    dataset = file.parent.parent
    # ann/photo.jpg.json, and, before 2019, ann/photo.json
    names = [file.stem, *(file.stem + suffix for suffix in sorted(IMAGE_SUFFIXES))]
    source = next((dataset / "img" / n for n in names if (dataset / "img" / n).is_file()), None)
    if source is None:
        raise ImageError(
            f"{file}: its image {file.stem} is not in {dataset / 'img'}: export the project with "
            "its images"
        )
    stated = content["size"] if isinstance(content["size"], dict) else {}
    size = read_size(source, stated.get("height"), stated.get("width"))
    parts: dict[object, list] = {}
    for index, shape in enumerate(content["objects"]):
        where = f"object {index + 1} of {file}"
        try:
            label, part = _shape(shape, size)
        except UnusableShapeError as error:
            report.skip(where, str(error))
            continue
        # Figures that were bound together in the labelling tool are one object.
        key = shape.get("instance") or shape.get("bindingKey") or f"object {index}"
        parts.setdefault((label, key), []).append(part)
    instances = [Instance(label, merge(members, size)) for (label, _), members in parts.items()]
    inner = source.relative_to(root)
    name = Path(*(part for part in inner.parts if part != "img")).as_posix()
    return AnnotatedImage(name, source, size, instances, split_of(dataset.name))


def _shape(shape: object, size: tuple[int, int]) -> tuple[str, dict]:
    """Class and RLE of one object.

    Raises:
        UnusableShapeError: nothing can be made of it.
    """
    if not isinstance(shape, dict):
        raise UnusableShapeError("malformed")
    label, kind = shape.get("classTitle"), shape.get("geometryType")
    if not isinstance(label, str) or not label.strip():
        raise UnusableShapeError("without a class")
    if kind is None:
        kind = "bitmap" if shape.get("bitmap") else "polygon"
    if kind in _WITHOUT_AREA:
        raise UnusableShapeError(f"of type {kind}, which has no mask")
    if kind not in ("polygon", "rectangle", "bitmap"):
        raise UnusableShapeError(f"of the unknown type {kind!r}")
    mask = _bitmap(shape, size) if kind == "bitmap" else _polygon(shape, kind, size)
    if not mask.any():
        raise UnusableShapeError("outside the image, or of zero area")
    return label.strip(), encode(mask)


def _polygon(shape: dict, kind: str, size: tuple[int, int]) -> np.ndarray:
    points = shape.get("points")
    points = points if isinstance(points, dict) else {}
    exterior = as_points(points.get("exterior"), 2 if kind == "rectangle" else 3)
    if kind == "rectangle":
        (x0, y0), (x1, y1) = exterior.min(axis=0), exterior.max(axis=0)
        exterior = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    canvas = Image.new("1", size[::-1])
    draw = ImageDraw.Draw(canvas)
    _fill(draw, exterior, 1)
    for hole in points.get("interior") or []:
        _fill(draw, as_points(hole, 3), 0)
    return np.asarray(canvas)


def _fill(draw: ImageDraw.ImageDraw, points: np.ndarray, value: int) -> None:
    """A polygon with all pixels of its border, as ``cv2.fillPoly`` draws it."""
    corners = [tuple(point) for point in np.rint(points).tolist()]
    draw.polygon(corners, fill=value)
    draw.line([*corners, corners[0]], fill=value)


def _bitmap(shape: dict, size: tuple[int, int]) -> np.ndarray:
    """Of a PNG image at an origin; its alpha, if it has one, else whatever is not black."""
    try:
        record = shape["bitmap"]
        data = zlib.decompress(base64.b64decode(record["data"], validate=True))
        with Image.open(io.BytesIO(data)) as image:
            image = image.convert("RGBA") if image.info.get("transparency") is not None else image
            has_alpha = image.mode in ("RGBA", "LA")
            values = np.asarray(image.getchannel("A") if has_alpha else image.convert("L"))
        left, top = (int(value) for value in record["origin"])
    except (KeyError, TypeError, ValueError, OSError, zlib.error) as error:
        raise UnusableShapeError("malformed") from error
    return placed(values > 0, (left, top), size)


FORMAT = Format(
    "supervisely",
    "a project of Supervisely: ann/ with a JSON file per image, and img/",
    _recognises,
    _read,
)
