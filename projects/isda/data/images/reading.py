"""Reading images of every kind that users bring, and saying what is wrong with the others."""

import logging
import os
from typing import BinaryIO

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image
from torch import Tensor

from isda.data.errors import ImageError
from isda.data.images.intensity import to_8_bits
from isda.data.images.options import DEFAULT_OPTIONS, ImageOptions
from isda.data.images.pictures import num_frames, open_picture, picture_pixels
from isda.data.images.tiff import Tiff, is_tiff
from isda.data.json_files import is_lfs_pointer

__all__ = [
    "check_image_size",
    "count_pages",
    "first_plane",
    "is_constant",
    "is_turned",
    "read_image",
    "read_numbers",
    "pixels_and_rgb",
    "read_pixels",
    "rgb_image",
    "to_rgb",
]

logger = logging.getLogger(__name__)

_EXIF_ORIENTATION = 274
_constant: set[str] = set()  # images that were told to be


def read_image(file_name: str, format: str, options: ImageOptions = DEFAULT_OPTIONS) -> np.ndarray:
    """Read an image as Detectron2 does, and also those that it reads wrongly.

    EXIF rotation is applied. Grey, palette, CMYK and 1-bit images are converted, transparency is
    ignored. Pixels of other types than 8 bits are scaled to them, as ``options.intensity`` says.
    TIFF is read by tifffile, all else by Pillow. An image whose pixels are all equal is warned of.

    Args:
        file_name: a path, or an address that iopath understands.
        format: as ``INPUT.FORMAT``: ``"RGB"``, ``"BGR"``, ``"L"``, ``"YUV-BT.601"``.
        options: those of the model, or of its training.

    Returns:
        ``(height, width, channels)`` in 0–255, uint8 (float for ``"YUV-BT.601"``).

    Raises:
        ImageError: the file is missing, empty, damaged or no image, or has several pages or
            channels of which none is named.
    """

    return _formatted(_visible(read_pixels(file_name, options), file_name, options), format)


def to_rgb(pixels: np.ndarray, name: str, options: ImageOptions) -> np.ndarray:
    """``(H, W, 3)`` uint8 RGB of what :func:`read_pixels` returned for the image ``name``.

    Raises:
        ImageError: a pixel is not finite.
    """
    return _formatted(_visible(pixels, name, options), "RGB")


def _visible(pixels: np.ndarray, file_name: str, options: ImageOptions) -> np.ndarray:
    """As 8 bits; warns where there is nothing to see."""
    pixels = to_8_bits(pixels, file_name, options.intensity)
    if is_constant(pixels) and file_name not in _constant:
        _constant.add(file_name)
        logger.warning(
            f"{file_name}: all pixels are equal, so there is nothing to see: is it the page, the "
            "channel, the file that is meant?"
        )
    return pixels


def read_pixels(file_name: str, options: ImageOptions = DEFAULT_OPTIONS) -> np.ndarray:
    """An image in the numbers that its file has, such as intensities to be measured.

    Returns:
        ``(H, W)`` or, of colours, ``(H, W, 3)``, of any type; upright, without transparency.

    Raises:
        ImageError: as of :func:`read_image`.
    """

    def read(file: BinaryIO) -> np.ndarray:
        if not is_tiff(file):
            return picture_pixels(open_picture(file), file_name, options, file)
        with Tiff(file, file_name) as tiff:
            return tiff.read(options)

    return _opened(file_name, read)


def read_numbers(file_name: str, options: ImageOptions = DEFAULT_OPTIONS) -> np.ndarray | None:
    """The numbers of a TIFF as they are, such as those of a label image; None: it is no TIFF.

    Returns:
        ``(H, W)`` of any type, or ``(H, W, 3)`` of colours.

    Raises:
        ImageError: as of :func:`read_image`.
    """

    def read(file: BinaryIO) -> np.ndarray | None:
        if not is_tiff(file):
            return None
        with Tiff(file, file_name) as tiff:
            return tiff.numbers(options)

    return _opened(file_name, read)


def first_plane(file_name: str) -> np.ndarray:
    """One channel of an image, and of a stack the first page: decoded, but not made to be seen.

    Whoever needs the size, and to know whether a file is whole, need not say which is meant.

    Raises:
        ImageError: as of :func:`read_image`; also where pages are of different kinds.
    """

    def read(file: BinaryIO) -> np.ndarray:
        if not is_tiff(file):
            return picture_pixels(open_picture(file), file_name, ImageOptions(channel=0))
        with Tiff(file, file_name) as tiff:
            return tiff.numbers(ImageOptions(page=0 if tiff.is_stack else -1, channel=0))

    return _opened(file_name, read)


def count_pages(file_name: str) -> int:
    """How many pages a stack has; 1 of all other files, also of those with pages of several kinds.

    Raises:
        ImageError: as of :func:`read_image`.
    """

    def read(file: BinaryIO) -> int:
        if not is_tiff(file):
            return num_frames(open_picture(file))
        with Tiff(file, file_name) as tiff:
            return len(tiff.pages) if tiff.is_stack else 1

    return _opened(file_name, read)


def is_turned(file_name: str, *, aside: bool = False) -> bool:
    """Whether a tag turns the image before it is used; ``aside``: so that width becomes height.

    Raises:
        ImageError: as of :func:`read_image`.
    """

    def read(file: BinaryIO) -> int:
        if not is_tiff(file):
            return open_picture(file).getexif().get(_EXIF_ORIENTATION, 1)
        with Tiff(file, file_name) as tiff:
            return tiff.orientation

    return _opened(file_name, read) >= (5 if aside else 2)


def is_constant(pixels: np.ndarray) -> bool:
    """Whether all pixels are equal; ``(H, W)`` or ``(H, W, C)``."""
    first = pixels[0, 0]
    return all((row == first).all() for row in pixels)  # nearly all differ in the first row


def _opened(file_name: str, read):
    """What ``read`` makes of the opened file.

    Raises:
        ImageError: says why it fails.
    """
    try:
        with PathManager.open(file_name, "rb") as file:
            return read(file)
    except ImageError:
        raise
    except Exception as error:  # on damaged files decoders raise all kinds of errors
        raise ImageError(_diagnosis(file_name, error)) from error


def _formatted(pixels: np.ndarray, format: str) -> np.ndarray:
    """``(H, W)`` or ``(H, W, 3)`` uint8 as :func:`read_image` returns it."""
    if format in ("RGB", "BGR"):
        pixels = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
        return np.ascontiguousarray(pixels if format == "RGB" else pixels[..., ::-1])
    return convert_PIL_to_numpy(Image.fromarray(pixels), format)


def rgb_image(
    image: str | os.PathLike | Image.Image | np.ndarray | Tensor,
    channels: str = "RGB",
    options: ImageOptions = DEFAULT_OPTIONS,
) -> np.ndarray:
    """An image as users have it, as ``(H, W, 3)`` uint8 in RGB.

    Args:
        image: a path or address, as :func:`read_image` takes it; a picture of Pillow, converted
            in the same way; an array ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` or ``(H, W, 4)``; a
            tensor of the same with the channels first. A fourth channel, transparency, is
            ignored. Numbers that are not uint8 are scaled as those of files are, by
            ``options.intensity``, unless they are 8 bits in another type: whole numbers from 0
            to 255 as integers of 32 or 64 bits or as real ones, or 255ths from 0 to 1.
        channels: ``"RGB"`` or ``"BGR"``, the order in an array or a tensor.
        options: those of the model; of arrays and tensors the intensity alone counts.

    Raises:
        ImageError: the image cannot be read, or is not of these kinds.
    """
    return pixels_and_rgb(image, channels, options)[1]


def pixels_and_rgb(
    image: str | os.PathLike | Image.Image | np.ndarray | Tensor,
    channels: str = "RGB",
    options: ImageOptions = DEFAULT_OPTIONS,
) -> tuple[np.ndarray, np.ndarray]:
    """An image in its own numbers, ``(H, W)`` or ``(H, W, 3)``, and as :func:`rgb_image` gives it.

    Raises:
        ImageError: as of :func:`rgb_image`.
    """
    if channels not in ("RGB", "BGR"):
        raise ValueError(f"channels must be 'RGB' or 'BGR', got {channels!r}")
    if isinstance(image, str | os.PathLike):
        pixels = read_pixels(os.fspath(image), options)
        return pixels, to_rgb(pixels, os.fspath(image), options)
    if isinstance(image, Image.Image):
        pixels = picture_pixels(image, "the picture", options)
        return pixels, _formatted(to_8_bits(pixels, "the picture", options.intensity), "RGB")
    if isinstance(image, Tensor):
        image = _channels_last(image)
    elif not isinstance(image, np.ndarray):
        raise ImageError(
            f"an image of type {type(image).__name__}: give a path, a picture of Pillow, an array "
            "(H, W, 3), a tensor (3, H, W), or a list of them"
        )
    if image.dtype.kind not in "buif":
        raise ImageError(f"an array of type {image.dtype} is no image: it must hold numbers")
    original = pixels = _three_channels(image)
    if pixels.dtype != np.uint8:
        whole = _bytes_in_other_types(pixels)
        pixels = to_8_bits(pixels, "the array", options.intensity) if whole is None else whole
    order = slice(None) if channels == "RGB" else slice(None, None, -1)
    is_grey = image.ndim == 2 or image.shape[2] == 1
    return original[..., 0] if is_grey else original[..., order], pixels[..., order]


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


def _bytes_in_other_types(pixels: np.ndarray) -> np.ndarray | None:
    """The uint8 pixels that were converted to a wide type, as PyTorch does; None: they were not.

    Integers of 16 bits are a camera's.
    """
    if pixels.dtype.kind not in "iuf" or pixels.dtype.itemsize < 4 and pixels.dtype.kind != "f":
        return None
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 255:
        return None
    values = pixels.astype(np.float64)
    if pixels.dtype.kind == "f" and values.max() <= 1:
        # float16 has 11 bits: a 255th is a part in 2,000 off.
        values, tolerance = values * 255, 0.13 if pixels.dtype.itemsize == 2 else 1e-3
    else:
        tolerance = 0.0
    whole = np.round(values)
    return whole.astype(np.uint8) if (np.abs(values - whole) <= tolerance).all() else None


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
    if (width, height) == expected and is_turned(file_name, aside=True):
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
    if file_name.lower().endswith((".npy", ".npz")):
        return (
            f"{file_name}: is an array of NumPy, no image file: save it as TIFF "
            "(tifffile.imwrite), or give the array itself to isda.Predictor"
        )
    if os.path.isfile(file_name):
        with open(file_name, "rb") as file:
            if is_lfs_pointer(file.read(40)):
                return f"{file_name}: is a pointer of Git LFS: fetch the images by `git lfs pull`"
    return (
        f"{file_name}: the image cannot be decoded ({error}): it is truncated, damaged or no "
        "image; fetch it again, or take it out of the annotations"
    )
