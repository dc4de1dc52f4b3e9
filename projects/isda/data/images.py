"""Reading images of every kind that users bring, and saying what is wrong with the others."""

import logging
import os

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image

from isda.data.errors import ImageError

__all__ = ["check_image_size", "read_image"]

logger = logging.getLogger(__name__)

_EXIF_ORIENTATION = 274
_DEEP_MODES = ("I", "F")  # and every "I;16..."
# Bits that cameras and microscopes deliver, whatever the depth of the file.
_SENSOR_BITS = (8, 12, 16)
_told: set[str] = set()


def read_image(file_name: str, format: str) -> np.ndarray:
    """Read an image as Detectron2 does, and also those that it reads wrongly.

    EXIF rotation is applied. Grey, palette, CMYK and 1-bit images are converted, transparency is
    ignored. Images with more than 8 bits per pixel and channel are scaled to 8, from the
    smallest of 8, 12 and 16 bits that holds the image's largest value.

    Args:
        file_name: a path, or an address that iopath understands.
        format: as ``INPUT.FORMAT``: ``"RGB"``, ``"BGR"``, ``"L"``, ``"YUV-BT.601"``.

    Returns:
        ``(height, width, channels)`` in 0–255, uint8 (float for ``"YUV-BT.601"``).

    Raises:
        ImageError: the file is missing, empty, damaged or no image.
    """
    try:
        with PathManager.open(file_name, "rb") as file:
            image = _apply_exif_orientation(Image.open(file))
            if image.mode in _DEEP_MODES or image.mode.startswith("I;"):
                image = _to_8_bits(image, file_name)
            return convert_PIL_to_numpy(image, format)
    except ImageError:
        raise
    except Exception as error:  # on damaged files Pillow's decoders raise all kinds of errors
        raise ImageError(_diagnosis(file_name, error)) from error


def check_image_size(dataset_dict: dict, image: np.ndarray) -> None:
    """Compare an image with ``height`` and ``width`` of its dict, or fill them in.

    Raises:
        ImageError: they differ.
    """
    height, width = image.shape[:2]
    expected = dataset_dict.setdefault("height", height), dataset_dict.setdefault("width", width)
    if (height, width) == expected:
        return
    file_name = dataset_dict["file_name"]
    if (width, height) == expected and _is_turned(file_name):
        raise ImageError(
            f"{file_name}: its EXIF tag turns the image to {width}x{height} pixels (width x "
            f"height), but its annotations are for {expected[1]}x{expected[0]}, the image as "
            "stored: remove the tag (exiftool -Orientation= FILE), or annotate the upright image"
        )
    raise ImageError(
        f"{file_name}: the image has {width}x{height} pixels (width x height), but its "
        f"annotations are for {expected[1]}x{expected[0]}: correct width and height in the "
        "annotation file, or the image that file_name points to"
    )


def _to_8_bits(image: Image.Image, file_name: str) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0:
        raise ImageError(f"{file_name}: has negative or non-finite pixels: convert it to 8 bits")
    if image.mode == "F" and values.max() <= 1:
        scale, meaning = 255.0, "0 to 1"
    else:
        bits = next((b for b in _SENSOR_BITS if values.max() < 2**b), None)
        if bits is None:
            raise ImageError(
                f"{file_name}: has pixels up to {values.max():g}, more than 16 bits hold: convert "
                "it to 8 or 16 bits"
            )
        scale, meaning = 255.0 / (2**bits - 1), f"{bits} bits"
    if meaning not in _told:
        _told.add(meaning)
        logger.warning(
            f"{file_name}: scaled to 8 bits from {meaning}, judged by its largest pixel, as all "
            "such images are from here on; convert the files to 8 bits to decide otherwise"
        )
    return Image.fromarray((values * scale + 0.5).astype(np.uint8))


def _diagnosis(file_name: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return (
            f"{file_name}: no such image: check file_name in the annotations and the data set's "
            "image folder (below $DETECTRON2_DATASETS for the built-in data sets)"
        )
    if isinstance(error, PermissionError | IsADirectoryError):
        return f"{file_name}: cannot be read as an image file ({error.strerror})"
    if os.path.isfile(file_name) and os.path.getsize(file_name) == 0:
        return (
            f"{file_name}: the image file is empty: fetch it again, or take the image out of the "
            "annotations"
        )
    return (
        f"{file_name}: the image cannot be decoded ({error}): it is truncated, damaged or no "
        "image; fetch it again, or take it out of the annotations"
    )


def _is_turned(file_name: str) -> bool:
    """Whether the EXIF orientation swaps width and height."""
    with PathManager.open(file_name, "rb") as file:
        return Image.open(file).getexif().get(_EXIF_ORIENTATION, 1) >= 5
