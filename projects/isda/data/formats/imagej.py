"""ROIs of ImageJ and Fiji: ``NAME.zip`` (or ``NAME.roi``) beside the image of the same name.

Read by roifile (BSD-3-Clause), ``pip install roifile``. Polygons, freehand and traced outlines,
rectangles, ovals and composites (of which what lies in an odd number of paths belongs to it) have
an area. Coordinates are corners of pixels. ROIs have no classes: ``--class-name``, else "object".
"""

import importlib
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np

from isda.data.errors import DatasetError, ImageError
from isda.data.formats.annotated import (
    AnnotatedImage,
    Instance,
    Report,
    UnusableShapeError,
    merge,
    read_size,
)
from isda.data.formats.outlines import ellipse, polygon, rectangle
from isda.data.formats.peeking import first_files
from isda.data.formats.places import ImagePlaces, split_of
from isda.data.formats.regions import even_odd
from isda.data.formats.registry import Format, Options
from isda.data.walking import files_below, image_files

__all__ = ["FORMAT"]

_SUFFIXES = (".zip", ".roi")
_MAGIC = b"Iout"  # of a file of one ROI
_ANY_CLASS = "object"
_ENDINGS = ("_rois", "-rois", "_roi", "-roi", "_roiset", "-roiset")
_OUTLINES = ("POLYGON", "FREEHAND", "TRACED")


def _is_rois(file: Path) -> bool:
    if file.suffix.lower() == ".roi":
        with file.open("rb") as stream:
            return stream.read(4) == _MAGIC
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.lower().endswith(".roi") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _roifile() -> ModuleType:
    try:
        return importlib.import_module("roifile")
    except ImportError as error:
        raise DatasetError(
            "ROIs of ImageJ are read by the package roifile, which is not installed: "
            "pip install roifile"
        ) from error


def _read(path: Path, report: Report, options: Options) -> list[AnnotatedImage]:
    reader = _roifile()
    files = [path] if path.is_file() else list(files_below(path, _SUFFIXES))
    places = ImagePlaces(path, options.images)
    known = image_files(places.folder)
    rois: dict[Path, list] = {}
    for file in filter(_is_rois, files):
        try:
            source = _image_of(file, known, places.folder)
            members = _rois(file, reader)
        except DatasetError as error:
            report.refuse(error)
            continue
        rois.setdefault(source, []).extend((file, roi) for roi in members)
    images = []
    for source, members in rois.items():
        try:
            size = read_size(source)
        except ImageError as error:
            report.refuse(error)
            continue
        instances = []
        for file, roi in members:
            try:
                outline = _outline(roi, size)
            except UnusableShapeError as error:
                report.skip(f"{roi.name or 'a ROI'} of {file}", str(error))
                continue
            instances.append(Instance(options.class_name or _ANY_CLASS, outline))
        split = split_of(source.parent.name)
        images.append(AnnotatedImage(places.name_of(source), source, size, instances, split))
    return images


def _rois(file: Path, reader: ModuleType) -> list:
    try:
        found = reader.roiread(file)
    except Exception as error:  # roifile raises all kinds of errors on damaged files
        raise DatasetError(f"{file}: cannot be read ({error}): save the ROIs again") from error
    return found if isinstance(found, list) else [found]


def _image_of(file: Path, images: list[Path], folder: Path) -> Path:
    """The image of a file of ROIs: of its name, or of that of its folder if it has many.

    Raises:
        ImageError: there is none.
    """
    stem = file.stem.lower()
    names = {stem} | {stem.removesuffix(end) for end in _ENDINGS}
    names |= {stem.removeprefix(start) for start in ("roiset_", "roiset-", "rois_")}
    for image in images:
        if names & {image.stem.lower(), image.name.lower()}:
            return image
    beside = [image for image in images if image.parent == file.parent]
    if len(beside) == 1:
        return beside[0]
    raise ImageError(
        f"{file}: no image in {folder} is called {file.stem}: name the ROIs as their image, or the "
        "folder of the images by --images"
    )


def _outline(roi: object, size: tuple[int, int]) -> list | dict:
    """Polygons or RLE of one ROI.

    Raises:
        UnusableShapeError: nothing can be made of it.
    """
    kind = roi.roitype.name
    if roi.multi_coordinates is not None:
        paths = [polygon(path) for path in roi.coordinates(multi=True) if len(path) >= 3]
        return even_odd(paths, size)
    if kind in ("RECT", "OVAL"):
        box = (roi.left, roi.top, roi.right, roi.bottom)
        if roi.subpixelrect:
            box = (roi.xd, roi.yd, roi.xd + roi.widthd, roi.yd + roi.heightd)
        x0, y0, x1, y1 = map(float, box)
        if kind == "RECT":
            return merge([[rectangle([(x0, y0), (x1, y1)])]], size)
        center, radii = ((x0 + x1) / 2, (y0 + y1) / 2), ((x1 - x0) / 2, (y1 - y0) / 2)
        return merge([[ellipse(center, radii)]], size)
    if kind in _OUTLINES:
        return merge([[polygon(np.asarray(roi.coordinates(), dtype=np.float64))]], size)
    raise UnusableShapeError(f"of type {kind.lower()}, which has no area")


FORMAT = Format(
    "imagej",
    "ROIs of ImageJ: NAME.zip or NAME.roi, with the image of the same name",
    lambda path: any(_is_rois(file) for file in first_files(path, *_SUFFIXES)),
    _read,
    frozenset({"images", "class_name"}),
)
