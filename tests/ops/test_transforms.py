"""The operator under torch.func and in forward mode, against differences and its own backward."""

import pytest
import torch
from problems import random_inputs
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from isda.ops import backend, ms_deform_attn

SIZES = [(3, 4), (2, 1)]
SHAPES, STARTS = torch.tensor(SIZES), torch.tensor([0, 12])
EPS = 1e-6


def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn(value, SIZES, None, locations, weights)


def energy(*inputs: Tensor) -> Tensor:
    return attend(*inputs).square().sum()


@pytest.fixture
def inputs(device):
    return tuple(tensor.detach() for tensor in random_inputs(SIZES, device=device))


@pytest.fixture
def tangents(inputs):
    torch.manual_seed(1)
    return tuple(torch.randn_like(tensor) for tensor in inputs)


@pytest.fixture
def slope(inputs, tangents):
    """The derivative along the tangents, by differences."""
    ahead, behind = (
        attend(*(x + sign * EPS * t for x, t in zip(inputs, tangents, strict=True)))
        for sign in (1, -1)
    )
    return (ahead - behind) / (2 * EPS)


@pytest.fixture
def gradients(inputs):
    """Of the energy, by backward."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    return torch.autograd.grad(energy(*leaves), leaves)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_forward_mode(inputs, tangents, slope, name):
    with backend(name):
        output, along = jvp(attend, inputs, tangents)
        close(output, attend(*inputs))
        close(along, slope)
        with forward_ad.dual_level():
            duals = map(forward_ad.make_dual, inputs, tangents)
            close(forward_ad.unpack_dual(attend(*duals)).tangent, slope)
            # without tangents the kernels serve, inside of a level too
            assert torch.equal(attend(*inputs), attend(*inputs))


OPERATORS = [torch.ops.isda.ms_deform_attn, torch.ops.isda.ms_deform_attn_pure]


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_the_operator_itself_in_forward_mode(inputs, tangents, slope, operator):
    """It is not meant to be called, and right all the same: its tangents are not dropped."""

    def direct(value: Tensor, *geometry: Tensor) -> Tensor:
        return operator(value, SHAPES, STARTS, *geometry)

    def twice(function):
        return jvp(lambda *x: jvp(function, x, tangents)[1], inputs, tangents)[1]

    output, along = jvp(direct, inputs, tangents)
    close(output, attend(*inputs))
    close(along, slope)
    close(twice(direct), twice(attend))
    with forward_ad.dual_level():
        duals = [*map(forward_ad.make_dual, inputs, tangents)]
        close(forward_ad.unpack_dual(direct(*duals)).tangent, slope)
        duals = [dual.requires_grad_() for dual in duals]
        assert direct(*duals).requires_grad
    with pytest.raises(ValueError, match="level 1 of 2x1 cells from token 13 does not fit"):
        jvp(lambda x: operator(x, SHAPES, STARTS + 1, *inputs[1:]), inputs[:1], tangents[:1])


@pytest.mark.parametrize("position", [0, 1, 2])
def test_one_tangent_alone(inputs, tangents, position):
    def of_one(tensor: Tensor) -> Tensor:
        return attend(*inputs[:position], tensor, *inputs[position + 1 :])

    x, tangent = inputs[position], tangents[position]
    expected = (of_one(x + EPS * tangent) - of_one(x - EPS * tangent)) / (2 * EPS)
    close(jvp(of_one, (x,), (tangent,))[1], expected)
    close(jacfwd(of_one)(x), jacrev(of_one)(x))


def test_tangents_of_gradients(inputs, tangents):
    """Backward is linear in the gradient that comes in, and is an operator as well."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    output = attend(*leaves)
    came, along = torch.randn_like(output), torch.randn_like(output)
    expected = torch.autograd.grad(output, leaves, along, retain_graph=True)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(came, along)
        found = torch.autograd.grad(output, leaves, dual)
        for one, other in zip(found, expected, strict=True):
            close(forward_ad.unpack_dual(one).tangent, other)

    def gradients_of(*moved: Tensor) -> tuple[Tensor, ...]:
        grad_output, value, *geometry = moved
        return torch.ops.isda.ms_deform_attn_backward(
            grad_output, value, SHAPES, STARTS, *geometry, [True, True, True]
        )

    start, direction = (came, *inputs), (along, *tangents)
    ahead, behind = (
        gradients_of(*(x + sign * EPS * t for x, t in zip(start, direction, strict=True)))
        for sign in (1, -1)
    )
    for index, found in enumerate(jvp(gradients_of, start, direction)[1]):
        slope = (ahead[index] - behind[index]) / (2 * EPS)
        torch.testing.assert_close(found, slope, atol=1e-6, rtol=1e-6)


def test_gradients(inputs, gradients):
    for found, expected in zip(grad(energy, argnums=(0, 1, 2))(*inputs), gradients, strict=True):
        close(found, expected)
    output, pull = vjp(attend, *inputs)
    for found, expected in zip(pull(2 * output), gradients, strict=True):
        close(found, expected)


def test_per_sample_gradients(inputs, gradients):
    def of_one(*tensors: Tensor) -> Tensor:
        return energy(*(tensor[None] for tensor in tensors))

    found = vmap(grad(of_one, argnums=(0, 1, 2)))(*inputs)
    for one, other in zip(found, gradients, strict=True):
        close(one, other)


def test_vmap_over_any_input(inputs):
    several = [torch.stack([tensor, 0.5 * tensor]) for tensor in inputs]
    expected = torch.stack([attend(*(tensor[i] for tensor in several)) for i in range(2)])
    close(vmap(attend)(*several), expected)
    value, locations, _ = inputs
    expected = torch.stack([attend(value, locations, weights) for weights in several[2]])
    close(vmap(attend, in_dims=(None, None, 0))(value, locations, several[2]), expected)


def test_second_derivatives(inputs):
    value, locations, weights = inputs

    def of_locations(tensor: Tensor) -> Tensor:
        return energy(value, tensor, weights)

    expected = torch.autograd.functional.hessian(of_locations, locations)
    close(hessian(of_locations)(locations), expected)


def test_vectorised_backward(inputs):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    output = attend(*leaves)
    several = torch.randn(3, *output.shape, dtype=output.dtype, device=output.device)
    found = torch.autograd.grad(output, leaves, several, is_grads_batched=True, retain_graph=True)
    for index, one in enumerate(several):
        expected = torch.autograd.grad(output, leaves, one, retain_graph=True)
        for stacked, single in zip(found, expected, strict=True):
            close(stacked[index], single)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled(inputs, tangents, slope, gradients):
    torch._dynamo.reset()
    along = torch.compile(lambda *t: jvp(attend, inputs, t)[1], backend="aot_eager")
    close(along(*tangents), slope)
    compiled = torch.compile(grad(energy, argnums=(0, 1, 2)), backend="aot_eager")
    for found, expected in zip(compiled(*inputs), gradients, strict=True):
        close(found, expected)


@pytest.mark.parametrize("place", [-1.0, -0.5, 0.0, 0.5, 1.0, 2.5])
def test_on_borders_as_backward(device, place):
    """Where the derivative jumps, it is that to the right and below in both modes."""
    value = torch.arange(1.0, 13, dtype=torch.float64, device=device).sqrt().view(1, 12, 1, 1)
    weights = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64, device=device)
    x, y = (place + 0.5) / 4, 0.4
    locations = torch.tensor([x, y], dtype=torch.float64, device=device).view(1, 1, 1, 1, 1, 2)

    def of_locations(tensor: Tensor) -> Tensor:
        return ms_deform_attn(value, [(3, 4)], None, tensor, weights).sum()

    leaf = locations.clone().requires_grad_()
    (expected,) = torch.autograd.grad(of_locations(leaf), leaf)
    close(grad(of_locations)(locations), expected)
    close(jacfwd(of_locations)(locations), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_values_and_autocast(inputs, tangents, slope, dtype):
    value, *geometry = (tensor.float() for tensor in inputs)
    tangent, *others = (tensor.float() for tensor in tangents)
    half = (value.to(dtype), *geometry), (tangent.to(dtype), *others)
    with torch.autocast(value.device.type, dtype):
        output, along = jvp(attend, *half)
        wide = jvp(attend, (value, *geometry), (tangent, *others))[1]
    assert output.dtype == along.dtype == dtype
    scale = slope.abs().max()
    assert (along - slope).abs().max() < 2e-2 * scale
    assert (wide - slope).abs().max() < 1e-5 * scale


@pytest.mark.parametrize("shape", [(0, 3, 2, 2, 2), (2, 0, 2, 2, 2), (2, 3, 2, 2, 0)])
def test_nothing_to_sum(device, shape):
    batch, _, heads, *_ = shape
    weights = torch.zeros(shape, device=device)
    locations = torch.zeros(*shape, 2, device=device)
    value = torch.ones(batch, 14, heads, 4, device=device)
    inputs = (value, locations, weights)
    output, along = jvp(attend, inputs, tuple(map(torch.ones_like, inputs)))
    assert not output.any() and not along.any() and along.shape == output.shape
    assert not any(g.any() for g in grad(energy, argnums=(0, 1, 2))(*inputs))
