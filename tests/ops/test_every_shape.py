"""All numbers of channels, levels and points, for every type and implementation."""

import itertools

import pytest
import torch
from problems import TOLERANCES, random_inputs, relative_error, starts_of
from torch import Tensor

from isda import ops
from isda.ops import ms_deform_attn, pytorch

LEVELS = [(4, 6), (3, 2), (1, 5), (2, 2), (1, 1)]
# Kernels work in other ways where there are many queries: on a CPU each head's tokens are copied
# together first, on a GPU a warp serves several queries. PyTorch's forms have one way.
QUERIES = {"torch": (2,), "cpu": (2, 150), "cuda": (2, 4200)}


def results(function, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    output = function(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream)]


def errors(sizes, device: str, **arguments) -> list[float]:
    """Of output and gradients, against grid_sample in float64."""
    inputs = random_inputs(sizes, batch=1, device=device, **arguments)
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    generator = torch.Generator().manual_seed(2)
    shape = (1, arguments["queries"], 2 * arguments["channels"])
    upstream = torch.randn(shape, generator=generator).to(inputs[0])
    expected = results(
        lambda v, *rest: pytorch.grid_sample_form(v, sizes, starts_of(sizes), *rest),
        doubles,
        upstream.double(),
    )
    found = results(lambda v, *rest: ms_deform_attn(v, sizes, None, *rest), inputs, upstream)
    return [relative_error(one, other) for one, other in zip(found, expected, strict=True)]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("channels", [1, 16, 20, 32, 64, 128, 71])
def test_output_and_gradients_are_those_of_grid_sample(device, channels, dtype):
    for queries in QUERIES[ops.backends().serving(device)]:
        for levels, points in itertools.product(range(1, 6), repeat=2):
            if queries == 150 and (levels + points) % 2 and channels != 32:
                continue  # half of them will do
            arguments = {"queries": queries, "channels": channels, "points": points}
            found = errors(LEVELS[:levels], device, dtype=dtype, **arguments)
            of_output, of_grads = TOLERANCES[dtype]
            case = (queries, levels, points, found)
            assert found[0] < of_output and max(found[1:]) < of_grads, case
