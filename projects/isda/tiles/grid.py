"""Windows that cover an image, each sharing a band with its neighbours."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Grid", "Window", "window_grid"]

Interval = tuple[int, int]  # first pixel, and the one after the last


class Window(NamedTuple):
    """A part of an image, in pixels; the last row and column are not in it."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True)
class Grid:
    """The windows with these rows and columns of the image: all pairs of them."""

    rows: list[Interval]
    columns: list[Interval]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[Window]:
        """Row by row, each from left to right."""
        return (Window(*row, *column) for row in self.rows for column in self.columns)

    @property
    def window_size(self) -> tuple[int, int]:
        """``(height, width)`` of every window."""
        return tuple(end - start for start, end in (self.rows[0], self.columns[0]))

    def __str__(self) -> str:
        height, width = self.window_size
        return f"{len(self.rows)} x {len(self.columns)} windows of {height} x {width} pixels"


def window_grid(image_size: tuple[int, int], sides: Sequence[int], overlap: int) -> Grid:
    """Windows that cover an image with as few pixels as possible in all of them together.

    Args:
        image_size: ``(height, width)``. A side that is no larger than a window may be is not cut.
        sides: that windows may have, pixels; rows and columns may differ.
        overlap: least number of pixels that neighbours share; at most a third of each side, so
            that no pixel is in three windows of a row.

    Raises:
        ValueError: the overlap is negative, or more than a third of a window.
    """
    if not 0 <= 3 * overlap <= min(sides):
        raise ValueError(
            f"windows of {min(sides)} pixels cannot overlap by {overlap}: at most a third of them"
        )
    return Grid(*(_intervals(length, sides, overlap) for length in image_size))


def _intervals(length: int, sides: Sequence[int], overlap: int) -> list[Interval]:
    if length <= max(sides):
        return [(0, length)]
    counts = {side: -(-(length - overlap) // (side - overlap)) for side in sides if side < length}
    side = min(counts, key=lambda side: (counts[side] * side, -side))
    steps = counts[side] - 1
    starts = [(length - side) * index // steps for index in range(steps + 1)]
    return [(start, start + side) for start in starts]
