"""Loads a library that claims to have CUDA kernels, and compares its operators."""

import itertools
import sys

import pytest
import torch

from isda.ops import selection

# The compiled CPU kernels would be in the way.
selection._EXTENSIONS = {"cuda": "isda.nothing"}

from isda.ops import ms_deform_attn  # noqa: E402, F401

torch.ops.load_library(sys.argv[1])
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.bfloat16: 1.6e-2,
    torch.float16: 2e-3,
}


def error_of(found, expected):
    found, expected = found.double(), expected.double()
    if not expected.numel():
        return 0.0
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def compare(dtype, channels, levels, aligned):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    torch.manual_seed(0)
    sizes = [(3, 4), (2, 2)] * (levels // 2) + [(1, 3)] * (levels % 2)
    shapes = torch.tensor(sizes, dtype=torch.int64).view(-1, 2)
    starts = shapes.prod(1).cumsum(0) - shapes.prod(1)
    tokens = int(shapes.prod(1).sum())
    room = 0 if aligned else 1
    value = torch.randn(2 * tokens * 2 * channels + room).to(dtype)[room:]
    value = value.view(2, tokens, 2, channels)
    locations = (torch.rand(2, 5, 2, levels, 2, 2, dtype=torch.float64) * 1.4 - 0.2).to(wide)
    weights = torch.randn(2, 5, 2, levels, 2).to(wide)
    inputs = (value, shapes, starts, locations, weights)
    expected = torch.ops.isda.ms_deform_attn_pure(*inputs)
    found = torch.ops.isda.ms_deform_attn(*inputs)
    assert found.dtype == dtype and found.shape == expected.shape
    assert error_of(found, expected) <= TOLERANCES[dtype], (dtype, channels, levels, aligned)
    upstream = torch.randn_like(expected)
    wanted = torch.ops.isda.ms_deform_attn_pure_backward(upstream, *inputs, [True] * 3)
    for deterministic, mask in itertools.product([False, True], [[1, 1, 1], [1, 0, 0], [0, 0, 1]]):
        grads = torch.ops.isda.ms_deform_attn_backward_cuda(
            upstream, *inputs, list(map(bool, mask)), deterministic
        )
        for grad, other, asked in zip(grads, wanted, mask, strict=True):
            assert grad.dtype == other.dtype
            assert grad.shape == (other.shape if asked else (0,))
            assert not asked or error_of(grad, other) <= TOLERANCES[dtype]


def check_refusals():
    value, locations = torch.ones(1, 6, 1, 32), torch.ones(1, 2, 1, 1, 1, 2)
    shapes, starts, weights = torch.tensor([[2, 3]]), torch.tensor([0]), torch.ones(1, 2, 1, 1, 1)
    for position, change, message in [
        (2, starts + 1, "level 0 of 2x3 cells from token 1 does not fit"),
        (3, locations[:, :1], "sampling_locations does not have the shape"),
        (3, locations.double(), "must be float64 if value is, else float32"),
        (1, shapes.int(), "must be int64"),
        (0, value[0], "value must be"),
    ]:
        inputs = [value, shapes, starts, locations, weights]
        inputs[position] = change
        with pytest.raises(RuntimeError, match=message):
            torch.ops.isda.ms_deform_attn(*inputs)


cases = list(itertools.product(TOLERANCES, [32, 20, 0], [0, 2, 3, 8, 9], [True, False]))[::2]
for case in cases:
    compare(*case)
check_refusals()
sys.stdout.write(f"{len(cases)} cases\n")
