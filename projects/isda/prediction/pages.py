"""The images that one file holds: itself, or the pages of a stack."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isda.data.images import ImageOptions, count_pages, read_pixels

__all__ = ["Page", "pages_of"]


@dataclass(frozen=True)
class Page:
    """One image of a file."""

    path: Path
    options: ImageOptions  # how it is read
    count: int = 1  # pages that are gone through

    def read(self) -> np.ndarray:
        """In the numbers of the file, as of :func:`isda.data.images.read_pixels`.

        Raises:
            ImageError: it cannot be read, or page or channel have to be named.
        """
        return read_pixels(str(self.path), self.options)

    @property
    def number(self) -> int | None:
        """Which of several pages it is, from 0; None: it is all that is meant of its file."""
        return self.options.page if self.count > 1 else None

    @property
    def label(self) -> str:
        """What tells it from the other pages, before what is said of it."""
        return "" if self.number is None else f"page {self.number} of {self.count}: "

    @property
    def fields(self) -> dict[str, int]:
        """What stands beside the name of the file in a file of results."""
        return {} if self.number is None else {"page": self.number}


def pages_of(path: Path, options: ImageOptions) -> Iterator[Page]:
    """The page that the options name; all of a stack, one after the other, where they name none.

    Raises:
        ImageError: the file cannot be read.
    """
    count = count_pages(str(path)) if options.page < 0 else 1
    if count == 1:
        yield Page(path, options)
        return
    for number in range(count):
        yield Page(path, dataclasses.replace(options, page=number), count)
