"""The images that one file holds: itself, or the pages of a stack."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isda.data.images import ImageOptions, count_pages, read_image

__all__ = ["Page", "pages_of"]


@dataclass(frozen=True)
class Page:
    """One image of a file."""

    path: Path
    options: ImageOptions  # how it is read
    count: int = 1  # pages that are gone through

    def read(self) -> np.ndarray:
        """``(H, W, 3)`` uint8, RGB.

        Raises:
            ImageError: it cannot be read, or page or channel have to be named.
        """
        return read_image(str(self.path), "RGB", self.options)

    @property
    def label(self) -> str:
        """What tells it from the other pages, before what is said of it."""
        return f"page {self.options.page} of {self.count}: " if self.count > 1 else ""

    @property
    def fields(self) -> dict[str, int]:
        """What stands beside the name of the file in a JSON file."""
        return {"page": self.options.page} if self.count > 1 else {}

    def output(self, path: Path | None) -> Path | None:
        """Where its result goes, of the file that is for the whole: ``a_page3.png``."""
        if path is None or self.count == 1:
            return path
        return path.with_name(f"{path.stem}_page{self.options.page}{path.suffix}")


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
