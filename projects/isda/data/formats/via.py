"""Exports and projects of the VGG Image Annotator, versions 1 and 2: JSON and CSV.

VIA (www.robots.ox.ac.uk/~vgg/software/via) knows neither classes nor sizes of images: the class is
one of the attributes that users give their regions, and sizes are read from the images.
"""

import csv
import io
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from isda.data.errors import DatasetError, ImageError
from isda.data.formats.annotated import (
    AnnotatedImage,
    Instance,
    Report,
    UnusableShapeError,
    merge,
    read_json,
    read_size,
)
from isda.data.formats.outlines import circle, ellipse, polygon, rectangle
from isda.data.formats.peeking import first_files, json_contents, peek_text
from isda.data.formats.places import split_of
from isda.data.formats.registry import Format, Options

__all__ = ["FORMAT", "read_via"]

_COLUMNS = (
    "filename",
    "region_count",
    "region_shape_attributes",
    "region_attributes",
)
_MAX_VALUES = 4  # of an attribute in a message


@dataclass
class _Region:
    """One region of an image, as exported."""

    where: str
    shape: object
    attributes: object


def read_via(
    file: Path,
    report: Report,
    images: Path | None = None,
    class_attribute: str | None = None,
    class_name: str | None = None,
) -> list[AnnotatedImage]:
    """Every image of an export.

    Args:
        file: JSON or CSV.
        report: told of what cannot be used.
        images: the folder of the images; by default that of the file.
        class_attribute: the attribute of regions that names their class; None takes the only one
            there is.
        class_name: of all regions, whatever their attributes.

    Raises:
        DatasetError: it is no such file, or it does not say which classes there are.
    """
    content = _read_csv(file) if file.suffix.lower() == ".csv" else _read_json(file)
    folder = images or file.parent
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder: correct --images")
    if class_name is None:
        regions = [region for group in content.values() for region in group]
        class_attribute = _attribute(regions, class_attribute, file)
    found: dict[str, AnnotatedImage] = {}
    for name, regions in content.items():
        try:
            source = _find_image(name, folder, file)
            size = read_size(source)
        except DatasetError as error:
            report.refuse(error)
            continue
        place = source.relative_to(folder).as_posix()
        if place in found:
            report.refuse(
                f"{file}: {name} is the image {place}, as another name is: put the images into "
                f"folders below {folder} as VIA names them"
            )
            continue
        instances = _instances(regions, size, class_attribute, class_name, report)
        found[place] = AnnotatedImage(place, source, size, instances)
    return list(found.values())


def _read_json(file: Path) -> dict[str, list[_Region]]:
    content = read_json(file)
    if not _is_export(content):
        raise DatasetError(
            f"{file}: {_what_it_is(content)}: export it in VIA 2 by Annotation, Export "
            "Annotations (as json), or as csv"
        )
    records = content.get("_via_img_metadata", content)
    regions: dict[str, list[_Region]] = {}
    for record in records.values():
        name = record.get("filename")
        if not isinstance(name, str) or not name:
            raise DatasetError(f"{file}: an image has no filename: export it from VIA again")
        if name in regions:
            raise DatasetError(
                f"{file}: has the image {name} twice: remove one of them in VIA, and export again"
            )
        listed = record["regions"]
        listed = listed.values() if isinstance(listed, dict) else listed  # VIA 1 counts them
        if not isinstance(listed, list | type({}.values())):
            raise DatasetError(f"{file}: the regions of {name} are no list: export it again")
        regions[name] = [_region(r, i, name) for i, r in enumerate(listed)]
    return regions


def _is_export(content: object) -> bool:
    """Of VIA 1 or 2, or a project of VIA 2."""
    if not isinstance(content, dict):
        return False
    images = content.get("_via_img_metadata", content)
    if not isinstance(images, dict):
        return False
    return bool(images) and all(isinstance(i, dict) and "regions" in i for i in images.values())


def _region(record: object, index: int, name: str) -> _Region:
    record = record if isinstance(record, dict) else {}
    where = f"region {index + 1} of {name}"
    return _Region(where, record.get("shape_attributes"), record.get("region_attributes"))


def _what_it_is(content: object) -> str:
    """What a JSON file is that VIA's annotations were expected in."""
    if isinstance(content, dict) and {"images", "annotations"} <= set(content):
        return "is in COCO's format already, which training takes as it is"
    if isinstance(content, dict) and {"metadata", "project"} <= set(content):
        return "is a project of VIA 3, which annotates videos"
    return "is no export of VIA: it has no images with a list 'regions'"


def _read_csv(file: Path) -> dict[str, list[_Region]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{file}: not a text file in UTF-8 (byte {error.start}): export it from VIA again, and "
            "do not save it in a spreadsheet"
        ) from error
    rows = csv.DictReader(io.StringIO(text.removeprefix("#"), newline=""))
    missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise DatasetError(
            f"{file}: has no column {' and no '.join(missing)}: export it from VIA 2 by "
            "Annotation, Export Annotations (as csv), and do not save it in a spreadsheet"
        )
    regions: dict[str, list[_Region]] = defaultdict(list)
    for row in rows:
        group = regions[row["filename"]]
        shape, attributes = (_cell(row, name, file, rows.line_num) for name in _COLUMNS[2:])
        if shape:  # an image without regions has one row as well
            group.append(_Region(f"line {rows.line_num} of {file}", shape, attributes))
    return dict(regions)


def _cell(row: dict, column: str, file: Path, line: int) -> object:
    try:
        return json.loads(row[column] or "{}")
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{file}: line {line}: the column {column} is no JSON ({error.msg}): export it from "
            "VIA again, and do not save it in a spreadsheet"
        ) from error


def _attribute(regions: list[_Region], wanted: str | None, file: Path) -> str:
    """The attribute that names classes.

    Raises:
        DatasetError: regions have none, or several of which none was chosen.
    """
    values: dict[str, set[str]] = defaultdict(set)
    for region in regions:
        if isinstance(region.attributes, dict):
            for name, value in region.attributes.items():
                values[name].add(str(value))
    if wanted is None and len(values) == 1:
        return next(iter(values))
    if wanted in values:
        return wanted
    if not values:
        raise DatasetError(
            f"{file}: no region has an attribute, so nothing says its class: name the one class "
            "there is by --class-name"
        )
    listed = "; ".join(f"{name} ({_some(values[name])})" for name in sorted(values))
    problem = f"no region has the attribute {wanted}" if wanted else "regions have several"
    raise DatasetError(
        f"{file}: {problem}: choose the one that names the class by --class-attribute. There are: "
        f"{listed}"
    )


def _some(values: set[str]) -> str:
    shown = sorted(values)[:_MAX_VALUES]
    return ", ".join(shown) + (", ..." if len(values) > _MAX_VALUES else "")


def _find_image(name: str, folder: Path, file: Path) -> Path:
    """Where the image is: below the folder, by its path or by its name alone.

    Raises:
        ImageError: it is not there.
    """
    relative = PurePosixPath(name.replace("\\", "/"))
    for candidate in (folder / relative, folder / relative.name):
        if candidate.is_file() and candidate.resolve().is_relative_to(folder.resolve()):
            return candidate
    if "://" in name:
        raise ImageError(f"{file}: {name} is an address: fetch the image into {folder}")
    raise ImageError(
        f"{file}: its image {name} is not in {folder}: name the folder of the images by --images"
    )


def _instances(
    regions: list[_Region],
    size: tuple[int, int],
    class_attribute: str | None,
    class_name: str | None,
    report: Report,
) -> list[Instance]:
    instances = []
    for region in regions:
        try:
            label = class_name or _label(region.attributes, class_attribute)
            instances.append(Instance(label, merge([[_outline(region.shape)]], size)))
        except UnusableShapeError as error:
            report.skip(region.where, str(error))
    return instances


def _label(attributes: object, name: str) -> str:
    """The class of a region: a text, or the only choice of a checkbox that is ticked."""
    value = attributes.get(name) if isinstance(attributes, dict) else None
    if isinstance(value, dict):
        ticked = [choice for choice, is_set in value.items() if is_set]
        if len(ticked) > 1:
            raise UnusableShapeError(f"with several values of {name}")
        value = ticked[0] if ticked else None
    if not isinstance(value, str) or not value.strip():
        raise UnusableShapeError(f"without a value of {name}")
    return value.strip()


def _outline(shape: object) -> list[float]:
    """The polygon of one region.

    Raises:
        UnusableShapeError: nothing can be made of it.
    """
    if not isinstance(shape, dict):
        raise UnusableShapeError("malformed")
    kind = shape.get("name")
    try:
        if kind in ("polygon", "polyline"):
            points = list(zip(shape["all_points_x"], shape["all_points_y"], strict=True))
            if kind == "polyline" and (len(points) < 4 or points[0] != points[-1]):
                raise UnusableShapeError("of type polyline that is not closed, so without area")
            return polygon(points)
        if kind == "rect":
            x, y = shape["x"], shape["y"]
            return rectangle([(x, y), (x + shape["width"], y + shape["height"])])
        if kind == "circle":
            return circle((shape["cx"], shape["cy"]), shape["r"])
        if kind == "ellipse":
            radii = shape["rx"], shape["ry"]
            return ellipse((shape["cx"], shape["cy"]), radii, shape.get("theta", 0))
    except UnusableShapeError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableShapeError("malformed") from error
    if kind == "point":
        raise UnusableShapeError("of type point, which has no area")
    raise UnusableShapeError(f"of the unknown type {kind!r}")


def _exports(path: Path, most: int | None = None) -> list[Path]:
    """The exports of VIA at a path, or below it, of as many files at most."""
    files = [file for file, content in json_contents(path, most) if _is_export(content)]
    tables = first_files(path, ".csv", most=most)
    return files + [file for file in tables if "region_shape_attributes" in peek_text(file)]


def _read(path: Path, report: Report, options: Options) -> list[AnnotatedImage]:
    """Of a folder all exports, each with the images beside it, as of a split if it is called so."""
    if path.is_file():
        return read_via(path, report, options.images, options.class_attribute, options.class_name)
    images = []
    for file in _exports(path):
        split = split_of(file.parent.name)
        for image in read_via(
            file, report, options.images, options.class_attribute, options.class_name
        ):
            image.split = split
            images.append(image)
    return images


FORMAT = Format(
    "via",
    "a JSON or CSV file that VIA has exported",
    lambda path: bool(_exports(path, most=20)),
    _read,
    frozenset({"images", "class_attribute", "class_name"}),
)
