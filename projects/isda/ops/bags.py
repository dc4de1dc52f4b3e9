"""Multi-scale deformable attention as weighted sums of table rows: PyTorch's fastest on a CPU.

A sample is a weighted sum of four cells, so what a head puts out is one of 4·L·P rows, which
``embedding_bag`` sums with vector instructions; the gradient of a cell is a weighted sum over the
samples that touch it, once they are sorted by cell. All of it happens piece by piece in the cache:
touching a large fresh tensor costs more than the arithmetic on it.

Symbols as in ``isda.ops.ms_deform_attn``: B images, S tokens, M heads, D channels, Q queries,
L levels, P points. All tensors are float32 or float64, on the CPU, and none is empty.
"""

import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["backward", "fits", "forward"]

_SAMPLES_PER_PIECE = 1 << 17
_CANVAS_CELLS_PER_TOKEN = 4


def fits(sizes: list[tuple[int, int]], tokens: int) -> bool:
    """Whether levels of these sizes, stacked, take not much more room than their tokens."""
    cells = _Canvas.of(sizes, [0] * len(sizes)).cells
    return cells < 2**31 and cells <= _CANVAS_CELLS_PER_TOKEN * tokens + 4096


def forward(
    value: Tensor,
    sizes: list[tuple[int, int]],
    starts: list[int],
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """The output as (B, Q, M, D); ``sizes`` are (height, width), ``starts`` the first tokens."""
    locations, weights = locations.contiguous(), weights.contiguous()
    canvas = _Canvas.of(sizes, starts)
    painted = canvas.paint(value)
    output = value.new_empty(*weights.shape[:3], value.shape[-1])
    for group in _groups(weights):
        table = painted[group.images, group.heads].flatten(0, 2)
        sampler = _Sampler.of(canvas, weights[group.images, group.pieces[0], group.heads])
        for queries in group.pieces:
            piece = (group.images, queries, group.heads)
            samples = sampler(locations[piece], weights[piece], right_derivative=False)
            index, bags = samples.index.view(-1), _bag_starts(samples.index)[:-1]
            target = output[piece]
            for distance, corner in zip(canvas.corners, samples.corner_weights(), strict=True):
                rows = _weighted_sums(table[distance:], index, bags, corner).view(target.shape)
                target.copy_(rows) if distance == 0 else target.add_(rows)
    return output


def backward(
    grad_output: Tensor,
    value: Tensor,
    sizes: list[tuple[int, int]],
    starts: list[int],
    locations: Tensor,
    weights: Tensor,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of value, locations and weights, given that of the output as (B, Q, M, D).

    ``output_mask`` tells whether value's is wanted, and which of the other two; one costs as
    much as both.
    """
    locations, weights = locations.contiguous(), weights.contiguous()
    canvas = _Canvas.of(sizes, starts)
    painted = canvas.paint(value)
    grad_painted = torch.zeros_like(painted) if output_mask[0] else None
    geometric = output_mask[1] or output_mask[2]
    grad_locations = locations.new_empty(locations.shape)
    grad_weights = weights.new_empty(weights.shape)
    for group in _groups(weights):
        table = painted[group.images, group.heads].flatten(0, 2)
        sampler = _Sampler.of(canvas, weights[group.images, group.pieces[0], group.heads])
        grads = grad_output[group.images, :, group.heads].contiguous()
        shape = weights[group.images, :, group.heads].shape
        index = torch.empty(shape, dtype=torch.int32)
        corners = weights.new_empty(4, *shape)
        for queries in group.pieces:
            piece = (group.images, queries, group.heads)
            samples = sampler(locations[piece], weights[piece], right_derivative=True)
            index[:, queries] = samples.index
            samples.corner_weights(out=corners[:, :, queries])
            if geometric:
                dots = _dot_products(table, canvas, samples.index, grads[:, queries])
                samples.differentiate(dots, grad_locations[piece], grad_weights[piece])
        if grad_painted is not None:
            grad_table = grad_painted[group.images, group.heads].flatten(0, 2)
            _scatter(grad_table, canvas, index, corners, grads)
    grad_value = None
    if grad_painted is not None:
        grad_value = canvas.collect(grad_painted, value.new_zeros(value.shape))
    return (
        grad_value,
        grad_locations if output_mask[1] else None,
        grad_weights if output_mask[2] else None,
    )


@dataclass
class _Canvas:
    """All levels of an image below each other, with zeros around each.

    Two empty rows and columns surround every level, so that a sample anywhere reads four cells
    without a test, and the four are equally far from each other on every level.
    """

    sizes: list[tuple[int, int]]  # (height, width) per level
    starts: list[int]  # first token per level
    tops: list[int]  # first row per level
    pitch: int  # cells per row
    cells: int

    @classmethod
    def of(cls, sizes: list[tuple[int, int]], starts: list[int]) -> "_Canvas":
        tops, row = [], 2
        for height, _ in sizes:
            tops.append(row)
            row += height + 2
        pitch = max(width for _, width in sizes) + 4
        return cls(sizes, starts, tops, pitch, pitch * row)

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """Distances of a sample's four cells from the first: it, right, below, below right."""
        return 0, 1, self.pitch, self.pitch + 1

    def paint(self, value: Tensor) -> Tensor:
        """(B, S, M, D) to (B, M, cells, D)."""
        batch, _, heads, channels = value.shape
        canvas = value.new_zeros(batch, heads, self.cells, channels)
        for level, tokens in self._levels(canvas, value):
            level.copy_(tokens)
        return canvas

    def collect(self, canvas: Tensor, value: Tensor) -> Tensor:
        """Add (B, M, cells, D) to (B, S, M, D); a token that two levels share gets both."""
        for level, tokens in self._levels(canvas, value):
            tokens += level
        return value

    def _levels(self, canvas: Tensor, value: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        rows = canvas.unflatten(2, (-1, self.pitch))
        for (height, width), start, top in zip(self.sizes, self.starts, self.tops, strict=True):
            tokens = value[:, start : start + height * width].unflatten(1, (height, width))
            yield rows[:, :, top : top + height, 2 : 2 + width], tokens.permute(0, 3, 1, 2, 4)


@dataclass
class _Group:
    """Samples that read one table: all heads of some images, or some heads of one image."""

    images: slice
    heads: slice
    pieces: list[slice]  # of the queries


def _groups(weights: Tensor) -> Iterator[_Group]:
    batch, queries, heads, levels, points = weights.shape
    per_head = queries * levels * points
    images_at_once = max(1, _SAMPLES_PER_PIECE // (heads * per_head))
    heads_at_once = min(heads, max(1, _SAMPLES_PER_PIECE // per_head))
    queries_at_once = max(1, _SAMPLES_PER_PIECE // (heads_at_once * levels * points))
    pieces = _slices(queries, queries_at_once if images_at_once == 1 else queries)
    for images in _slices(batch, images_at_once):
        for some_heads in _slices(heads, heads_at_once):
            yield _Group(images, some_heads, pieces)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


@dataclass
class _Samples:
    """One piece: every tensor is (images, queries, heads, L, P)."""

    index: Tensor  # the table's row of the first of the four cells, int32
    right: Tensor  # of that cell's centre, in cells; α
    below: Tensor  # β
    weights: Tensor
    extents: tuple[Tensor, Tensor]  # width and height of the level

    def corner_weights(self, out: Tensor | None = None) -> Tensor:
        """The four cells' coefficients times the attention weights, (4, ...)."""
        if out is None:
            out = self.weights.new_empty(4, *self.weights.shape)
        w00, w01, w10, w11 = out
        rights = self.weights * self.right
        lefts = self.weights - rights
        torch.mul(rights, self.below, out=w11)
        torch.sub(rights, w11, out=w01)
        torch.mul(lefts, self.below, out=w10)
        torch.sub(lefts, w10, out=w00)
        return out

    def differentiate(self, dots: Tensor, grad_locations: Tensor, grad_weights: Tensor) -> None:
        """Turn the dot products of gradient and cells, (4, ...), into gradients, written there."""
        d00, d01, d10, d11 = dots
        width, height = self.extents
        upper = torch.lerp(d00, d01, self.right)
        lower = torch.lerp(d10, d11, self.right)
        torch.lerp(upper, lower, self.below, out=grad_weights)
        torch.mul(lower.sub_(upper).mul_(self.weights), height, out=grad_locations[..., 1])
        slope = torch.lerp(d01.sub_(d00), d11.sub_(d10), self.below)
        torch.mul(slope.mul_(self.weights), width, out=grad_locations[..., 0])


@dataclass
class _Sampler:
    """What every piece of a group has in common, spelled out: broadcasting rows of L·P is slow."""

    pitch: int
    widths: Tensor  # (images, queries, heads, L, P), like the others
    heights: Tensor
    origins: Tensor  # the table's row of the level's cell (0, 0), int32

    @classmethod
    def of(cls, canvas: _Canvas, like: Tensor) -> "_Sampler":
        """For pieces no longer than ``like`` (images, queries, heads, L, P)."""
        images, _, heads, levels, points = like.shape

        def spell_out(per_level: Tensor) -> Tensor:
            per_sample = per_level.expand(-1, -1, heads, levels, points).contiguous()
            return per_sample.expand(like.shape).contiguous()

        table = torch.arange(images * heads, dtype=torch.int32).view(images, 1, heads, 1, 1)
        corner = torch.tensor([top * canvas.pitch + 2 for top in canvas.tops], dtype=torch.int32)
        heights, widths = like.new_tensor(canvas.sizes).view(levels, 2, 1).unbind(1)
        return cls(
            canvas.pitch,
            spell_out(widths[None, None, None]),
            spell_out(heights[None, None, None]),
            spell_out(table * canvas.cells + corner[:, None]),
        )

    def __call__(self, locations: Tensor, weights: Tensor, *, right_derivative: bool) -> _Samples:
        """
        Args:
            right_derivative: keep samples that lie exactly one cell left of or above the level.
                Their output is zero, but their derivative on the right is not.
        """
        queries = weights.shape[1]
        widths, heights = self.widths[:, :queries], self.heights[:, :queries]
        half = weights.new_tensor(-0.5)
        x = torch.addcmul(half, locations[..., 0], widths)
        y = torch.addcmul(half, locations[..., 1], heights)
        # NaN where x or y is not finite, and nothing elsewhere: it must reach the output.
        weights = weights + (x + y).mul_(0)
        x = _to_canvas(x, widths, right_derivative)
        y = _to_canvas(y, heights, right_derivative)
        column, row = x.floor(), y.floor()
        index = torch.add(column.int(), row.int(), alpha=self.pitch)
        index += self.origins[:, :queries]
        return _Samples(index, x.sub_(column), y.sub_(row), weights, (widths, heights))


def _to_canvas(coordinate: Tensor, extent: Tensor, right_derivative: bool) -> Tensor:
    """Send samples that see nothing of a level, NaN included, to the empty cells around it."""
    seen = coordinate >= -1 if right_derivative else coordinate > -1
    return torch.minimum(torch.where(seen, coordinate, -2), extent)


def _weighted_sums(table: Tensor, index: Tensor, bags: Tensor, weights: Tensor) -> Tensor:
    return torch.embedding_bag(table, index, bags, mode=0, per_sample_weights=weights.reshape(-1))[
        0
    ]


def _bag_starts(index: Tensor) -> Tensor:
    per_bag = index.shape[-2] * index.shape[-1]
    return torch.arange(0, index.numel() + 1, per_bag, dtype=torch.int32)


def _dot_products(table: Tensor, canvas: _Canvas, index: Tensor, grads: Tensor) -> Tensor:
    """Of every sample's four cells with its bag's gradient: (4, *index.shape)."""
    _announce_sparse_tensors()
    grads = grads.reshape(-1, table.shape[-1])
    dots = table.new_zeros(4, *index.shape)
    starts = _bag_starts(index)
    for distance, products in zip(canvas.corners, dots, strict=True):
        cells = table[distance:]
        pattern = torch.sparse_csr_tensor(
            starts,
            index.view(-1),
            products.view(-1),
            size=(len(grads), len(cells)),
            check_invariants=False,
        )
        torch.sparse.sampled_addmm(pattern, grads, cells.t(), beta=0, out=pattern)
    return dots


@functools.cache
def _announce_sparse_tensors() -> None:
    """Have PyTorch say that sparse tensors are in beta where nobody needs to read it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.eye(1).to_sparse_csr()


def _scatter(
    table: Tensor, canvas: _Canvas, index: Tensor, corner_weights: Tensor, grads: Tensor
) -> None:
    """Add every bag's gradient to the cells of its samples."""
    grads = grads.view(-1, table.shape[-1])
    by_cell, order = index.view(-1).sort(stable=True)
    cells = torch.arange(len(table), dtype=torch.int32)
    starts = torch.searchsorted(by_cell, cells, out_int32=True)
    bags = order.div(index.numel() // len(grads), rounding_mode="floor").int()
    for distance, weights in zip(canvas.corners, corner_weights, strict=True):
        sums = _weighted_sums(grads, bags, starts, weights.view(-1).index_select(0, order))
        table[distance:] += sums[: len(sums) - distance]
