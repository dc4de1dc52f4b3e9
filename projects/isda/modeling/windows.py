"""Windows: where on the map an instance's mask can be, found without computing the mask.

A mask's logit is kernel · features. The ellipse in it falls off with the square of the distance, so
that far from its centre no features can make up for it. How far depends on the features: here they
are bounded in blocks of cells, and blocks that cannot reach the threshold are left out.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from isda.modeling.ellipse import NUM_CHANNELS

__all__ = ["CellWindow", "first_and_end", "mask_logits", "possible_windows", "window_groups"]

_BLOCK = 8  # cells a side; 4: four times the time for the bound, 16: windows of twice the area
_ROWS = 4
_LARGE = 0.2  # of the map: larger windows are computed whole, by one product for all of them
_WHOLE_CELLS = 2**24  # 64 MB of float32 logits at a time, in whole maps
_GATHERED = 2**21  # 8 MB of float32 features at a time, in windows
_WASTE = 2  # times the sum of the windows: what windows may take when they are given one size


class CellWindow(NamedTuple):
    """A part of the map in cells, bottom and right excluded; no cell if a mask must be empty."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    @property
    def area(self) -> int:
        return math.prod(self.size)

    def of(self, maps: Tensor) -> Tensor:
        """That part of ``(..., h, w)``."""
        return maps[..., self.top : self.bottom, self.left : self.right]

    def grown(self, size: tuple[int, int], cells: tuple[int, int]) -> "CellWindow":
        """One of a size that is not smaller, on a map of ``cells``, around this one."""
        top, left = (
            min(start, end - side) for start, end, side in zip(self[:2], cells, size, strict=True)
        )
        return CellWindow(top, left, top + size[0], left + size[1])


def mask_logits(kernels: Tensor, features: Tensor, windows: Sequence[CellWindow]) -> Tensor:
    """Logits of n kernels in n windows of one size: ``(n, height, width)``.

    BLAS adds up most rows of a product in one order, and the last few, or all of a product of few
    rows, in another. Zeros up to a multiple of four rows keep all others in the first order. So a
    cell's logit is the same to the last bit in whatever window, and beside whichever instances, it
    is computed: measured with MKL, promised by nobody.

    Args:
        kernels: ``(n, C)``.
        features: ``(C, h, w)``.
    """
    size = windows[0].size
    if size == features.shape[1:]:
        rows = F.pad(kernels, (0, 0, 0, -len(kernels) % _ROWS))
        return (rows @ features.flatten(1))[: len(kernels)].unflatten(1, size)
    rows = F.pad(kernels[:, None], (0, 0, 0, _ROWS - 1))
    pieces = -(-kernels.numel() * math.prod(size) // _GATHERED)
    logits = []
    for parts in zip(*(window.of(features).chunk(pieces, dim=1) for window in windows)):
        product = torch.bmm(rows, torch.stack(parts).flatten(2))  # (n, _ROWS, cells)
        logits.append(product[:, 0].unflatten(1, (-1, size[1])))
    return torch.cat(logits, dim=1)


def window_groups(
    windows: Sequence[CellWindow], features: Tensor
) -> Iterator[tuple[list[int], list[CellWindow]]]:
    """Numbers of windows to compute together, and windows of one size around each of them.

    Large ones are replaced by the whole map, empty ones left out. The other groups have at most
    twice the cells of their windows. The logits of a group take 64 MB at most, or are one mask's.

    Args:
        features: ``(C, h, w)``.
    """
    channels, *cells = features.shape
    whole = CellWindow(0, 0, *cells)
    large = [row for row, window in enumerate(windows) if window.area > _LARGE * whole.area]
    count = max(_WHOLE_CELLS // whole.area, 1)
    for start in range(0, len(large), count):
        rows = large[start : start + count]
        yield rows, [whole] * len(rows)
    small = {row for row, window in enumerate(windows) if window.area}.difference(large)
    for rows in _alike(windows, small, max(_GATHERED // channels, 1)):
        size = tuple(max(windows[row].size[axis] for row in rows) for axis in (0, 1))
        yield rows, [windows[row].grown(size, cells) for row in rows]


def _alike(
    windows: Sequence[CellWindow], rows: Collection[int], max_cells: int
) -> Iterator[list[int]]:
    """The rows in groups of similar size, of few cells in all or of one row each."""
    group, size, used = [], (0, 0), 0
    for row in sorted(rows, key=lambda row: windows[row].size):
        height, width = (max(sides) for sides in zip(size, windows[row].size, strict=True))
        needed, used = (len(group) + 1) * height * width, used + windows[row].area
        if group and needed > min(max_cells, _WASTE * used):
            yield group
            group, (height, width), used = [], windows[row].size, windows[row].area
        group.append(row)
        size = height, width
    if group:
        yield group


def possible_windows(
    kernels: Tensor, features: Tensor, threshold: float, margin: int = 0
) -> list[CellWindow]:
    """Where masks can be: outside its window no cell of a mask is above the threshold.

    In a block of cells each channel lies between its least and its greatest value there. The
    greatest where a kernel is positive and the least where it is negative bound the product. The
    ellipse's maximum is exact: it is a sum of a function of x and a function of y. Blocks whose
    bound is below the threshold are left out; a window surrounds the others.

    This holds for logits as they are computed, with all rounding. A sum of C products in float32,
    in whatever order, is off by at most C · 2⁻²⁴ · (1 + 2⁻¹²) of the sum of their absolute values
    (N. J. Higham, Accuracy and Stability of Numerical Algorithms, section 3.1, for C < 4000). Twice
    that is added, once for the logits and once for the bound. What is not finite is not left out.

    Args:
        kernels: ``(n, C)`` float32; the last five numbers draw the ellipse.
        features: ``(C, h, w)`` float32; the last five channels are ``ellipse_channels``.
        threshold: a cell is in a mask when its probability is above.
        margin: cells around all that can be in the mask which belong to the window as well.
    """
    if len(kernels) == 0:
        return []
    highest, lowest = (_of_blocks(features, (1, 2), reduce) for reduce in (torch.amax, torch.amin))
    bounds = _bounds(kernels, features, highest, lowest)
    reach = torch.maximum(highest.abs(), lowest.abs()).amax(dim=(1, 2))  # (C,)
    slack = (len(reach) + 10) * torch.finfo(torch.float32).eps * (kernels.abs() @ reach)
    possible = ~(bounds + slack[:, None, None] < _limit(threshold))
    (top, bottom), (left, right) = (first_and_end(possible.any(dim=axis)) for axis in (2, 1))
    height, width = features.shape[1:]
    edges = torch.stack(
        [
            (top * _BLOCK - margin).clamp(min=0),
            (left * _BLOCK - margin).clamp(min=0),
            (bottom * _BLOCK + margin).clamp(max=height),
            (right * _BLOCK + margin).clamp(max=width),
        ],
        dim=1,
    )
    edges *= (bottom > 0)[:, None]
    return [CellWindow(*edge) for edge in edges.tolist()]


def _bounds(kernels: Tensor, features: Tensor, highest: Tensor, lowest: Tensor) -> Tensor:
    """No logit in a block is above, but for rounding: ``(n, blocks down, blocks across)``.

    Args:
        highest, lowest: ``(C, blocks down, blocks across)``, of each channel in each block.
    """
    learned = slice(None, -NUM_CHANNELS)
    bounds = kernels[:, learned].clamp(min=0) @ highest[learned].flatten(1)
    bounds.addmm_(kernels[:, learned].clamp(max=0), lowest[learned].flatten(1))
    x2, y2, x, y, constant = kernels[:, -NUM_CHANNELS:, None].unbind(dim=1)  # (n, 1)
    squared_columns, squared_rows, columns, rows, _ = features[-NUM_CHANNELS:]
    along_x = x2 * squared_columns[0] + x * columns[0]
    along_y = y2 * squared_rows[:, 0] + y * rows[:, 0]
    along_x, along_y = (_of_blocks(part, (1,), torch.amax) for part in (along_x, along_y))
    bounds = bounds.unflatten(1, highest.shape[1:])
    return bounds.add_((along_y + constant)[:, :, None]).add_(along_x[:, None])


def _of_blocks(maps: Tensor, axes: tuple[int, ...], reduce: Callable[..., Tensor]) -> Tensor:
    """``maps`` with every ``_BLOCK`` cells of the axes, and those left over, reduced to one."""
    for axis in axes:  # rows first: that runs through the memory in order
        cells = int(maps.shape[axis])  # under torch.jit.trace, which counts operations, a tensor
        blocks, rest = divmod(cells, _BLOCK)
        whole = maps.narrow(axis, 0, cells - rest).unflatten(axis, (blocks, _BLOCK))
        parts = [reduce(whole, dim=axis + 1)]
        if rest:
            parts.append(reduce(maps.narrow(axis, cells - rest, rest), dim=axis, keepdim=True))
        maps = torch.cat(parts, dim=axis)
    return maps


def _limit(threshold: float) -> float:
    """A logit whose probability is below the threshold, whatever float32 makes of it."""
    probability = min(threshold, 1.0) - 1e-6
    return math.log(probability / (1 - probability)) if probability > 0 else -math.inf


def first_and_end(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First True of each row of ``(n, length)`` and one past the last; 0 and 0 without any."""
    occupied = occupied.to(torch.uint8)
    end = occupied.shape[1] - occupied.flip(1).argmax(dim=1)
    return occupied.argmax(dim=1), end * occupied.amax(dim=1)
