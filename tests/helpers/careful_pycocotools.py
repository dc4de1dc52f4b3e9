"""A stand-in for pycocotools, which is written in C and does not check what it is given.

It passes on what is plainly whole and refuses the rest, and so a test of our checks fails in Python
where a check lets something through.
"""

import functools
import inspect
import math

import numpy as np
import pycocotools.mask as mask_util

FUNCTIONS = ("frPyObjects", "merge", "decode", "toBbox", "area")
LARGEST = 10_000  # a coordinate's distance from the image that needs no thought


class ReachedError(AssertionError):
    """A segmentation that our checks should have stopped has got to pycocotools."""


def install(monkeypatch) -> None:
    """In place of the functions of ``pycocotools.mask``, whoever calls them."""
    for name in FUNCTIONS:
        original = getattr(mask_util, name)
        assert inspect.isroutine(original)
        monkeypatch.setattr(mask_util, name, careful(original))


def careful(original):
    @functools.wraps(original)
    def function(objects, *arguments):
        several = isinstance(objects, list) and not (objects and all(map(is_number, objects)))
        for part in objects if several else [objects]:
            if not (is_whole_rle(part) if isinstance(part, dict) else is_whole_polygon(part)):
                raise ReachedError(f"{original.__name__}: {part!r}")
        return original(objects, *arguments)

    return function


def is_number(value) -> bool:
    return isinstance(value, int | float | np.number)


def is_whole_polygon(numbers) -> bool:
    """Three vertices or more, not far off; or the boxes that pycocotools takes as an array."""
    if isinstance(numbers, np.ndarray) and numbers.ndim == 2:
        return True
    if not isinstance(numbers, list | np.ndarray) or not all(map(is_number, numbers)):
        return False
    near = all(math.isfinite(number) and abs(number) < LARGEST for number in numbers)
    return near and len(numbers) >= 6 and len(numbers) % 2 == 0


def is_whole_rle(rle: dict) -> bool:
    """Runs that add up to the image."""
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list) or not all(isinstance(side, int) for side in size):
        return False
    runs = counts if isinstance(counts, list) else runs_of(counts)
    whole = all(isinstance(run, int) and run >= 0 for run in runs)
    return whole and sum(runs) == math.prod(size)


def runs_of(counts: bytes | str) -> list[int]:
    """Of COCO's string, a character after the other; an impossible run where it is broken."""
    codes = counts.encode() if isinstance(counts, str) else counts or b""
    runs, value, shift = [], 0, 0
    for code in codes:
        bits = code - 48
        if not 0 <= bits < 64:
            return [-1]
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        value -= 1 << shift if bits & 16 else 0  # the sign
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs if shift == 0 else [-1]
