"""Pictures of the formats that Pillow reads: photographs and drawings."""

import threading
from typing import BinaryIO

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from PIL import Image

from isda.data.errors import ImageError
from isda.data.images.options import ImageOptions

__all__ = ["check_pixels", "num_frames", "open_picture", "oriented", "picture_pixels"]

_DEEP_MODES = ("I", "F")  # and every "I;16..."
_EXIF_ORIENTATION = 274
_limit = threading.Lock()


def open_picture(file: BinaryIO) -> Image.Image:
    """``Image.open``, which leaves it to :func:`check_pixels` how large an image may be."""
    with _limit:
        largest, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = largest


def check_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    """
    Raises:
        ImageError: the image has none, or more than ``max_pixels``.
    """
    if width * height == 0:
        raise ImageError(f"{name}: has no pixel: its size is {width}x{height}")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: has {width}x{height} pixels (width x height), {width * height} together, "
            f"and INPUT.MAX_PIXELS allows {max_pixels}, as a small file can claim any size: where "
            f"you know the file, give INPUT.MAX_PIXELS {width * height} or more"
        )


def num_frames(image: Image.Image) -> int:
    """How many images a file holds: 1 of photographs, whatever previews a camera has added."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def picture_pixels(
    image: Image.Image, name: str, options: ImageOptions, file: BinaryIO | None = None
) -> np.ndarray:
    """``(H, W, 3)`` or, of grey, ``(H, W)``: upright, without transparency, in the file's numbers.

    Args:
        image: opened; decoded here.
        name: for messages.
        file: that it was opened from, for what Pillow alone would cut to 8 bits.

    Raises:
        ImageError: it is too large, or page or channel are not there or have to be named.
    """
    check_pixels(image.width, image.height, name, options.max_pixels)
    _seek(image, name, options.page)
    # Detectron2 asks for the orientation first, which decodes a PNG and swallows the error.
    image.load()
    if file is not None and _has_deep_colours(file):
        pixels = oriented(_by_opencv(file, name), image.getexif().get(_EXIF_ORIENTATION, 1))
        return _channel(pixels, name, options.channel)
    image = _apply_exif_orientation(image)
    if image.mode in _DEEP_MODES or image.mode.startswith("I;"):
        pixels = np.asarray(image)
    elif image.mode in ("1", "L", "LA"):
        pixels = convert_PIL_to_numpy(image, "L")[..., 0]
    else:
        pixels = convert_PIL_to_numpy(image, "RGB")
    return _channel(pixels, name, options.channel)


def _seek(image: Image.Image, name: str, page: int) -> None:
    count = num_frames(image)
    if page >= count:
        raise ImageError(f"{name}: has no page {page}: it has {count}, counted from 0")
    if page < 0 and count > 1:
        raise ImageError(
            f"{name}: has {count} pages, counted from 0: say which one is meant, by --page N or "
            "INPUT.PAGE N"
        )
    if page > 0:
        image.seek(page)


def _channel(pixels: np.ndarray, name: str, channel: int) -> np.ndarray:
    if channel < 0:
        return pixels
    channels = np.atleast_3d(pixels)
    if channel >= channels.shape[2]:
        raise ImageError(
            f"{name}: has no channel {channel}: it has {channels.shape[2]}, counted from 0"
        )
    return channels[..., channel]


def _has_deep_colours(file: BinaryIO) -> bool:
    """Whether it is a PNG with 16 bits for each of several channels: Pillow leaves 8 of them."""
    file.seek(0)
    header = file.read(26)
    return header[:8] == b"\x89PNG\r\n\x1a\n" and header[24] == 16 and header[25] in (2, 4, 6)


def _by_opencv(file: BinaryIO, name: str) -> np.ndarray:
    """``(H, W, 3)`` of such a PNG."""
    import cv2

    file.seek(0)
    pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ImageError(f"{name}: OpenCV cannot decode this PNG with 16 bits per channel")
    return pixels[..., 2::-1]


def oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """``(H, W, ...)`` turned upright, as EXIF and TIFF number it, from 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
