"""Which format a path is in, and one call that reads any of them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from isda.data.errors import DatasetError
from isda.data.formats.annotated import AnnotatedImage, Report, read_json
from isda.data.formats.labelme import read_labelme
from isda.data.formats.mask_images import (
    has_label_images,
    has_mask_folders,
    read_label_images,
    read_mask_folders,
)
from isda.data.formats.via import read_via
from isda.data.layouts import annotation_format

__all__ = ["FORMATS", "detect_format", "read_annotations"]

FORMATS = {
    "labelme": "a folder of labelme's JSON files",
    "via": "a JSON or CSV file that VIA has exported",
    "mask-folders": "a folder per image, in it images/ with one image and masks/ with a mask per "
    "instance",
    "label-images": "images/, and masks/ or labels/ with an image of the same name that numbers "
    "the instances",
}


def detect_format(path: Path) -> str:
    """One of :data:`FORMATS`.

    Raises:
        DatasetError: there is nothing at the path, or it is none of them; the message lists what
            was looked for.
    """
    if not path.exists():
        raise DatasetError(f"{path}: there is no such file or folder: correct the path")
    if path.is_file() and path.suffix.lower() in (".json", ".csv"):
        return "via"
    if has_mask_folders(path):
        return "mask-folders"
    if has_label_images(path):
        return "label-images"
    kinds: dict[Path, str] = {}
    for file in sorted(path.rglob("*.json")):
        kinds[file] = annotation_format(file)
        if kinds[file] == "labelme":
            return "labelme"
    raise DatasetError(f"{path}: {_why_not(kinds)}")


def _why_not(kinds: dict[Path, str]) -> str:
    """Why a folder cannot be converted, from what its JSON files are."""
    for file, kind in kinds.items():
        if kind == "via":
            return f"is a folder with an export of VIA: name the file, {file}"
        if kind == "coco":
            return f"has {file.name} in COCO's format already: give the folder to isda train"
        if kind == "broken":
            read_json(file)  # which says what is wrong with it
    known = "; ".join(f"{name}: {text}" for name, text in FORMATS.items())
    return f"is in no format that can be converted; there are {known}"


def read_annotations(
    path: Path,
    report: Report,
    *,
    images: Path | None = None,
    class_attribute: str | None = None,
    class_name: str | None = None,
    unannotated_are_empty: bool = False,
) -> list[AnnotatedImage]:
    """Reads whatever is at ``path``.

    Args:
        path: in one of :data:`FORMATS`.
        report: told of what cannot be used.
        images: of labelme and VIA: the folder of the images, if it is another one.
        class_attribute: of VIA: the attribute of regions that names their class.
        class_name: of VIA and of masks: the class of all instances ("object" if masks do not say).
        unannotated_are_empty: of labelme: whether images without a file have no instances.

    Raises:
        DatasetError: it cannot be read at all, or an argument does not belong to its format.
    """
    format = detect_format(path)
    given = {
        "--images": (images is not None, ("labelme", "via")),
        "--class-attribute": (class_attribute is not None, ("via",)),
        "--class-name": (class_name is not None, ("via", "mask-folders", "label-images")),
        "--unannotated-are-empty": (unannotated_are_empty, ("labelme",)),
    }
    for option, (is_given, formats) in given.items():
        if is_given and format not in formats:
            raise DatasetError(
                f"{path}: is {FORMATS[format]}, for which {option} means nothing: leave it out"
            )
    name = class_name or "object"
    readers: dict[str, Callable[[Path, Report], list[AnnotatedImage]]] = {
        "labelme": partial(
            read_labelme, images=images, unannotated_are_empty=unannotated_are_empty
        ),
        "via": partial(
            read_via, images=images, class_attribute=class_attribute, class_name=class_name
        ),
        "mask-folders": partial(read_mask_folders, class_name=name),
        "label-images": partial(read_label_images, class_name=name),
    }
    return readers[format](path, report)
