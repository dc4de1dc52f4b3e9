"""Instances drawn as images: a folder per image with a mask per instance, or one label image.

The first is the layout of the Data Science Bowl 2018 (``ID/images/*.png``, ``ID/masks/*.png``),
the second what microscopy programs write: ``images/NAME.*`` and ``masks/NAME.png``, in which 0 is
background and every other number one instance. All instances are of one class.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from isda.data.errors import DatasetError, ImageError
from isda.data.formats.annotated import (
    AnnotatedImage,
    Instance,
    Report,
    encode,
    read_size,
)
from isda.data.formats.peeking import first_files
from isda.data.formats.registry import Format
from isda.data.images import read_numbers
from isda.data.walking import IMAGE_SUFFIXES, image_files
from isda.wording import plural

__all__ = [
    "FORMAT",
    "check_mask_size",
    "read_label_images",
    "read_mask_folders",
    "read_values",
]

_LABEL_FOLDERS = ("masks", "labels")
_ANY_CLASS = "object"  # of instances whose class nobody has named
# What numbers instances: grey of 1, 8, 16 and 32 bits, or a palette, whose colours do not matter.
_NUMBERED = ("1", "L", "P", "I")
_MOST_VALUES = 10_000  # instances in one image, beyond which it is a photograph


def _mask_folders(folder: Path) -> list[Path]:
    return sorted(p.parent for p in folder.glob("*/masks") if (p.parent / "images").is_dir())


def _label_folder(folder: Path) -> Path | None:
    """The folder of label images, if images lie in it, as they do not in YOLO's ``labels``."""
    places = [folder / name for name in _LABEL_FOLDERS]
    return next((place for place in places if first_files(place, *IMAGE_SUFFIXES)), None)


def read_mask_folders(folder: Path, report: Report, class_name: str) -> list[AnnotatedImage]:
    """Every image of a folder that has one folder per image.

    Args:
        folder: with ``ID/images/*`` (one image) and ``ID/masks/*`` (a mask per instance, in which
            any value but 0 counts).
        report: told of what cannot be used.
        class_name: of all instances.
    """
    images = []
    for place in _mask_folders(folder):
        try:
            files = image_files(place / "images")
            if len(files) != 1:
                raise DatasetError(
                    f"{place / 'images'}: has {len(files)} images: there must be one, whose masks "
                    "are in the folder beside it"
                )
            size = read_size(files[0])
            instances = _of_masks(image_files(place / "masks"), size, class_name, report)
        except DatasetError as error:
            report.refuse(error)
            continue
        images.append(AnnotatedImage(place.name + files[0].suffix, files[0], size, instances))
    return images


def _of_masks(
    files: list[Path], size: tuple[int, int], class_name: str, report: Report
) -> list[Instance]:
    instances = []
    for file in files:
        values = read_values(file)
        mask = values.reshape(*values.shape[:2], -1).any(axis=2)
        check_mask_size(mask.shape, size, file)
        if not mask.any():
            report.skip(str(file), "without a pixel")
            continue
        instances.append(Instance(class_name, encode(mask)))
    return instances


def read_label_images(folder: Path, report: Report, class_name: str) -> list[AnnotatedImage]:
    """Every image of ``folder/images`` with the label image of the same name.

    Args:
        folder: with ``images`` and ``masks`` (or ``labels``).
        report: told of what cannot be used.
        class_name: of all instances.
    """
    root, labels = folder / "images", _label_folder(folder)
    images, numbers = [], set()
    for file in image_files(root):
        name = file.relative_to(root)
        try:
            size = read_size(file)
            values = _label_values(labels / name, size)
        except DatasetError as error:
            report.refuse(error)
            continue
        found = np.unique(values[values > 0]).tolist()
        numbers.update(found)
        instances = [Instance(class_name, encode(values == number)) for number in found]
        images.append(AnnotatedImage(name.as_posix(), file, size, instances))
    if len(images) > 1 and len(numbers) == 1:
        report.notes.append(
            f"all label images have the one value {numbers.pop()}, so each became one instance: "
            "where they mark all objects of an image alike, number the objects first "
            "(scipy.ndimage.label numbers those that do not touch)"
        )
    return images


def _label_values(place: Path, size: tuple[int, int]) -> np.ndarray:
    """``(H, W)`` whole numbers of the label image whose name is that of ``place``.

    Raises:
        DatasetError: there is none, or it does not number instances.
    """
    suffixes = (place.suffix, ".png", ".tif", ".tiff", *sorted(IMAGE_SUFFIXES))
    file = next((f for f in map(place.with_suffix, suffixes) if f.is_file()), None)
    if file is None:
        raise ImageError(
            f"{place.parent}: has no label image {place.stem}.png: draw one (all 0 for an image "
            "without instances), or take the image out of the folder"
        )
    if file.suffix.lower() in (".jpg", ".jpeg"):
        raise ImageError(f"{file}: JPEG changes the numbers of label images: save it as PNG")
    values = read_values(file)
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise ImageError(
            f"{file}: a label image has one channel of whole numbers, 0 for background and one "
            f"number per instance; this one is {_described(values)}: convert it"
        )
    if len(np.unique(values)) > _MOST_VALUES:
        raise ImageError(f"{file}: has over {_MOST_VALUES} values: is it a photograph?")
    check_mask_size(values.shape, size, file)
    return values


def _described(values: np.ndarray) -> str:
    channels = 1 if values.ndim == 2 else values.shape[2]
    return f"of {plural(channels, 'channel')} of type {values.dtype}"


def read_values(file: Path) -> np.ndarray:
    """The numbers of a mask: ``(H, W)``, or ``(H, W, C)`` of a colour image, without alpha."""
    values = read_numbers(str(file))
    if values is not None:
        return values
    try:
        with Image.open(file) as image:
            if image.mode in _NUMBERED or image.mode.startswith(("I;16", "F")):
                return np.asarray(image)
            if image.mode == "LA":
                return np.asarray(image)[:, :, 0]
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # on damaged files Pillow's decoders raise all kinds of errors
        raise ImageError(
            f"{file}: the mask cannot be decoded ({error}): it is truncated, damaged or no image; "
            "draw or export it again"
        ) from error


def check_mask_size(shape: tuple[int, int], size: tuple[int, int], file: Path) -> None:
    if tuple(shape) != tuple(size):
        raise ImageError(
            f"{file}: the mask has {shape[1]}x{shape[0]} pixels (width x height), its image "
            f"{size[1]}x{size[0]}: save both at one size"
        )


def _has_label_images(folder: Path) -> bool:
    return (folder / "images").is_dir() and _label_folder(folder) is not None


FORMAT = (
    Format(
        "mask-folders",
        "a folder per image, in it images/ with one image and masks/ with a mask per instance",
        lambda path: bool(_mask_folders(path)),
        lambda path, report, options: read_mask_folders(
            path, report, options.class_name or _ANY_CLASS
        ),
        frozenset({"class_name"}),
    ),
    Format(
        "label-images",
        "images/, and masks/ or labels/ with an image of the same name that numbers the instances",
        _has_label_images,
        lambda path, report, options: read_label_images(
            path, report, options.class_name or _ANY_CLASS
        ),
        frozenset({"class_name"}),
    ),
)
