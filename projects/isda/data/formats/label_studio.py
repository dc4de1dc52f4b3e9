"""Label Studio's own JSON, and its JSON-MIN: polygons, brushes, rectangles, ellipses.

Coordinates are percent of the image. A brush is a list of bytes in the format of the JavaScript
library @thi.ng/rle-pack, of an image with four channels of which the last, alpha, is the mask.
Label Studio's exports to COCO and YOLO lack brushes and ellipses.
"""

import math
from pathlib import Path

import numpy as np

from isda.data.errors import DatasetError, ImageError
from isda.data.formats.annotated import (
    AnnotatedImage,
    Instance,
    Report,
    UnusableShapeError,
    encode,
    merge,
    read_size,
)
from isda.data.formats.outlines import as_points, ellipse, polygon, rotated_rectangle
from isda.data.formats.peeking import json_contents
from isda.data.formats.places import ImagePlaces
from isda.data.formats.registry import Format, Options

__all__ = ["FORMAT", "unpack_bytes"]

_KINDS = ("polygon", "brush", "rectangle", "ellipse")
_OTHERS = ("choices", "textarea", "rating", "relation", "taxonomy", "number", "datetime")
_CHANNELS = 4
# The header of a packed list: bits of its length, of a value, and of four lengths of runs.
_LENGTH_BITS, _WORD_BITS, _SIZE_BITS = 32, 5, 4


def unpack_bytes(packed: list[int]) -> np.ndarray:
    """The bytes that @thi.ng/rle-pack has packed.

    A stream of bits: 32 for the number of values, 5 for the bits of a value less one, four times 4
    for the bits of a run's length less one; then runs, each of a flag, 2 bits that choose among
    these four, and the length less one. Where the flag is set one value follows, which is
    repeated, else as many values as the run is long.

    Raises:
        UnusableShapeError: the stream ends early, or is none.
    """
    try:
        bits = np.unpackbits(np.array(packed, dtype=np.uint8))
    except (TypeError, ValueError, OverflowError) as error:
        raise UnusableShapeError("malformed") from error
    position = 0

    def take(count: int) -> int:
        nonlocal position
        position += count
        if position > len(bits):
            raise UnusableShapeError("malformed")
        value = 0
        for bit in bits[position - count : position].tolist():
            value = 2 * value + bit
        return value

    number = take(_LENGTH_BITS)
    word = take(_WORD_BITS) + 1
    sizes = [take(_SIZE_BITS) + 1 for _ in range(4)]
    if word > 8:
        raise UnusableShapeError("malformed")
    weights = 1 << np.arange(word)[::-1]
    runs, done = [], 0
    while done < number:
        is_repeated = take(1)
        length = take(sizes[take(2)]) + 1
        if is_repeated:
            runs.append(np.full(min(length, number - done), take(word), dtype=np.uint8))
        else:
            length = min(length, number - done)
            end = position + length * word
            if end > len(bits):
                raise UnusableShapeError("malformed")
            values = bits[position:end].reshape(length, word) @ weights
            runs.append(values.astype(np.uint8))
            position = end
        done += length
    return np.concatenate(runs) if runs else np.zeros(0, np.uint8)


def _is_export(content: object) -> bool:
    """A list of tasks; one task alone is as well, as in its cloud storages."""
    first = content[0] if isinstance(content, list) and content else content
    return _is_task(first) or _is_minimal(first)


def _is_task(record: object) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("data", record.get("task")), dict)
        and (isinstance(record.get("annotations"), list) or isinstance(record.get("result"), list))
    )


def _is_minimal(record: object) -> bool:
    if not isinstance(record, dict) or "annotation_id" not in record:
        return False
    return any(_shapes_of_minimal(record))


def _shapes_of_minimal(record: dict) -> list[dict]:
    """The shapes of JSON-MIN, which lie under the name of the tag that drew them."""
    lists = [value for value in record.values() if isinstance(value, list)]
    shapes = [shape for values in lists for shape in values if isinstance(shape, dict)]
    return [shape for shape in shapes if "original_width" in shape]


def _read(path: Path, report: Report, options: Options) -> list[AnnotatedImage]:
    places = ImagePlaces(path, options.images)
    found: dict[Path, AnnotatedImage] = {}
    for file, content in json_contents(path, most=None):
        if not _is_export(content):
            continue
        for task in content if isinstance(content, list) else [content]:
            try:
                image = _image(task, file, places, report)
            except DatasetError as error:
                report.refuse(error)
                continue
            if image is None:
                continue
            if image.source in found:
                report.refuse(f"{file}: two tasks are of the image {image.name}: keep one of them")
                continue
            found[image.source] = image
    return list(found.values())


def _image(task: object, file: Path, places: ImagePlaces, report: Report) -> AnnotatedImage | None:
    """Of one task; None if nobody has annotated it."""
    if not isinstance(task, dict):
        raise DatasetError(f"{file}: a task is no object: export it again")
    where = f"task {task.get('id')} of {file.name}"
    if _is_task(task):
        data = task.get("data", task.get("task"))
        if "task" in task and isinstance(data.get("data"), dict):
            data = data["data"]
        shapes = _shapes(task, where, report)
    else:
        data, shapes = task, [_of_minimal(shape) for shape in _shapes_of_minimal(task)]
    if shapes is None:
        return None
    source = places.find(_image_name(data, where), where)
    size = read_size(source)
    instances = _instances(shapes, size, where, report)
    return AnnotatedImage(places.name_of(source), source, size, instances)


def _shapes(task: dict, where: str, report: Report) -> list | None:
    """The shapes of the last annotation that was submitted; None if there is none."""
    if "annotations" not in task:
        return task["result"]
    done = [
        a
        for a in task["annotations"]
        if isinstance(a, dict) and not a.get("was_cancelled") and isinstance(a.get("result"), list)
    ]
    if not done:
        report.notes.append(f"{where} is not annotated: it is left out")
        return None
    if len(done) > 1:
        report.notes.append(f"{where} has {len(done)} annotations: the last one is taken")
    return done[-1]["result"]


def _of_minimal(shape: dict) -> dict:
    kind = next((key for key in shape if key.endswith("labels")), "")
    return {"type": kind, "value": shape} | {k: shape[k] for k in shape if "original" in k}


def _image_name(data: dict, where: str) -> str:
    """The image among a task's data: under the name that the labelling interface chose."""
    names = [value for value in data.values() if isinstance(value, str)]
    named = [data.get(key) for key in ("image", "img", "ocr") if isinstance(data.get(key), str)]
    images = [n for n in names if n.partition("?")[0].lower().endswith(_IMAGE_ENDINGS)]
    for name in (*named, *images, *(n for n in names if "?d=" in n)):
        return name
    raise ImageError(f"{where}: names no image: export it with its data")


_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")


def _instances(shapes: list, size: tuple[int, int], where: str, report: Report) -> list[Instance]:
    """One per shape; a control without labels of its own is named by the labels of its region."""
    labels: dict[str, str] = {}
    for shape in shapes:
        if isinstance(shape, dict) and (label := _label(shape)):
            labels.setdefault(str(shape.get("id")), label)
    instances, seen = [], set()
    for index, shape in enumerate(shapes):
        kind = str(shape.get("type", "")) if isinstance(shape, dict) else ""
        drawn = next((k for k in _KINDS if kind.startswith(k)), "")
        place = f"shape {index + 1} of {where}"
        if not drawn:
            if kind == "labels" or kind in _OTHERS:  # says something of a region, and draws none
                continue
            report.skip(place, f"of type {kind or 'none'}, which has no mask")
            continue
        identity = shape.get("id")
        if identity is not None and (identity, drawn) in seen:
            continue  # a region is listed once for each of the controls that describe it
        seen.add((identity, drawn))
        try:
            label = _label(shape) or labels.get(str(identity))
            if not label:
                raise UnusableShapeError("without a label")
            instances.append(Instance(label, merge([_outline(drawn, shape, size)], size)))
        except UnusableShapeError as error:
            report.skip(place, str(error))
    return instances


def _label(shape: dict) -> str:
    value = shape.get("value")
    value = value if isinstance(value, dict) else {}
    lists = [v for key, v in value.items() if key.endswith("labels") and isinstance(v, list) and v]
    return str(lists[0][0]).strip() if lists else ""


def _outline(kind: str, shape: dict, size: tuple[int, int]) -> list | dict:
    """Polygons or RLE of one shape.

    Raises:
        UnusableShapeError: nothing can be made of it.
    """
    value = shape["value"] if isinstance(shape.get("value"), dict) else {}
    if shape.get("image_rotation"):
        raise UnusableShapeError("of an image that was turned in Label Studio")
    scale = np.array(size[::-1]) / 100
    try:
        if kind == "polygon":
            return [polygon(as_points(value["points"], 3) * scale)]
        if kind == "brush":
            return encode(_brush(value["rle"], shape, size))
        turn = math.radians(value.get("rotation", 0))
        corner = np.array([value["x"], value["y"]]) * scale
        if kind == "ellipse":
            return [ellipse(corner, np.array([value["radiusX"], value["radiusY"]]) * scale, turn)]
        extent = np.array([value["width"], value["height"]]) * scale
    except (KeyError, TypeError) as error:
        raise UnusableShapeError("malformed") from error
    # Rectangles turn around their upper left corner.
    cos, sin = math.cos(turn), math.sin(turn)
    center = corner + np.array([[cos, -sin], [sin, cos]]) @ (extent / 2)
    return [rotated_rectangle(center, extent, turn)]


def _brush(packed: list[int], shape: dict, size: tuple[int, int]) -> np.ndarray:
    stated = shape.get("original_height", size[0]), shape.get("original_width", size[1])
    if stated != size:
        raise UnusableShapeError("with a brush of another size than its image")
    values = unpack_bytes(packed)
    if len(values) != size[0] * size[1] * _CHANNELS:
        raise UnusableShapeError("malformed")
    return values.reshape(*size, _CHANNELS)[:, :, _CHANNELS - 1] > 0


FORMAT = Format(
    "label-studio",
    "Label Studio's export JSON or JSON-MIN",
    lambda path: any(_is_export(content) for _, content in json_contents(path)),
    _read,
    frozenset({"images"}),
)
