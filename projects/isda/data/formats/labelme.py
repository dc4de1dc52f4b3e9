"""Folders of labelme files: one JSON per image, with the image beside or inside it.

labelme (github.com/wkentaro/labelme), versions 3 to 7. Of its shapes polygon, rectangle,
oriented_rectangle, circle and mask have an area. Shapes of one label and one group_id are the
parts of one instance. There are no holes in labelme: a part inside another one adds nothing.
"""

import base64
import io
import math
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from isda.data.errors import DatasetError, ImageError
from isda.data.formats.annotated import (
    AnnotatedImage,
    Embedded,
    Instance,
    Report,
    UnusableShapeError,
    encode,
    merge,
    placed,
    read_json,
    read_size,
)
from isda.data.formats.outlines import as_points, circle, polygon, rectangle
from isda.data.formats.peeking import json_contents
from isda.data.formats.registry import Format
from isda.data.masks import compressed_rle
from isda.data.walking import IMAGE_SUFFIXES, files_below, image_files

__all__ = ["FORMAT", "read_labelme"]

_WITHOUT_AREA = ("line", "linestrip", "point", "points")
# labelme's own names of what is no object.
_NO_OBJECTS = ("__ignore__", "_background_")
_SUFFIX_OF = {"JPEG": ".jpg", "PNG": ".png"}


def read_labelme(
    folder: Path, report: Report, images: Path | None = None, unannotated_are_empty: bool = False
) -> list[AnnotatedImage]:
    """Every image that a labelme file below ``folder`` annotates.

    Args:
        folder: with the JSON files, at any depth; or one such file.
        report: told of what cannot be used.
        images: another folder in which the images are looked for by their names.
        unannotated_are_empty: whether an image in ``folder`` (or ``images``) without a JSON file
            is one without instances, and not one that nobody has annotated yet.

    Raises:
        DatasetError: there is no JSON file.
    """
    files = [folder] if folder.is_file() else sorted(files_below(folder, (".json",)))
    folder = folder.parent if folder.is_file() else folder
    if not files:
        raise DatasetError(f"{folder}: has no JSON files: name the folder that labelme saved to")
    found: dict[str, AnnotatedImage] = {}
    origins: dict[str, Path] = {}
    for file in files:
        try:
            image = _read_file(file, folder, report, images)
        except DatasetError as error:
            report.refuse(error)
            continue
        if image.name in found:
            report.refuse(
                f"{file}: annotates {image.name}, as {origins[image.name]} does: keep one of them"
            )
            continue
        found[image.name], origins[image.name] = image, file
    # The image of a file that was refused is not one without a file.
    stems = {file.stem for file in files}
    rest = [path for path in image_files(images or folder) if path.stem not in stems]
    _add_unannotated(found, rest, images or folder, report, unannotated_are_empty)
    return list(found.values())


def _read_file(file: Path, folder: Path, report: Report, images: Path | None) -> AnnotatedImage:
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise DatasetError(
            f"{file}: has no list 'shapes', so it is no labelme file: move it out of the folder"
        )
    source = _find_image(file, content, images)
    size = read_size(source, content.get("imageHeight"), content.get("imageWidth"))
    instances = _instances(content["shapes"], size, file, report)
    roots = [folder] if images is None else [folder, images]
    return AnnotatedImage(_name(source, file, roots), source, size, instances)


def _find_image(file: Path, content: dict, images: Path | None) -> Path | Embedded:
    """The image on disk, else the one inside the file.

    Raises:
        DatasetError: there is neither.
    """
    named = content.get("imagePath")
    named = PurePosixPath(named.replace("\\", "/")) if isinstance(named, str) else None
    candidates = []
    if named is not None:
        folders = [file.parent] if images is None else [images, file.parent]
        candidates += [place for base in folders for place in (base / named, base / named.name)]
    candidates += [file.with_suffix(suffix) for suffix in sorted(IMAGE_SUFFIXES)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if content.get("imageData"):
        return Embedded(file)
    raise ImageError(
        f"{file}: its image {named or '(imagePath is missing)'} is neither beside it nor inside "
        "it (imageData): put it there, or name the folder of the images by --images"
    )


def _name(source: Path | Embedded, file: Path, roots: list[Path]) -> str:
    """Of the image in the folder that will be written: as below one of ``roots``."""
    if isinstance(source, Embedded):
        kind = Image.open(io.BytesIO(source.read_bytes())).format
        return file.relative_to(roots[0]).with_suffix(_SUFFIX_OF.get(kind, ".png")).as_posix()
    path = source.resolve()
    root = next((r.resolve() for r in roots if path.is_relative_to(r.resolve())), path.parent)
    return path.relative_to(root).as_posix()


def _add_unannotated(
    found: dict[str, AnnotatedImage],
    paths: list[Path],
    folder: Path,
    report: Report,
    are_empty: bool,
) -> None:
    """Images below ``folder`` that no file annotates."""
    used = {image.source.resolve() for image in found.values() if isinstance(image.source, Path)}
    names = {path: path.relative_to(folder).as_posix() for path in paths}
    rest = [path for path in paths if path.resolve() not in used and names[path] not in found]
    if rest and not are_empty:
        report.notes.append(
            f"{len(rest)} images have no labelme file, such as {rest[0].name}: they are left out "
            "(--unannotated-are-empty takes them for images without instances)"
        )
        return
    for path in rest:
        try:
            found[names[path]] = AnnotatedImage(names[path], path, read_size(path), [])
        except ImageError as error:
            report.refuse(error)


def _instances(shapes: list, size: tuple[int, int], file: Path, report: Report) -> list[Instance]:
    """One per shape without a group, one per label and group."""
    parts: dict[tuple, list] = defaultdict(list)
    for index, shape in enumerate(shapes):
        where = f"shape {index + 1} of {file}"
        try:
            label, group, part = _read_shape(shape, size)
            part = merge([part], size)
        except UnusableShapeError as error:
            report.skip(where, str(error))
            continue
        parts[(label, group, None if group is not None else index)].append((where, part))
    instances = []
    for (label, _, _), members in parts.items():
        instances.append(Instance(label, merge([part for _, part in members], size)))
        _report_hidden_parts(members, size, report)
    return instances


def _report_hidden_parts(members: list, size: tuple[int, int], report: Report) -> None:
    """Whoever puts one part inside another wants a hole, which the result cannot have."""
    if len(members) < 2:
        return
    whole = [compressed_rle(part, size) for _, part in members]
    # A crowd's IoU is the share of the first mask that is inside the second.
    inside = mask_util.iou(whole, whole, [1] * len(whole))
    np.fill_diagonal(inside, 0)
    areas = mask_util.area(whole)
    for index, (where, _) in enumerate(members):
        larger = areas > areas[index]
        if (inside[index] * larger).max() == 1:
            report.notes.append(
                f"{where} lies inside another part of its group: a hole cannot be expressed by "
                "labelme, so it adds nothing; use a shape of type mask, or a mask image"
            )


def _read_shape(shape: object, size: tuple[int, int]) -> tuple[str, object, list | dict]:
    """Label, group, and polygons or RLE of one shape.

    Raises:
        UnusableShapeError: nothing can be made of it.
    """
    if not isinstance(shape, dict):
        raise UnusableShapeError("malformed")
    label = shape.get("label")
    label = str(label) if type(label) in (int, float) else label
    if not isinstance(label, str) or not label.strip():
        raise UnusableShapeError("without a label")
    if label.strip() in _NO_OBJECTS:
        raise UnusableShapeError(f"labelled {label.strip()}")
    group = shape.get("group_id")
    if not isinstance(group, int | str | None):
        raise UnusableShapeError("malformed")
    kind = shape.get("shape_type") or "polygon"  # which the first versions did not write
    return label.strip(), group, _outline(kind, shape, size)


def _outline(kind: object, shape: dict, size: tuple[int, int]) -> list | dict:
    points = shape.get("points")
    if kind in ("polygon", "oriented_rectangle"):
        return [polygon(points)]
    if kind == "rectangle":
        return [rectangle(points)]
    if kind == "circle":
        center, edge = as_points(points, 2)[:2]
        return [circle(center, math.dist(center, edge))]
    if kind == "mask":
        return _mask(shape, size)
    if kind in _WITHOUT_AREA:
        raise UnusableShapeError(f"of type {kind}, which has no area")
    raise UnusableShapeError(f"of the unknown type {kind!r}")


def _mask(shape: dict, size: tuple[int, int]) -> dict:
    """RLE of a bitmap in base64 whose corners are the two points, the last pixel included.

    As labelme 7 draws it: corners that are whole numbers crop the bitmap; those of a mask that was
    dragged are fractions, of which the first, rounded, places the whole bitmap.
    """
    corners = as_points(shape.get("points"), 2)[:2]
    (left, top), (right, bottom) = np.rint(corners).astype(int)
    try:
        data = base64.b64decode(shape["mask"], validate=True)
        bitmap = np.asarray(Image.open(io.BytesIO(data)).convert("L")) > 0
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise UnusableShapeError("malformed") from error
    if (corners == np.trunc(corners)).all():
        if bottom - top >= bitmap.shape[0] or right - left >= bitmap.shape[1]:
            raise UnusableShapeError("with a mask that is smaller than its corners say")
        bitmap = bitmap[: max(bottom - top + 1, 0), : max(right - left + 1, 0)]
    return encode(placed(bitmap, (left, top), size))


def _is_labelme(content: object) -> bool:
    return (
        isinstance(content, dict)
        and "shapes" in content
        and ("imagePath" in content or "imageData" in content)
    )


FORMAT = Format(
    "labelme",
    "a folder of labelme's JSON files",
    lambda path: any(_is_labelme(content) for _, content in json_contents(path)),
    lambda path, report, options: read_labelme(
        path, report, options.images, options.unannotated_are_empty
    ),
    frozenset({"images", "unannotated_are_empty"}),
)
