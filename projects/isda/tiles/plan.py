"""Plan of tiling: which images are cut into windows, their size, and the scale they are seen at."""

import math
import numbers
from dataclasses import dataclass, replace

from detectron2.config import CfgNode

from isda.tiles.errors import TilesError
from isda.tiles.grid import Grid, window_grid

__all__ = ["MODES", "MOST_OVERLAP", "SHRUNK", "TilePlan"]

MODES = ("off", "auto", "on")
SHRUNK = 2.0  # images that a model would see smaller by more than this are large ones
MOST_OVERLAP = 0.25  # of the largest window: then it is a third of the smallest
_STRIDE = 32  # models pad images to multiples of it
_CELL = 4  # pixels as the model sees them: a cell of its masks, which cannot end nearer to a border


@dataclass(frozen=True)
class TilePlan:
    """``TEST.TILES`` beside the sizes of ``INPUT``.

    A model has learnt how large things are in pixels. Its training images, of ``image_size`` pixels
    along the shorter side, reach it with ``min_size``, and so windows are scaled by the same
    factor. They are squares of ``min_size`` pixels then, or a little smaller where that saves time,
    of multiples of 32, so that nothing is padded.

    Attributes:
        mode: ``"off"``; ``"auto"`` cuts images that would be shrunk more than twice otherwise;
            ``"on"`` cuts all that are larger than a window.
        image_size: shorter side of the images of the training, pixels; 0: not known, so that the
            model sees the pixels of a window as they are.
        overlap: least share of a window that it has in common with a neighbour.
        min_size, max_size: as ``INPUT.MIN_SIZE_TEST`` and ``INPUT.MAX_SIZE_TEST``.
    """

    mode: str
    image_size: int
    overlap: float
    min_size: int
    max_size: int

    @classmethod
    def from_config(cls, cfg: CfgNode, tiles: str | bool | int | None = None) -> "TilePlan":
        """
        Args:
            tiles: instead of the config's mode: one of :data:`MODES`, True or False for "on" and
                "off"; or ``image_size``, which is "on".

        Raises:
            TilesError: there is no such mode, or the image size is below 1.
        """
        node = cfg.TEST.TILES
        sizes = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        plan = cls(node.MODE, node.IMAGE_SIZE, node.OVERLAP, *sizes)
        if tiles is None:
            return plan
        if isinstance(tiles, bool):
            return replace(plan, mode="on" if tiles else "off")
        if tiles in MODES:
            return replace(plan, mode=tiles)
        if isinstance(tiles, numbers.Integral) and tiles > 0:
            return replace(plan, mode="on", image_size=int(tiles))
        raise TilesError(
            f"tiles must be one of {', '.join(MODES)}, or the shorter side in pixels of the images "
            f"that the model was trained on, got {tiles!r}"
        )

    @property
    def scale(self) -> float:
        """Pixels that the model sees of each pixel of a window, along a side."""
        return self.min_size / self.image_size if self.image_size and self.min_size else 1.0

    @property
    def sides(self) -> list[int]:
        """Sides that windows may have, in pixels of the image, the largest last."""
        largest = self.min_size or self.max_size
        seen = range(_STRIDE * -(-3 * largest // (4 * _STRIDE)), largest + 1, _STRIDE)
        return sorted({max(round(side / self.scale), 1) for side in seen or [largest]})

    def seen_size(self, window: tuple[int, int]) -> tuple[int, int]:
        """``(height, width)`` to which a window of so many pixels is scaled for the model."""
        return tuple(self._seen(side) for side in window)

    def _seen(self, side: int) -> int:
        scaled = max(round(side * self.scale), 1)
        whole = _STRIDE * round(scaled / _STRIDE)
        return whole if abs(whole - scaled) <= max(self.scale, 1) else scaled

    @property
    def margin(self) -> int:
        """Pixels to a border from which on an instance counts as cut by it, touching it or not."""
        return math.ceil(_CELL / self.scale)

    def shrinkage(self, image_size: tuple[int, int]) -> float:
        """How many times smaller the model would see an image than it should.

        It should see it as it is or, if it saw the images of its training shrunk, as shrunk.

        Args:
            image_size: ``(height, width)``.
        """
        if not self.min_size:
            return 1.0
        seen = min(self.min_size / min(image_size), self.max_size / max(image_size))
        return min(1.0, self.scale) / seen

    def grid(self, image_size: tuple[int, int]) -> Grid | None:
        """The windows of an image ``(height, width)``; None where it is taken as a whole."""
        if self.mode == "off" or max(image_size) <= self.sides[-1]:
            return None
        if self.mode == "auto" and self.shrinkage(image_size) <= SHRUNK:
            return None
        sides = self.sides
        return window_grid(image_size, sides, int(self.overlap * sides[-1]))
