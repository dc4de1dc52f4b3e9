"""Scaling of the values of cameras and microscopes to 8 bits."""

import logging

import numpy as np

from isda.data.errors import ImageError

__all__ = ["INTENSITY_RULES", "check_intensity", "limits", "to_8_bits"]

logger = logging.getLogger(__name__)

# As cellpose (1, 99) and StarDist (1, 99.8) do: hot pixels do not count.
_LOW, _HIGH = 1.0, 99.8
INTENSITY_RULES = (
    "'percentile', 'percentile LOW HIGH' (such as 'percentile 0.1 99.9'), 'range', or two values "
    "(such as '0 4095')"
)
_told: set[str] = set()


def check_intensity(rule: str) -> bool:
    """Whether ``rule`` is one that :func:`limits` knows."""
    try:
        _parsed(rule)
    except ValueError:
        return False
    return True


def _parsed(rule: str) -> tuple[str, float, float]:
    """Kind, and the percentiles or values that stand with it.

    Raises:
        ValueError: it is no such rule.
    """
    words = rule.replace(",", " ").split()
    kind = words.pop(0) if words and words[0] in ("percentile", "range") else "values"
    if kind == "range" and not words:
        return kind, 0.0, 100.0
    if kind == "percentile" and not words:
        return kind, _LOW, _HIGH
    error = ValueError(f"INPUT.INTENSITY must be {INTENSITY_RULES}, got {rule!r}")
    if len(words) != 2 or kind == "range":
        raise error
    try:
        low, high = map(float, words)
    except ValueError:
        raise error from None
    if not low < high or not np.isfinite([low, high]).all():
        raise error
    if kind == "percentile" and not 0 <= low < high <= 100:
        raise error
    return kind, low, high


def limits(pixels: np.ndarray, rule: str) -> tuple[float, float]:
    """The values that become 0 and 255.

    Args:
        pixels: numbers of any shape, all finite, at least one.
        rule: ``"percentile"`` takes the 1st and the 99.8th percentile of the image,
            ``"percentile LOW HIGH"`` others, ``"range"`` its smallest and largest value; ``"LOW
            HIGH"`` are values, the same for every image. Where nearly all pixels are equal, so
            that both percentiles are, the range counts.

    Raises:
        ValueError: it is no such rule.
    """
    kind, low, high = _parsed(rule)
    if kind == "values":
        return low, high
    low, high = _percentiles(pixels, (low, high))
    if low == high:
        low, high = float(pixels.min()), float(pixels.max())
    return low, high


def _percentiles(pixels: np.ndarray, shares: tuple[float, float]) -> tuple[float, float]:
    """As ``np.percentile``, which of a slide with 16 bits would make copies of gigabytes."""
    if pixels.dtype.itemsize > 2 or pixels.dtype.kind not in "iu":
        # float16 would overflow where values are interpolated.
        flat = pixels.astype(np.float32).ravel() if pixels.dtype == np.float16 else pixels.ravel()
        low, high = np.percentile(flat, shares)
        return float(low), float(high)
    smallest = int(pixels.min())
    counts = np.zeros(int(pixels.max()) - smallest + 1, np.int64)
    for row in pixels:
        counts += np.bincount(row.ravel().astype(np.int64) - smallest, minlength=len(counts))
    last_of = counts.cumsum() - 1  # the place of a value's last pixel among all, sorted
    places = np.asarray(shares) / 100 * (pixels.size - 1)
    before, after = (np.searchsorted(last_of, f(places)) for f in (np.floor, np.ceil))
    low, high = before + (after - before) * (places % 1) + smallest
    return float(low), float(high)


def to_8_bits(pixels: np.ndarray, name: str, rule: str) -> np.ndarray:
    """The pixels as uint8; those of 8 bits as they are, and True as 255.

    Args:
        pixels: ``(H, W)`` or ``(H, W, C)``; the channels are scaled alike, so colours stay.
        name: of the image, for messages.
        rule: as of :func:`limits`.

    Raises:
        ImageError: a pixel is not finite, or complex.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind not in "iuf":
        raise ImageError(f"{name}: has pixels of type {pixels.dtype}: convert it to real numbers")
    if not np.isfinite(pixels).all():
        raise ImageError(
            f"{name}: has pixels that are no finite numbers (NaN or infinite): give them a value, "
            "such as that of the background"
        )
    low, high = limits(pixels, rule)
    if low == high:  # a constant image, which is_constant tells
        return np.zeros(pixels.shape, np.uint8)
    if rule not in _told:
        _told.add(rule)
        logger.warning(
            f"{name}: its pixels are of type {pixels.dtype}: scaled to 8 bits such that {low:g} is "
            f"black and {high:g} white (INPUT.INTENSITY {rule!r}), as all such images are from "
            "here on"
        )
    scaled = np.empty(pixels.shape, np.uint8)
    factor = 255.0 / (high - low)
    for row, values in zip(scaled, pixels):  # of a large image, no float copy as a whole
        row[...] = ((values.astype(np.float64) - low) * factor).clip(0, 255) + 0.5
    return scaled
