"""Images of every kind that users bring, as 8-bit pixels: the one reader of the package."""

from isda.data.images.intensity import INTENSITY_RULES, check_intensity, to_8_bits
from isda.data.images.options import DEFAULT_OPTIONS, MAX_PIXELS, ImageOptions
from isda.data.images.reading import (
    check_image_size,
    count_pages,
    first_plane,
    is_constant,
    is_turned,
    pixels_and_rgb,
    read_image,
    read_numbers,
    read_pixels,
    rgb_image,
    to_rgb,
)

__all__ = [
    "DEFAULT_OPTIONS",
    "INTENSITY_RULES",
    "MAX_PIXELS",
    "ImageOptions",
    "check_image_size",
    "check_intensity",
    "count_pages",
    "first_plane",
    "is_constant",
    "is_turned",
    "pixels_and_rgb",
    "read_image",
    "read_numbers",
    "read_pixels",
    "rgb_image",
    "to_8_bits",
    "to_rgb",
]
