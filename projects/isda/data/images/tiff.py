"""TIFF as microscopes, scanners and analysis programs write it, read by tifffile.

Pillow takes the first page, and changes the numbers of many: real ones above 1, those with a sign,
16 bits of colour. Words: a *page* is one plane (a depth, a moment, a thumbnail), a *channel* one
of the values that a plane has per pixel.
"""

import dataclasses
import importlib.util
import logging
import math
import sys
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from PIL import UnidentifiedImageError

from isda.data.errors import ImageError
from isda.data.images.options import ImageOptions
from isda.data.images.pictures import check_pixels, open_picture, oriented

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

__all__ = ["Tiff", "is_tiff"]

logger = logging.getLogger(__name__)

_ORIENTATION = 274  # the tag's number
_MOST_CHANNELS = 16  # a last axis so short holds channels, as no image is so narrow
_OWN_COLOURS = ("MINISBLACK", "MINISWHITE", "RGB", "PALETTE")  # that need no conversion
_JPEG = 7  # decoded into RGB
_NAMED_AXES = "TZRVHELAPM"  # as OME and tifffile name them; others have numbers alone
_LISTED = 6  # pages or channels in a message
_told: set[str] = set()


def is_tiff(file: BinaryIO) -> bool:
    """Whether the file begins as a TIFF or a BigTIFF does; it is rewound."""
    start = file.read(4)
    file.seek(0)
    return start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class _Page(NamedTuple):
    """One plane with all its channels."""

    series: "TiffPageSeries"
    axes: str  # of the series, one letter each
    index: dict[str, int]  # where it is along the axes that are no channels and no sides

    def size(self, letter: str) -> int:
        return self.series.shape[self.axes.index(letter)] if letter in self.axes else 1

    @property
    def kind(self) -> str:
        channels = self.size("C") * self.size("S")
        text = f"{self.size('X')}x{self.size('Y')} {self.series.dtype}"
        return f"{text}, {channels} channels" if channels > 1 else text

    @property
    def place(self) -> str:
        known = {axis: number for axis, number in self.index.items() if axis in _NAMED_AXES}
        return ", ".join(f"{axis} {number}" for axis, number in known.items())


class Tiff:
    """An opened TIFF; close it, or use it in a ``with`` block."""

    def __init__(self, file: BinaryIO, name: str):
        """
        Args:
            file: seekable.
            name: for messages.

        Raises:
            ImageError: tifffile is not installed, or finds no image.
        """
        if importlib.util.find_spec("tifffile") is None:
            raise ImageError(f"{name}: TIFF is read by tifffile: pip install tifffile")
        import tifffile  # a tenth of a second, for TIFF alone

        self._name, self._stream = name, file
        self._tif: TiffFile = tifffile.TiffFile(file)
        self.pages = [page for series in self._tif.series for page in _pages_of(series)]
        if not self.pages:
            raise ImageError(f"{name}: the TIFF holds no image: export it again")

    def __enter__(self) -> "Tiff":
        return self

    def __exit__(self, *_) -> None:
        self._tif.close()

    @property
    def is_stack(self) -> bool:
        """Whether there are several pages, all of one kind."""
        return len(self.pages) > 1 and len({page.kind for page in self.pages}) == 1

    @property
    def orientation(self) -> int:
        """As EXIF numbers it, of the first page."""
        return _orientation(self.pages[0].series.keyframe)

    def read(self, options: ImageOptions) -> np.ndarray:
        """One page, upright, as it is meant to be seen, in the numbers that the file has.

        Palettes become colours, and where 0 means white the numbers are inverted. Transparency is
        left out.

        Returns:
            ``(H, W)`` or, of colours, ``(H, W, 3)``.

        Raises:
            ImageError: page or channel have to be named, or are not there.
        """
        page = self._page(options)
        pixels, is_shown = self._pixels(page)
        pixels = self._one_channel(pixels, page, options.channel)
        return oriented(pixels if is_shown else _shown(pixels, page), self._turn(page))

    def numbers(self, options: ImageOptions) -> np.ndarray:
        """One page as numbers: no palette, and nothing inverted but 1 bit; as :meth:`read`."""
        page = self._page(options)
        pixels, is_shown = self._pixels(page)
        pixels = self._one_channel(pixels, page, options.channel)
        if pixels.dtype == np.bool_ and not is_shown:
            pixels = _shown(pixels, page)
        return oriented(pixels, self._turn(page))

    def plain_page(self, options: ImageOptions) -> "TiffPage | None":
        """The file's page whose bytes are the page's pixels; None where more is to be done to them.

        Raises:
            ImageError: as of :meth:`read`; no number of pixels is too large.
        """
        page = self._page(dataclasses.replace(options, max_pixels=sys.maxsize))
        frame, axes = _containing(page)
        if frame is None or axes not in ("YX", "YXS") or frame.dtype != np.uint8:
            return None
        colours = "MINISBLACK" if axes == "YX" else "RGB"
        is_plain = frame.photometric.name == colours and frame.compression != _JPEG
        is_plain = is_plain and options.channel < 0 and page.size("S") in (1, 3, 4)
        return frame if is_plain and self._turn(page) == 1 else None

    def _turn(self, page: _Page) -> int:
        return _orientation(page.series.keyframe)

    def _page(self, options: ImageOptions) -> _Page:
        if options.page >= len(self.pages):
            raise ImageError(
                f"{self._name}: has no page {options.page}: it has {self._listed_pages()}; pages "
                "are counted from 0"
            )
        if options.page < 0 and len(self.pages) > 1:
            kinds = "" if self.is_stack else " of different kinds"
            raise ImageError(
                f"{self._name}: has {len(self.pages)} pages{kinds}, {self._listed_pages()}: say "
                "which one is meant, by --page N or INPUT.PAGE N"
            )
        page = self.pages[max(options.page, 0)]
        check_pixels(page.size("X"), page.size("Y"), self._name, options.max_pixels)
        return page

    def _listed_pages(self) -> str:
        """Runs of pages of one kind: ``page 0 (64x48 uint8), pages 1-5 (512x512 uint16, Z 0)``."""
        runs: list[list[int]] = []
        for number, page in enumerate(self.pages):
            if runs and self.pages[runs[-1][0]].kind == page.kind:
                runs[-1].append(number)
            else:
                runs.append([number])
        parts = []
        for run in runs[:_LISTED]:
            first, last = self.pages[run[0]], self.pages[run[-1]]
            places = " to ".join(dict.fromkeys(filter(None, (first.place, last.place))))
            numbers = f"page {run[0]}" if len(run) == 1 else f"pages {run[0]} to {run[-1]}"
            parts.append(f"{numbers} ({first.kind}{'; ' * bool(places)}{places})")
        return ", ".join(parts) + (", ..." if len(runs) > _LISTED else "")

    def _pixels(self, page: _Page) -> tuple[np.ndarray, bool]:
        """``(H, W, C)`` of a page, and whether they are as they are meant to be seen."""
        frame = page.series.keyframe
        colours = frame.photometric.name
        if colours not in _OWN_COLOURS and not (colours == "YCBCR" and frame.compression == _JPEG):
            return self._by_others(page, f"has colours of the kind {colours}"), True
        try:
            pixels, axes = _read_plane(page)
        except (ValueError, ImportError) as error:
            if not _lacks_codec(error):
                raise
            problem = f"is compressed as {frame.compression.name}"
            return self._by_others(page, problem), frame.dtype.itemsize == 1
        for axis in ("C", "S"):
            if axis not in axes:
                pixels, axes = pixels[..., None], axes + axis
        pixels = pixels.transpose([axes.index(axis) for axis in "YXCS"])
        return pixels.reshape(*pixels.shape[:2], -1), False

    def _by_others(self, page: _Page, problem: str) -> np.ndarray:
        """``(H, W, C)`` of a page that tifffile cannot decode alone, where others are right.

        Pillow reads 8 bits, as they are meant to be seen, and all numbers of one channel; OpenCV
        reads red, green and blue of 16 bits.
        """
        frame, number = page.series.keyframe, self._number_in_file(page)
        pixels = None
        self._stream.seek(0)
        if number is not None and (frame.dtype.itemsize == 1 or frame.samplesperpixel == 1):
            pixels = _by_pillow(self._stream, number)
        elif number is not None and frame.samplesperpixel in (3, 4):
            pixels = _by_opencv(self._stream, number)
        if pixels is None or pixels.dtype.itemsize != frame.dtype.itemsize:
            raise ImageError(
                f"{self._name}: {problem} ({frame.samplesperpixel} channels of "
                f"{frame.bitspersample} bits), which needs the package imagecodecs (pip install "
                "imagecodecs): or save it uncompressed, grey or in RGB"
            )
        return pixels

    def _number_in_file(self, page: _Page) -> int | None:
        """Among the file's own pages; None: it is not a whole one of these."""
        tiff_page, inner = _containing(page)
        if tiff_page is None or any(axis in inner for axis in page.index):
            return None
        offsets = [one.offset for one in self._tif.pages]
        return offsets.index(tiff_page.offset) if tiff_page.offset in offsets else None

    def _one_channel(self, pixels: np.ndarray, page: _Page, channel: int) -> np.ndarray:
        """``(H, W)`` or ``(H, W, 3)`` of ``(H, W, C)``."""
        count = pixels.shape[2]
        frame = page.series.keyframe
        is_colour = frame.photometric.name not in ("MINISBLACK", "MINISWHITE", "PALETTE")
        is_colour = is_colour and page.size("C") == 1 and count >= 3
        extra = [getattr(kind, "name", "") for kind in frame.extrasamples]
        has_alpha = bool(extra) and extra[-1] in ("ASSOCALPHA", "UNASSALPHA")
        if channel >= count:
            raise ImageError(
                f"{self._name}: has no channel {channel}: it has {count}{self._names(page)}, "
                "counted from 0"
            )
        if channel >= 0:
            return pixels[..., channel]
        if count == 1 or (count == 2 and has_alpha and page.size("C") == 1):
            return pixels[..., 0]
        if is_colour:
            if count > 3 + has_alpha:
                self._tell_of_more(count)
            return pixels[..., :3]
        raise ImageError(
            f"{self._name}: has {count} channels{self._names(page)}: say which one is meant, by "
            "--channel N or INPUT.CHANNEL N, counted from 0"
        )

    def _tell_of_more(self, count: int) -> None:
        if self._name not in _told:
            _told.add(self._name)
            logger.warning(
                f"{self._name}: has {count} channels, of which the first three are red, green and "
                "blue, as it says itself: these are used; --channel N or INPUT.CHANNEL N takes "
                "another one"
            )

    def _names(self, page: _Page) -> str:
        """The channels as OME-TIFF names them, in brackets; empty where they have no names."""
        if not self._tif.is_ome or not self._tif.ome_metadata:
            return ""
        from xml.etree import ElementTree

        root = ElementTree.fromstring(self._tif.ome_metadata)
        images = [element for element in root if element.tag.endswith("}Image")]
        number = self._tif.series.index(page.series)
        if number >= len(images):
            return ""
        channels = [e.get("Name") for e in images[number].iter() if e.tag.endswith("}Channel")]
        named = [f"{i}: {name}" for i, name in enumerate(channels) if name]
        return f" ({', '.join(named[:_LISTED])})" if named else ""


def _lacks_codec(error: Exception) -> bool:
    # An older tifffile names the compression alone.
    named = "imagecodecs" in str(error) or "not supported" in str(error)
    return named or isinstance(error, ImportError)


def _by_pillow(stream: BinaryIO, number: int) -> np.ndarray | None:
    """``(H, W, C)`` of a page by its number in the file; None where Pillow knows no such pixels."""
    try:
        with open_picture(stream) as image:
            image.seek(number)
            image.load()
            if image.mode not in ("1", "L", "LA") and not image.mode.startswith(("I", "F")):
                image = image.convert("RGB")
            pixels = np.asarray(image)
    except UnidentifiedImageError:
        return None
    return pixels.reshape(*pixels.shape[:2], -1)


def _by_opencv(stream: BinaryIO, number: int) -> np.ndarray | None:
    """The same by OpenCV."""
    import cv2

    encoded = np.frombuffer(stream.read(), np.uint8)
    done, found = cv2.imdecodemulti(encoded, cv2.IMREAD_UNCHANGED, range=(number, number + 1))
    return found[0][..., 2::-1] if done and found[0].ndim == 3 else None


def _pages_of(series: "TiffPageSeries") -> list[_Page]:
    axes = series.axes
    if (
        series.kind == "shaped"
        and axes[-2:] == "YX"
        and len(axes) >= 3
        and series.shape[-1] <= _MOST_CHANNELS < min(series.shape[-3:-1])
    ):  # tifffile, given an array (H, W, 5) without a word, writes H pages of W x 5
        axes = axes[:-3] + "YXC"
    axes = _distinct(axes)
    if "Y" not in axes or "X" not in axes:
        return []
    outer = [axis for axis in axes if axis not in "YXCS"]
    sizes = [series.shape[axes.index(axis)] for axis in outer]
    return [_Page(series, axes, dict(zip(outer, place))) for place in np.ndindex(*sizes)]


def _distinct(axes: str) -> str:
    """tifffile calls every axis of which it knows nothing Q."""
    spare = iter("abcdefghijklmnopqrstuvwxyz")
    return "".join(next(spare) if a in axes[:i] else a for i, a in enumerate(axes))


def _containing(page: _Page) -> tuple["TiffPage | None", str]:
    """The file's page that holds a plane, or its first channel, and the axes within it.

    None where the file's pages are not those of the series, as in a stack of which only the first
    page is described.
    """
    series, axes = page.series, page.axes
    count, leading = len(series.pages), 0
    while leading < len(axes) and math.prod(series.shape[:leading]) < count:
        leading += 1
    if math.prod(series.shape[:leading]) != count:
        return None, axes
    place = [page.index.get(axis, 0) for axis in axes[:leading]]
    sizes = series.shape[:leading]
    number = int(np.ravel_multi_index(place, sizes)) if leading else 0
    return series.pages[number], axes[leading:]


def _read_plane(page: _Page) -> tuple[np.ndarray, str]:
    """A page's pixels with all channels, and their axes."""
    series, axes = page.series, page.axes
    _, inner = _containing(page)
    leading = axes[: len(axes) - len(inner)]
    if not leading or set(leading) - {*page.index, "C"} or series.is_multifile:
        pixels = series.asarray().reshape(series.shape)
    elif "C" in leading:
        pixels = np.stack([_whole_page(page, leading, c) for c in range(page.size("C"))])
        axes = "C" + inner
    else:
        pixels, axes = _whole_page(page, leading), inner
    chosen = tuple(page.index.get(axis, slice(None)) for axis in axes)
    return pixels[chosen], "".join(axis for axis in axes if axis not in page.index)


def _whole_page(page: _Page, leading: str, channel: int = 0) -> np.ndarray:
    """One of the file's pages, in the shape of the axes that are not ``leading``."""
    series = page.series
    place, sizes = {**page.index, "C": channel}, series.shape[: len(leading)]
    number = int(np.ravel_multi_index([place[axis] for axis in leading], sizes))
    part, shape = series.pages[number], series.shape[len(leading) :]
    # OME-TIFF may leave pages out, which are then black.
    return np.zeros(shape, series.dtype) if part is None else part.asarray().reshape(shape)


def _shown(pixels: np.ndarray, page: _Page) -> np.ndarray:
    """``(H, W)`` or ``(H, W, 3)`` numbers of a page as its photometric interpretation says."""
    frame = page.series.keyframe
    kind = frame.photometric.name
    if kind == "PALETTE" and frame.colormap is not None and pixels.ndim == 2:
        return (frame.colormap[:, pixels] >> 8).astype(np.uint8).transpose(1, 2, 0)
    if kind != "MINISWHITE":
        return pixels
    if pixels.dtype == np.bool_:
        # tifffile, and so napari and scikit-image, calls 0 white but means black.
        return pixels if frame.software.startswith("tifffile") else ~pixels
    if pixels.dtype.kind == "u":
        return (2**frame.bitspersample - 1) - pixels
    return -pixels if pixels.dtype.kind == "f" else ~pixels


def _orientation(frame: "TiffPage") -> int:
    tag = frame.tags.get(_ORIENTATION)
    return int(tag.value) if tag is not None else 1
