"""Inputs of deformable attention, what it should make of them, and on what it can be tried."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from isda import ops

needs_native = pytest.mark.skipif(
    "cpu" not in ops.backends().built, reason="the CPU kernels are not built"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or "cuda" not in ops.backends().built,
    reason="there is no GPU, or the CUDA kernels are not built",
)
DEVICES = ["cpu", pytest.param("cuda", marks=[needs_cuda, pytest.mark.gpu])]
PROJECTS = Path(__file__).parents[2] / "projects"
# Of output and gradients, relative to the largest magnitude.
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 2e-5),
    torch.bfloat16: (8e-3, 8e-3),
    torch.float16: (1e-3, 1e-3),
}


def random_inputs(
    sizes, *, batch=2, queries=3, heads=2, channels=4, points=2, dtype=torch.float64, device="cpu"
):
    """Value, locations (some outside, none near a cell's border) and weights."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in sizes)
    value = torch.randn(
        batch, tokens, heads, channels, generator=generator, dtype=torch.float64
    ).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shape = (batch, queries, heads, len(sizes), points, 2)
    extents = torch.tensor([(w, h) for h, w in sizes], dtype=torch.float64).view(-1, 1, 2)
    corner = (torch.rand(shape, generator=generator, dtype=torch.float64) * (extents + 3)).floor()
    inside = 0.05 + 0.9 * torch.rand(shape, generator=generator, dtype=torch.float64)
    locations = ((corner - 1.5 + inside) / extents).to(wide)
    weights = torch.randn(shape[:-1], generator=generator, dtype=torch.float64).to(wide)
    return [tensor.to(device).requires_grad_() for tensor in (value, locations, weights)]


def as_tensors(sizes):
    shapes = torch.tensor(sizes).view(-1, 2)
    return shapes, shapes.prod(1).cumsum(0) - shapes.prod(1)


def starts_of(sizes: Sequence[tuple[int, int]]) -> list[int]:
    return list(itertools.accumulate((h * w for h, w in sizes), initial=0))[:-1]


def by_loops(value: Tensor, sizes, locations: Tensor, weights: Tensor) -> Tensor:
    """One sample and one cell after the other, in float64; a cell's part is 1 - its distance."""
    value, locations, weights = (t.double().cpu() for t in (value, locations, weights))
    batch, _, heads, channels = value.shape
    queries = weights.shape[1]
    starts = starts_of(sizes)
    output = []
    for b, q, m in itertools.product(range(batch), range(queries), range(heads)):
        total = value.new_zeros(channels)
        for (level, (height, width)), p in itertools.product(
            enumerate(sizes), range(weights.shape[-1])
        ):
            u, v = locations[b, q, m, level, p]
            column, row = u * width - 0.5, v * height - 0.5
            for r, c in itertools.product(range(height), range(width)):
                if abs(r - row.item()) < 1 and abs(c - column.item()) < 1:
                    part = (1 - (row - r).abs()) * (1 - (column - c).abs())
                    cell = value[b, starts[level] + r * width + c, m]
                    total = total + weights[b, q, m, level, p] * part * cell
        output.append(total)
    return torch.stack(output).view(batch, queries, heads * channels)


def relative_error(found: Tensor, expected: Tensor) -> float:
    difference = (found.double().cpu() - expected.double().cpu()).abs().max()
    return (difference / expected.abs().max().clamp(min=1e-300)).item()
