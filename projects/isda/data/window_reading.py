"""Images of which a window is read at a time, so that they may be larger than the memory."""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from isda.data.images.options import ImageOptions
from isda.data.images.tiff import Tiff, is_tiff

if TYPE_CHECKING:
    from tifffile import TiffPage

__all__ = ["ArrayReader", "FlippedReader", "TiffReader", "WindowReader", "large_tiff"]

_LARGE = 2**26  # pixels: what is smaller is read whole
_CACHE = 2**27  # bytes of decoded strips or tiles that are kept: windows of a row share them


class WindowReader(Protocol):
    """An image that is read window by window."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)``."""

    def read(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """``(bottom - top, right - left, C)`` uint8, the last row and column excluded."""


class ArrayReader:
    """Windows of an array ``(H, W, C)``, which may be a memory map."""

    def __init__(self, image: np.ndarray):
        self.image = image

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)``."""
        return self.image.shape[:2]

    def read(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """As of :class:`WindowReader`."""
        return self.image[top:bottom, left:right]


class FlippedReader:
    """Another reader's windows with the channels in reverse order: BGR of RGB."""

    def __init__(self, reader: WindowReader):
        self.reader = reader

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)``."""
        return self.reader.shape

    def read(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """As of :class:`WindowReader`."""
        return self.reader.read(top, bottom, left, right)[..., ::-1]


class TiffReader:
    """Windows of a TIFF with 8 bits per channel, of which only the strips or tiles are decoded.

    Files without compression are mapped into the memory instead.
    """

    def __init__(self, page: "TiffPage"):
        """
        Args:
            page: of a file that stays open, with axes ``YX`` or ``YXS``; see
                :meth:`isda.data.images.tiff.Tiff.plain_page`.
        """
        self._page = page
        self._mapped = None
        if page.is_memmappable:
            file = page.parent.filehandle
            self._mapped = file.memmap_array(page.dtype, page.shape, page.dataoffsets[0])
        self._segments: OrderedDict[int, np.ndarray] = OrderedDict()

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)``."""
        return self._page.shape[:2]

    def read(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """As of :class:`WindowReader`, in RGB."""
        if self._mapped is not None:
            window = np.asarray(self._mapped[top:bottom, left:right])
        else:
            window = self._decoded(top, bottom, left, right)
        window = window.reshape(bottom - top, right - left, -1)
        return np.repeat(window, 3, axis=2) if window.shape[2] == 1 else window[..., :3]

    def _decoded(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        height, width = self._page.chunks[:2]
        window = np.zeros((bottom - top, right - left, *self._page.shape[2:]), np.uint8)
        across = self._page.chunked[1]
        for row in range(top // height, -(-bottom // height)):
            for column in range(left // width, -(-right // width)):
                segment = self._segment(row * across + column)
                y, x = row * height, column * width
                rows = max(top, y), min(bottom, y + segment.shape[0])
                columns = max(left, x), min(right, x + segment.shape[1])
                part = segment[rows[0] - y : rows[1] - y, columns[0] - x : columns[1] - x]
                window[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left] = part
        return window

    def _segment(self, index: int) -> np.ndarray:
        """A strip or a tile, from the cache if it was needed lately."""
        if index in self._segments:
            self._segments.move_to_end(index)
            return self._segments[index]
        page, file = self._page, self._page.parent.filehandle
        file.seek(page.dataoffsets[index])
        data = file.read(page.databytecounts[index])
        segment, _, shape = page.decode(data, index)
        if segment is None:  # left out of the file: black
            segment = np.zeros(shape, np.uint8)
        segment = segment.reshape(*segment.shape[1:3], *page.shape[2:])
        self._segments[index] = segment
        while len(self._segments) > 1 and self._cached() > _CACHE:
            self._segments.popitem(last=False)
        return segment

    def _cached(self) -> int:
        return sum(segment.nbytes for segment in self._segments.values())


@contextlib.contextmanager
def large_tiff(file_name: str, options: ImageOptions) -> Iterator[TiffReader | None]:
    """A reader of the windows of a large TIFF; None of everything that is to be read whole.

    That is what has less than 67 million pixels, is no TIFF, or one whose pixels have to be scaled
    to 8 bits, turned, or converted to RGB.

    Raises:
        ImageError: page or channel have to be named, or are not there.
        OSError: the file cannot be opened.
    """
    with open(file_name, "rb") as file:
        if not is_tiff(file):
            yield None
            return
        with Tiff(file, file_name) as tiff:
            page = tiff.plain_page(options)
            is_large = page is not None and page.shape[0] * page.shape[1] > _LARGE
            yield TiffReader(page) if is_large else None
