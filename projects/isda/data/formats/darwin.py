"""Darwin JSON of V7, versions 1 and 2: a file per image, polygons of several paths.

Documented at docs.v7labs.com (Darwin JSON). What lies in an odd number of the paths of a polygon
belongs to it, so that a path in another one is a hole.
"""

from pathlib import Path

from isda.data.errors import DatasetError, ImageError
from isda.data.formats.annotated import (
    AnnotatedImage,
    Instance,
    Report,
    UnusableShapeError,
    read_size,
)
from isda.data.formats.outlines import polygon, rectangle
from isda.data.formats.peeking import first_files, peek_json
from isda.data.formats.places import ImagePlaces
from isda.data.formats.regions import even_odd
from isda.data.formats.registry import Format, Options
from isda.data.walking import files_below

__all__ = ["FORMAT"]


def _is_darwin(content: object) -> bool:
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        return False
    image = content.get("image")
    return isinstance(content.get("item"), dict) or (
        isinstance(image, dict) and "filename" in image
    )


def _read(path: Path, report: Report, options: Options) -> list[AnnotatedImage]:
    files = [path] if path.is_file() else list(files_below(path, (".json",)))
    places = ImagePlaces(path, options.images)
    images = []
    for file in files:
        content = peek_json(file)
        if not _is_darwin(content):
            continue
        try:
            images.append(_image(content, file, places, report))
        except DatasetError as error:
            report.refuse(error)
    return images


def _image(content: dict, file: Path, places: ImagePlaces, report: Report) -> AnnotatedImage:
    if "item" in content:
        slots = content["item"].get("slots") or [{}]
        name, stated = content["item"].get("name"), slots[0]
        folder = content["item"].get("path")
    else:
        name, stated = content["image"].get("filename"), content["image"]
        folder = stated.get("path")
    if not isinstance(name, str) or not name:
        raise ImageError(f"{file}: names no image: export it again")
    inner = f"{folder.strip('/')}/{name}".lstrip("/") if isinstance(folder, str) else name
    source = places.find(inner, file)
    size = read_size(source, stated.get("height"), stated.get("width"))
    instances = []
    for index, annotation in enumerate(content["annotations"]):
        where = f"annotation {index + 1} of {file}"
        try:
            instances.append(_instance(annotation, size))
        except UnusableShapeError as error:
            report.skip(where, str(error))
    return AnnotatedImage(places.name_of(source), source, size, instances)


def _instance(annotation: object, size: tuple[int, int]) -> Instance:
    """
    Raises:
        UnusableShapeError: nothing can be made of it.
    """
    annotation = annotation if isinstance(annotation, dict) else {}
    label = annotation.get("name")
    if not isinstance(label, str) or not label.strip():
        raise UnusableShapeError("without a class")
    shape = annotation.get("polygon", annotation.get("complex_polygon"))
    try:
        if isinstance(shape, dict):
            paths = shape.get("paths") or shape["path"]
            # Version 1 has one path or, of a complex polygon, a list of them.
            paths = list(paths) if isinstance(paths[0], list) else [paths]
            paths += shape.get("additional_paths") or []
            corners = [polygon([(p["x"], p["y"]) for p in path]) for path in paths]
            return Instance(label.strip(), even_odd(corners, size))
        if "mask" in annotation or "raster_layer" in annotation:
            raise UnusableShapeError("of type mask, which lies in another layer: export polygons")
        box = annotation["bounding_box"]
        corner = box["x"], box["y"]
        end = corner[0] + box["w"], corner[1] + box["h"]
        return Instance(label.strip(), even_odd([rectangle([corner, end])], size))
    except (KeyError, TypeError, IndexError) as error:
        raise UnusableShapeError("without a polygon or a box") from error


FORMAT = Format(
    "darwin",
    "Darwin JSON of V7: a file per image",
    lambda path: any(_is_darwin(peek_json(file)) for file in first_files(path, ".json")),
    _read,
    frozenset({"images"}),
)
