"""The compiled CPU kernels over all shapes, and what only they promise."""

import os
import subprocess
import sys

import pytest
import torch
from problems import PROJECTS, TOLERANCES, needs_native
from torch import Tensor

from isda import ops
from isda.ops import ms_deform_attn, pytorch

pytestmark = needs_native
LEVELS = [(4, 6), (3, 2), (1, 5), (2, 2), (1, 1)]
MANY = 150  # queries: so many that each head's tokens are copied together first
FEW = 2


@pytest.fixture(autouse=True)
def _native():
    with ops.backend("cpu"):
        yield


def random_inputs(
    sizes=None, *, batch=1, queries=FEW, heads=2, channels=8, points=2, dtype=torch.float32
) -> list[Tensor]:
    """Value, locations (some outside, none near a cell's border) and weights."""
    sizes = sizes or LEVELS[:2]
    generator = torch.Generator().manual_seed(1)
    tokens = sum(height * width for height, width in sizes)
    value = torch.randn(batch, tokens, heads, channels, generator=generator)
    shape = (batch, queries, heads, len(sizes), points, 2)
    extents = torch.tensor([(w, h) for h, w in sizes]).view(-1, 1, 2)
    corner = (torch.rand(shape, generator=generator) * (extents + 3)).floor()
    inside = 0.05 + 0.9 * torch.rand(shape, generator=generator)
    weights = torch.randn(shape[:-1], generator=generator)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    locations = (corner - 1.5 + inside) / extents
    return [
        tensor.requires_grad_()
        for tensor in (value.to(dtype), locations.to(wide), weights.to(wide))
    ]


def results(function, inputs, upstream: Tensor) -> list[Tensor]:
    output = function(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream)]


def attend(sizes):
    return lambda value, *rest: ms_deform_attn(value, sizes, None, *rest)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("channels", [5, 32, 71])
def test_copying_a_head_together_changes_no_bit(channels, dtype):
    """Queries of which there are many, and each of them alone."""
    inputs = random_inputs(queries=MANY, channels=channels, points=4, dtype=dtype)
    upstream = torch.randn(1, MANY, 2 * channels).to(dtype)
    together = results(attend(LEVELS[:2]), inputs, upstream)
    grad_value = torch.zeros_like(inputs[0], dtype=inputs[1].dtype)
    for query in range(0, MANY, FEW):
        piece = slice(query, query + FEW)
        value, locations, weights = inputs
        leaves = [
            t.detach().clone().requires_grad_() for t in (locations[:, piece], weights[:, piece])
        ]
        alone = results(attend(LEVELS[:2]), [value, *leaves], upstream[:, piece])
        assert torch.equal(together[0][:, piece], alone[0])
        assert torch.equal(together[2][:, piece], alone[2])
        assert torch.equal(together[3][:, piece], alone[3])
        grad_value += alone[1]
    assert relative_error(together[1], grad_value.double()) < TOLERANCES[dtype][1]


@pytest.mark.parametrize("channels, queries", [(32, 1600), (32, 40), (20, 400)])
def test_any_number_of_threads_gives_the_same_bits(channels, queries):
    """More than heads, too: then their levels are parted."""
    sizes = [(12, 16), (20, 20), (9, 7)]
    inputs = random_inputs(sizes, queries=queries, channels=channels, points=4)
    upstream = torch.randn(1, queries, 2 * channels)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            found.append(results(attend(sizes), inputs, upstream))
    finally:
        torch.set_num_threads(threads)
    for run in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(run, found[0], strict=True))


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("starts, tokens", [([2, 30], 40), ([6, 0], 30), ([0, 20], 30)])
def test_levels_with_gaps_in_another_order_and_overlapping(starts, tokens, threads):
    sizes = LEVELS[:2]
    value, locations, weights = random_inputs(sizes, queries=2000, channels=32, points=4)
    value = torch.randn(1, tokens, 2, 32, requires_grad=True)
    upstream = torch.randn(1, 2000, 64)
    inputs = [value, locations, weights]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = results(lambda v, *r: ms_deform_attn(v, sizes, starts, *r), inputs, upstream)
    finally:
        torch.set_num_threads(before)
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    expected = results(
        lambda v, *r: pytorch.grid_sample_form(v, sizes, starts, *r), doubles, upstream.double()
    )
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < 2e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("queries", [FEW, MANY])
def test_what_is_not_finite_stays_where_it_is(queries, bad):
    """One location spoils its query and head; an infinite cell only who samples it."""
    sizes = LEVELS[:2]
    value, locations, weights = (t.detach() for t in random_inputs(sizes, queries=queries))
    clean = ms_deform_attn(value, sizes, None, locations, weights).unflatten(2, (2, 8))
    locations[0, 1, 1, 0, 1, 0] = bad
    spoilt = ms_deform_attn(value, sizes, None, locations, weights).unflatten(2, (2, 8))
    assert spoilt[0, 1, 1].isnan().all()
    clean[0, 1, 1] = spoilt[0, 1, 1] = 0
    assert torch.equal(spoilt, clean)
    value[:, 0] = bad  # the corner of the first level
    reads = torch.autograd.functional.jacobian(
        lambda v: ms_deform_attn(v, sizes, None, locations, weights).sum((0, 2)),
        torch.ones_like(value),
    )[:, 0, 0].abs().sum((-1, -2))  # fmt: skip
    output = ms_deform_attn(value, sizes, None, locations.nan_to_num(9, 9, 9), weights)
    unread = reads.nan_to_num() == 0
    assert unread.any()
    assert output[0, unread].isfinite().all()


def test_levels_without_cells_beside_others_for_many_queries():
    sizes = [(0, 4), (4, 6), (3, 0)]
    inputs = random_inputs([(4, 4), (4, 6), (3, 3)], queries=MANY)
    value = inputs[0].detach()[:, :24].clone().requires_grad_()
    found = results(attend(sizes), [value, *inputs[1:]], torch.ones(1, MANY, 16))
    middle = [value, inputs[1][:, :, :, 1:2], inputs[2][:, :, :, 1:2]]
    middle = [t.detach().requires_grad_() for t in middle]
    expected = results(attend(sizes[1:2]), middle, torch.ones(1, MANY, 16))
    assert relative_error(found[0], expected[0].double()) < 1e-6
    assert relative_error(found[1], expected[1].double()) < 1e-6
    assert not found[2][:, :, :, 0].any() and not found[3][:, :, :, 2].any()


def test_beside_torch_ms_deform_attn():
    """Imported after and before ours, both work and agree."""
    pytest.importorskip("torch_ms_deform_attn")
    program = """
import torch
{}
from isda.ops import ms_deform_attn as ours
from torch_ms_deform_attn import ms_deform_attn as theirs
shapes, starts = torch.tensor([[4, 6], [3, 2]]), torch.tensor([0, 24])
geometry = torch.rand(1, 9, 2, 2, 4, 2), torch.rand(1, 9, 2, 2, 4)
inputs = torch.randn(1, 30, 2, 8), shapes, starts, *geometry
torch.testing.assert_close(ours(*inputs), theirs(*inputs))
"""
    environment = {**os.environ, "PYTHONPATH": str(PROJECTS)}
    for first in ("import isda.ops", "import torch_ms_deform_attn"):
        command = [sys.executable, "-c", program.format(first)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
