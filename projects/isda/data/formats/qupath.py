"""QuPath's GeoJSON: a file per image, named as the image is; coordinates are pixels.

A FeatureCollection, a list of features, or one feature; packed by gzip or not; detections in
``childObjects`` of annotations, as older versions nest them. Polygons may have holes, and several
make a MultiPolygon. A file does not say of which image it is: its name does.
"""

from collections.abc import Iterator
from pathlib import Path

from isda.data.errors import DatasetError, ImageError
from isda.data.formats.annotated import (
    AnnotatedImage,
    Instance,
    Report,
    UnusableShapeError,
    read_size,
)
from isda.data.formats.outlines import polygon
from isda.data.formats.peeking import first_files, peek_json
from isda.data.formats.places import ImagePlaces, split_of
from isda.data.formats.regions import region
from isda.data.formats.registry import Format, Options
from isda.data.walking import files_below, image_files

__all__ = ["FORMAT"]

_SUFFIXES = (".geojson", ".json", ".gz")
_ANY_CLASS = "object"  # of what nobody has classified
_NO_OBJECTS = ("ignore*",)  # what QuPath's users call a region to be left out


def _is_geojson(content: object) -> bool:
    if isinstance(content, list):
        content = content[0] if content else None
    if not isinstance(content, dict):
        return False
    if content.get("type") == "FeatureCollection":
        return isinstance(content.get("features"), list)
    return content.get("type") == "Feature" and isinstance(content.get("geometry"), dict)


def _recognises(path: Path) -> bool:
    return any(_is_geojson(peek_json(file)) for file in first_files(path, *_SUFFIXES))


def _read(path: Path, report: Report, options: Options) -> list[AnnotatedImage]:
    files = [path] if path.is_file() else list(files_below(path, _SUFFIXES))
    places = ImagePlaces(path, options.images)
    by_name = {file.name.lower(): file for file in image_files(places.folder)}
    by_stem: dict[str, Path] = {}
    for file in by_name.values():
        by_stem.setdefault(_stem(file.name), file)
    images = []
    for file in files:
        content = peek_json(file)
        if content is None:
            report.refuse(f"{file}: is no JSON, or not whole: export it again")
            continue
        if not _is_geojson(content):
            continue
        stem = _stem(file.name)
        source = by_name.get(stem) or by_stem.get(stem) or by_stem.get(_stem(stem))
        try:
            if source is None:
                raise ImageError(
                    f"{file}: no image in {places.folder} is called {stem}: name the file as its "
                    "image, or the folder of the images by --images"
                )
            size = read_size(source)
        except DatasetError as error:
            report.refuse(error)
            continue
        instances = _instances(content, size, file, options.class_name, report)
        split = split_of(file.parent.name)
        images.append(AnnotatedImage(places.name_of(source), source, size, instances, split))
    return images


def _stem(name: str) -> str:
    """A name without its endings, in lower case."""
    name = name.lower()
    for suffix in (".gz", ".geojson", ".json"):
        name = name.removesuffix(suffix)
    for suffix in (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ome"):
        name = name.removesuffix(suffix)
    return name


def _features(content: object) -> Iterator[dict]:
    """All features, those in others after them."""
    if isinstance(content, list):
        for item in content:
            yield from _features(item)
    elif isinstance(content, dict) and content.get("type") == "FeatureCollection":
        yield from _features(content.get("features"))
    elif isinstance(content, dict):
        yield content
        properties = content.get("properties")
        for holder in (content, properties if isinstance(properties, dict) else {}):
            yield from _features(holder.get("childObjects"))


def _instances(
    content: object, size: tuple[int, int], file: Path, class_name: str | None, report: Report
) -> list[Instance]:
    instances = []
    for number, feature in enumerate(_features(content), start=1):
        where = f"feature {number} of {file}"
        properties = feature.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        kind = properties.get("objectType", properties.get("object_type", feature.get("id")))
        if str(kind).lower() in ("root", "tile", "pathrootobject", "tma_core"):
            continue
        try:
            label = class_name or _label(properties)
            if label.lower() in _NO_OBJECTS:
                raise UnusableShapeError(f"of class {label}")
            instances.append(Instance(label, _outline(feature.get("geometry"), size)))
        except UnusableShapeError as error:
            report.skip(where, str(error))
    return instances


def _label(properties: dict) -> str:
    """The class of an object; all parts of a derived one, such as "Tumor: Positive"."""
    given = properties.get("classification")
    if isinstance(given, dict):
        names = given.get("names")
        given = ": ".join(map(str, names)) if isinstance(names, list) else given.get("name")
    return given.strip() if isinstance(given, str) and given.strip() else _ANY_CLASS


def _outline(geometry: object, size: tuple[int, int]) -> list | dict:
    """Polygons or RLE of one geometry.

    Raises:
        UnusableShapeError: nothing can be made of it.
    """
    geometry = geometry if isinstance(geometry, dict) else {}
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind == "GeometryCollection":
        inner = [g for g in geometry.get("geometries", []) if isinstance(g, dict)]
        coordinates = [c for g in inner for c in _polygons(g.get("type"), g.get("coordinates"))]
        kind = "MultiPolygon"
    polygons = _polygons(kind, coordinates)
    outlines = [polygon(rings[0]) for rings in polygons if rings]
    holes = [polygon(ring) for rings in polygons for ring in rings[1:]]
    return region(outlines, holes, size)


def _polygons(kind: object, coordinates: object) -> list[list]:
    """Polygons, each a list of rings of which the first is the outline."""
    if kind not in ("Polygon", "MultiPolygon"):
        raise UnusableShapeError(f"of type {kind}, which has no mask")
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(polygons, list) or not all(isinstance(p, list) for p in polygons):
        raise UnusableShapeError("malformed")
    return polygons


FORMAT = Format(
    "qupath",
    "QuPath's GeoJSON, with the image of the same name",
    _recognises,
    _read,
    frozenset({"images", "class_name"}),
)
