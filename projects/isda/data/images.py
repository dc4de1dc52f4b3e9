"""Reading images of every kind that users bring, and saying what is wrong with the others."""

import logging
import os

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image
from torch import Tensor

from isda.data.errors import ImageError

__all__ = ["check_image_size", "read_image", "rgb_image"]

logger = logging.getLogger(__name__)

_EXIF_ORIENTATION = 274
_DEEP_MODES = ("I", "F")  # and every "I;16..."
# Bits that cameras and microscopes deliver, whatever the depth of the file.
_SENSOR_BITS = (8, 12, 16)
_told: set[int] = set()


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
            return _converted(Image.open(file), file_name, format)
    except ImageError:
        raise
    except Exception as error:  # on damaged files Pillow's decoders raise all kinds of errors
        raise ImageError(_diagnosis(file_name, error)) from error


def rgb_image(
    image: str | os.PathLike | Image.Image | np.ndarray | Tensor, channels: str = "RGB"
) -> np.ndarray:
    """An image as users have it, as ``(H, W, 3)`` uint8 in RGB.

    Args:
        image: a path or address, as :func:`read_image` takes it; a picture of Pillow, converted
            in the same way; an array ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` or ``(H, W, 4)``; a
            tensor of the same with the channels first. A fourth channel, transparency, is
            ignored. Numbers may be whole (8, 12 or 16 bits, whichever holds the largest) or real,
            in [0, 1] or, where one is above 1, as whole ones.
        channels: ``"RGB"`` or ``"BGR"``, the order in an array or a tensor.

    Raises:
        ImageError: the image cannot be read, or is not of these kinds.
    """
    if channels not in ("RGB", "BGR"):
        raise ValueError(f"channels must be 'RGB' or 'BGR', got {channels!r}")
    if isinstance(image, str | os.PathLike):
        return read_image(os.fspath(image), "RGB")
    if isinstance(image, Image.Image):
        return _converted(image, "the picture", "RGB")
    if isinstance(image, Tensor):
        image = _channels_last(image)
    elif not isinstance(image, np.ndarray):
        raise ImageError(
            f"an image of type {type(image).__name__}: give a path, a picture of Pillow, an array "
            "(H, W, 3), a tensor (3, H, W), or a list of them"
        )
    if image.dtype.kind not in "buif":
        raise ImageError(f"an array of type {image.dtype} is no image: it must hold numbers")
    pixels = _three_channels(image)
    if pixels.dtype != np.uint8:
        pixels = _to_8_bits(pixels, "the array")
    return pixels if channels == "RGB" else pixels[..., ::-1]


def _channels_last(image: Tensor) -> np.ndarray:
    if image.dim() == 3 and image.shape[0] not in (1, 3, 4):
        raise ImageError(
            f"a tensor of shape {tuple(image.shape)} is no image: its channels, 1, 3 or 4, come "
            "first, (C, H, W)"
        )
    image = image.detach().cpu()
    image = image.float() if image.is_floating_point() else image  # NumPy has no bfloat16
    return (image.permute(1, 2, 0) if image.dim() == 3 else image).numpy()


def _three_channels(image: np.ndarray) -> np.ndarray:
    """``(H, W, 3)`` of an array of pixels, of the same type."""
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise ImageError(
            f"an array of shape {image.shape} is no image: it must be (H, W), (H, W, 1), (H, W, 3) "
            "or (H, W, 4); several images go into a list"
        )
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]


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


def _converted(image: Image.Image, name: str, format: str) -> np.ndarray:
    if 0 in image.size:
        raise ImageError(f"{name}: has no pixel: its size is {image.width}x{image.height}")
    image = _apply_exif_orientation(image)
    if image.mode in _DEEP_MODES or image.mode.startswith("I;"):
        image = Image.fromarray(_to_8_bits(np.asarray(image), name))
    return convert_PIL_to_numpy(image, format)


def _to_8_bits(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    is_real, largest = pixels.dtype.kind == "f", float(pixels.max())
    if not np.isfinite(pixels).all() or pixels.min() < 0:
        raise ImageError(f"{name}: has negative or non-finite pixels: convert it to 8 bits")
    if is_real and largest <= 1:
        return _scaled(pixels, 255.0)
    bits = next((b for b in _SENSOR_BITS if largest < 2**b), None)
    if bits is None:
        raise ImageError(
            f"{name}: has pixels up to {largest:g}, more than 16 bits hold: convert it to 8 or 16 "
            "bits"
        )
    if bits not in _told and not (is_real and bits == 8):
        _told.add(bits)
        logger.warning(
            f"{name}: scaled to 8 bits from {bits} bits, judged by its largest pixel, as all "
            "such images are from here on; convert the files to 8 bits to decide otherwise"
        )
    return _scaled(pixels, 255.0 / (2**bits - 1))


def _scaled(pixels: np.ndarray, factor: float) -> np.ndarray:
    scaled = np.empty(pixels.shape, np.uint8)
    for row, values in zip(scaled, pixels):  # of a large image, no float copy as a whole
        row[...] = values.astype(np.float64) * factor + 0.5
    return scaled


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
