"""The operator against its definition, written out as loops over single samples."""

import itertools
import logging
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from problems import (
    DEVICES,
    PROJECTS,
    TOLERANCES,
    as_tensors,
    by_loops,
    needs_native,
    random_inputs,
    relative_error,
)

from isda import ops
from isda.ops import bags, ms_deform_attn, pytorch, selection

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "sizes, channels, points",
    [
        ([(4, 3)], 8, 4),
        ([(4, 3), (5, 5)], 64, 2),
        ([(3, 5), (2, 1)], 4, 2),
        ([(1, 1)], 1, 1),
        ([(1, 7), (4, 2), (2, 2)], 20, 3),
        ([(2, 3), (1, 2), (1, 1), (3, 1), (2, 2)], 16, 5),
        ([(5, 4), (3, 2), (2, 1), (1, 1)], 32, 4),
        ([(2, 2)], 71, 1),
        ([(3, 3), (2, 2)], 128, 2),
    ],
)
def test_output_and_gradients_are_those_of_the_loops(device, dtype, sizes, channels, points):
    value, locations, weights = inputs = random_inputs(
        sizes, channels=channels, points=points, dtype=dtype, device=device
    )
    output = ms_deform_attn(value, sizes, None, locations, weights)
    expected = by_loops(value, sizes, locations, weights)
    upstream = torch.randn(expected.shape, dtype=torch.float64).to(dtype)
    grads = torch.autograd.grad(output, inputs, upstream.to(device))
    expected_grads = torch.autograd.grad(expected, inputs, upstream.double())
    assert output.dtype == dtype and output.is_contiguous()
    assert relative_error(output, expected) < TOLERANCES[dtype][0]
    for tensor, found, wanted in zip(inputs, grads, expected_grads, strict=True):
        assert found.dtype == tensor.dtype and found.shape == tensor.shape
        assert relative_error(found, wanted) < TOLERANCES[dtype][1]


@pytest.mark.parametrize("batch, queries, heads", [(5, 61, 2), (1, 500, 3), (65, 3, 1)])
def test_pieces_fit_together(device, monkeypatch, batch, queries, heads):
    """Many pieces of queries, heads and images give what grid_sample gives in one."""
    monkeypatch.setattr(bags, "_SAMPLES_PER_PIECE", 1000)
    monkeypatch.setattr(pytorch, "_GATHERED_BYTES", 1 << 17)
    sizes = [(9, 14), (5, 7)]
    inputs = random_inputs(sizes, batch=batch, queries=queries, heads=heads, device=device)
    value, locations, weights = inputs
    output = ms_deform_attn(value, sizes, None, locations, weights)
    expected = pytorch.grid_sample_form(value, sizes, [0, 126], locations, weights)
    upstream = torch.randn_like(expected)
    grads = torch.autograd.grad(output, inputs, upstream)
    expected_grads = torch.autograd.grad(expected, inputs, upstream)
    assert relative_error(output, expected) < 1e-12
    for found, wanted in zip(grads, expected_grads, strict=True):
        assert relative_error(found, wanted) < 1e-12


def cells(*positions):
    """Locations (1, Q, 1, 1, 1, 2) in a level of 3x4 cells, given as (x, y) in cells."""
    extents = torch.tensor([4, 3], dtype=torch.float64)
    located = (torch.tensor(positions, dtype=torch.float64) + 0.5) / extents
    return located.view(1, -1, 1, 1, 1, 2)


BESIDE = (-1e-3, 1e-3)  # both sides of a border
PLACES = {
    "inside": cells((1.3, 0.6), (2.25, 1.5), (0.75, 1.01)),
    "beside borders": cells(
        *((x + d, 0.4) for x, d in itertools.product((-1, 0, 1, 3, 4), BESIDE)),
        *((1.6, y + d) for y, d in itertools.product((-1, 0, 2, 3), BESIDE)),
        *((x + d, y - d) for (x, y), d in itertools.product([(-1, -1), (4, 3)], BESIDE)),
    ),
    "far outside": cells((-1.5, 0.3), (1.2, 3.5), (-70, 2), (1e6, -1e6)),
}


def numeric_inputs(place, device):
    locations = PLACES[place].to(device)
    generator = torch.Generator().manual_seed(1)
    value, weights = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(device)
        for shape in [(1, 12, 1, 2), locations.shape[:-1]]
    )
    return [t.requires_grad_() for t in (value, locations, weights)]


@pytest.mark.parametrize("place", PLACES)
def test_gradcheck(device, place):
    # Sums on a GPU are not always in the same order.
    assert torch.autograd.gradcheck(
        lambda v, *rest: ms_deform_attn(v, [(3, 4)], None, *rest),
        numeric_inputs(place, device),
        nondet_tol=1e-12,
    )


@pytest.mark.parametrize("place", PLACES)
def test_gradgradcheck(device, place):
    assert torch.autograd.gradgradcheck(
        lambda v, *rest: ms_deform_attn(v, [(3, 4)], None, *rest),
        numeric_inputs(place, device),
        nondet_tol=1e-12,
    )


def test_gradgradcheck_of_several_levels_heads_and_images(device):
    sizes = [(2, 3), (1, 1)]
    inputs = random_inputs(sizes, queries=1, channels=2, points=2, device=device)
    assert torch.autograd.gradgradcheck(
        lambda v, *rest: ms_deform_attn(v, sizes, None, *rest), inputs, nondet_tol=1e-12
    )


def test_third_derivative():
    sizes = [(3, 4)]
    value, locations, weights = random_inputs(sizes, batch=1, queries=1, points=1)

    def first(locations):
        output = ms_deform_attn(value, sizes, None, locations, weights)
        return torch.autograd.grad(output.square().sum(), locations, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(first, (locations,))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "strided", "empty", "shapes on the device"])
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(layout, device):
    if layout == "shapes on the device" and device == "cpu":
        pytest.skip("that is what the others have on a CPU")
    sizes = [(3, 4), (2, 1)]
    channels = 0 if layout == "empty" else 2
    value, locations, weights = random_inputs(sizes, channels=channels, device=device)
    if layout == "strided":
        value = value.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    shapes, starts = as_tensors(sizes)
    if layout == "shapes on the device":
        shapes, starts = shapes.to(device), starts.to(device)
    inputs = (value, shapes, starts, locations, weights)
    upstream = torch.randn(2, 3, 2 * channels, dtype=torch.float64, device=device)
    upstream.requires_grad_()
    mask = [True, layout != "strided", True]
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if layout != "strided":
        checks.append("test_aot_dispatch_dynamic")
    for name in ("ms_deform_attn", "ms_deform_attn_pure"):
        forward = getattr(torch.ops.isda, name).default
        backward = getattr(torch.ops.isda, f"{name}_backward").default
        torch.library.opcheck(forward, inputs, test_utils=checks)
        torch.library.opcheck(backward, (upstream, *inputs, mask), test_utils=checks)


def test_unwanted_gradients_are_empty(device):
    sizes = [(3, 4)]
    value, locations, weights = random_inputs(sizes, device=device)
    shapes, starts = as_tensors(sizes)
    inputs = (value, shapes, starts, locations, weights)
    upstream = torch.randn(2, 3, 8, dtype=torch.float64, device=device)
    whole = torch.ops.isda.ms_deform_attn_backward(upstream, *inputs, [True] * 3)
    for mask in itertools.product([True, False], repeat=3):
        grads = torch.ops.isda.ms_deform_attn_backward(upstream, *inputs, mask)
        for wanted, found, expected in zip(mask, grads, whole, strict=True):
            assert found.numel() == (expected.numel() if wanted else 0)
            if wanted:
                assert relative_error(found, expected) <= (1e-12 if device == "cuda" else 0)


def one_sample(x, y, *, cell=1.0, channels=1, device="cpu"):
    """A sample at (x, y), in cells, of a level of 2x4 cells: output and the location's gradient.

    All cells are the same. The numbers are those of a channel.
    """
    value = torch.full((1, 8, 1, channels), cell, device=device, requires_grad=True)
    location = torch.tensor([(x + 0.5) / 4, (y + 0.5) / 2], device=device)
    locations = location.view(1, 1, 1, 1, 1, 2).requires_grad_()
    weights = torch.ones(1, 1, 1, 1, 1, device=device)
    output = ms_deform_attn(value, [(2, 4)], None, locations, weights)
    output.sum().backward()
    (number,) = set(output.flatten().tolist())
    return number, *(locations.grad.flatten() / channels).tolist()


# Kernels have one way for rows of any length, and another for some.
any_row = pytest.mark.parametrize("channels", [1, 16])


@any_row
@pytest.mark.parametrize("far", [-1e30, 1e30, -7.0, 9.0])
def test_far_outside_is_zero(device, channels, far):
    assert one_sample(far, 0.5, channels=channels, device=device) == (0, 0, 0)
    assert one_sample(0.5, far, channels=channels, device=device) == (0, 0, 0)


@any_row
def test_borders(device, channels):
    # Integer coordinates take the derivative to the right of them and below.
    for (x, y), expected in {
        (-1, 0): (0, 4, 0),
        (3, 0): (1, -4, 0),
        (4, 0): (0, 0, 0),
        (1, -1): (0, 0, 2),
        (1, 1): (1, 0, -2),
        (1, 2): (0, 0, 0),
        (-0.5, 0): (0.5, 4, 0),
    }.items():
        assert one_sample(x, y, channels=channels, device=device) == expected, (x, y)


@any_row
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_location_that_is_not_finite_spoils_its_query_and_head_only(device, channels, bad, axis):
    sizes = [(3, 4), (2, 2)]
    value, locations, weights = (
        t.detach()
        for t in random_inputs(sizes, channels=channels, dtype=torch.float32, device=device)
    )
    clean = ms_deform_attn(value, sizes, None, locations, weights).view(2, 3, 2, channels)
    locations[1, 2, 0, 1, 1, axis] = bad
    output = ms_deform_attn(value, sizes, None, locations, weights).view(2, 3, 2, channels)
    assert output[1, 2, 0].isnan().all()
    clean[1, 2, 0] = output[1, 2, 0] = 0
    assert torch.equal(output, clean)


@any_row
def test_infinite_cells_reach_only_samples_inside(device, channels):
    arguments = {"cell": INF, "channels": channels, "device": device}
    for x, y in [(-1, 0), (4, 0), (1, -1), (1, 2), (-1.5, 0.3), (7, 7)]:
        assert one_sample(x, y, **arguments)[0] == 0
    # Half inside: the half outside is nothing, not nothing times infinity.
    for x, y in [(0.5, 0.5), (-0.5, 0.5), (3.5, 0.5), (1.5, -0.5), (1.5, 1.5), (-0.5, -0.5)]:
        assert one_sample(x, y, **arguments)[0] == INF


EMPTY = {
    "batch": ({"batch": 0}, (0, 3, 8)),
    "queries": ({"queries": 0}, (2, 0, 8)),
    "heads": ({"heads": 0}, (2, 3, 0)),
    "channels": ({"channels": 0}, (2, 3, 0)),
    "points": ({"points": 0}, (2, 3, 8)),
    "tokens": ({"sizes": [(0, 4)]}, (2, 3, 8)),
    "levels": ({"sizes": []}, (2, 3, 8)),
    "one level of two": ({"sizes": [(0, 4), (0, 0)]}, (2, 3, 8)),
}


@pytest.mark.parametrize("case", EMPTY)
def test_any_extent_may_be_zero(device, case):
    changes, shape = EMPTY[case]
    arguments = {"sizes": [(3, 4)], **changes}
    sizes = arguments["sizes"]
    inputs = random_inputs(**arguments, device=device)
    output = ms_deform_attn(inputs[0], sizes, None, *inputs[1:])
    assert output.shape == shape and not output.any()
    for tensor, grad in zip(inputs, torch.autograd.grad(output.sum(), inputs), strict=True):
        assert grad.shape == tensor.shape and not grad.any()


# The first is for what is to be exact; the second takes the kernels for common rows.
common_row = pytest.mark.parametrize(
    "dtype, channels", [(torch.float64, 4), (torch.float32, 32)], ids=["float64", "float32"]
)


@common_row
def test_an_empty_level_beside_another(device, dtype, channels):
    sizes = [(0, 4), (2, 3)]
    value, locations, weights = random_inputs(sizes, channels=channels, dtype=dtype, device=device)
    locations = locations.detach().nan_to_num(0.5, 0.5, 0.5)
    output = ms_deform_attn(value, sizes, None, locations, weights)
    rest = ms_deform_attn(value, sizes[1:], None, locations[:, :, :, 1:], weights[:, :, :, 1:])
    assert relative_error(output, rest) < TOLERANCES[dtype][0]


@common_row
@pytest.mark.parametrize("batch", [65, 97])
def test_expanded_inputs(device, batch, dtype, channels):
    # cuBLAS chooses its kernel by the size.
    pure_on_gpu = device == "cuda" and selection.backends().serving(device) == "torch"
    sizes = [(3, 4)]
    single = random_inputs(sizes, batch=1, channels=channels, dtype=dtype, device=device)
    alone = ms_deform_attn(single[0], sizes, None, *single[1:])
    value, locations, weights = (t.expand(batch, *t.shape[1:]) for t in single)
    together = ms_deform_attn(value, sizes, None, locations, weights)
    error = relative_error(together, alone.expand_as(together))
    assert error <= (TOLERANCES[dtype][0] if pure_on_gpu else 0)
    grads = torch.autograd.grad(together.sum(), single)
    expected = torch.autograd.grad(alone.sum() * batch, single)
    for found, wanted in zip(grads, expected, strict=True):
        assert relative_error(found, wanted) < TOLERANCES[dtype][1]


@common_row
def test_strided_inputs(device, dtype, channels):
    sizes = [(3, 4), (2, 1)]
    inputs = random_inputs(sizes, channels=channels, dtype=dtype, device=device)
    strided = [t.detach().transpose(1, 2).contiguous().transpose(1, 2) for t in inputs]
    strided = [t.requires_grad_() for t in strided]
    assert not any(t.is_contiguous() for t in strided)
    found = ms_deform_attn(strided[0], sizes, None, *strided[1:])
    expected = ms_deform_attn(inputs[0], sizes, None, *inputs[1:])
    upstream = torch.randn(2, 2 * channels, 3, dtype=dtype, device=device).transpose(1, 2)
    assert torch.equal(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, strided, upstream),
        torch.autograd.grad(expected, inputs, upstream.contiguous()),
        strict=True,
    ):
        assert relative_error(one, other) < TOLERANCES[dtype][1]


@common_row
def test_levels_in_any_order_and_overlapping(device, dtype, channels):
    sizes, starts = [(2, 3), (2, 2), (1, 3)], [4, 0, 5]
    value, locations, weights = inputs = random_inputs(
        sizes, channels=channels, dtype=dtype, device=device
    )
    output = ms_deform_attn(value, sizes, starts, locations, weights)
    tokens = [value[:, s : s + h * w] for (h, w), s in zip(sizes, starts, strict=True)]
    expected = by_loops(torch.cat(tokens, dim=1), sizes, locations, weights)
    upstream = torch.randn_like(expected)
    assert relative_error(output, expected) < TOLERANCES[dtype][0]
    for found, wanted in zip(
        torch.autograd.grad(output, inputs, upstream.to(output)),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        assert relative_error(found, wanted) < TOLERANCES[dtype][1]


@any_row
def test_a_batch_is_its_images(device, channels):
    sizes = [(7, 9), (4, 5)]
    arguments = {"channels": channels, "dtype": torch.float32, "device": device}
    inputs = [t.detach() for t in random_inputs(sizes, batch=3, queries=83, **arguments)]
    together = ms_deform_attn(inputs[0], sizes, None, *inputs[1:])
    for image, expected in enumerate(together):
        value, locations, weights = (t[image : image + 1] for t in inputs)
        alone = ms_deform_attn(value, sizes, None, locations, weights)[0]
        if selection.backends().serving(device) == "torch":  # bmm chooses its kernel by the size
            torch.testing.assert_close(alone, expected)
        else:
            assert torch.equal(alone, expected)


def test_shapes_as_pairs_and_as_tensors():
    sizes = [(3, 4), (2, 1)]
    value, locations, weights = random_inputs(sizes)
    shapes, starts = as_tensors(sizes)
    expected = ms_deform_attn(value, sizes, None, locations, weights)
    for some_shapes, some_starts in [(sizes, [0, 12]), (shapes, None), (shapes, starts)]:
        found = ms_deform_attn(value, some_shapes, some_starts, locations, weights)
        assert torch.equal(found, expected)


def with_change(device="cpu", **changes):
    sizes = [(3, 4), (2, 1)]
    value, locations, weights = (
        t.detach() for t in random_inputs(sizes, dtype=torch.float32, device=device)
    )
    arguments = {
        "value": value,
        "spatial_shapes": sizes,
        "level_start_index": None,
        "sampling_locations": locations,
        "attention_weights": weights,
    }
    return {**arguments, **{n: c(arguments[n]) for n, c in changes.items()}}


@pytest.mark.parametrize(
    "error, message, changes",
    [
        (ValueError, r"value must be \(B, S, heads, channels\), got \(2, 14, 2\)",
         {"value": lambda t: t[..., 0]}),
        (ValueError, r"attention_weights must be \(B, Q, heads, L, points\), got \(2, 3, 2, 4\)",
         {"attention_weights": lambda t: t.flatten(-2)}),
        (ValueError, r"spatial_shapes must be \(height, width\) pairs",
         {"spatial_shapes": lambda s: [(3, 4, 5)]}),
        (ValueError, r"spatial_shapes must be \(L, 2\), got \(2, 3\)",
         {"spatial_shapes": lambda s: torch.zeros(2, 3, dtype=torch.int64)}),
        (ValueError, "level_start_index must list 2 levels as spatial_shapes does, got 1",
         {"level_start_index": lambda s: [0]}),
        (ValueError, r"attention_weights must be \(2, 3, 2, 1, 2\) for the value .* and 1 levels",
         {"spatial_shapes": lambda s: s[:1]}),
        (ValueError, r"sampling_locations must be \(2, 3, 2, 2, 2, 2\) .*got \(2, 2, 2, 2, 2, 2\)",
         {"sampling_locations": lambda t: t[:, :2]}),
        (ValueError, "level 1 of 2x2 cells from token 12 does not fit into the value's 14 tokens",
         {"spatial_shapes": lambda s: [(3, 4), (2, 2)]}),
        (ValueError, "level 1 of 2x1 cells from token -2 does not fit",
         {"level_start_index": lambda s: [0, -2]}),
        (TypeError, "value must be one of .*, got torch.int32", {"value": lambda t: t.int()}),
        (TypeError, "sampling_locations must be torch.float64 beside a value of torch.float64, "
         "got torch.float32", {"value": lambda t: t.double()}),
        (TypeError, "attention_weights must be torch.float32 beside .*, got torch.float64",
         {"attention_weights": lambda t: t.double()}),
        (TypeError, "spatial_shapes must be torch.int64 beside .*, got torch.int32",
         {"spatial_shapes": lambda s: torch.tensor(s, dtype=torch.int32)}),
        (RuntimeError, "sampling_locations is on meta, but value is on (cpu|cuda:0)",
         {"sampling_locations": lambda t: t.to("meta")}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("device", DEVICES)
def test_errors_name_the_culprit(error, message, changes, device):
    with pytest.raises(error, match=message):
        ms_deform_attn(**with_change(device, **changes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_locations(device, dtype):
    sizes = [(100, 168)]
    value, locations, weights = random_inputs(sizes, queries=9, dtype=torch.float32, device=device)
    plain = ms_deform_attn(value, sizes, None, locations, weights)
    shapes, starts = (t for t in as_tensors(sizes))
    with torch.autocast(device, dtype):
        wide = ms_deform_attn(value, sizes, None, locations, weights)
        halved = torch.ops.isda.ms_deform_attn(
            value.to(dtype), shapes, starts, locations, weights.to(dtype)
        )
    assert wide.dtype == torch.float32 and torch.equal(wide, plain)
    assert halved.dtype == dtype
    assert relative_error(halved, plain) < 2 * TOLERANCES[dtype][0]
    assert halved.requires_grad


def test_half_locations_are_taken_with_one_warning(caplog):
    from isda.ops import ms_deform_attn as function

    sys.modules[function.__module__]._warn_of_coarse_locations.cache_clear()
    sizes = [(3, 4)]
    value, locations, weights = random_inputs(sizes, dtype=torch.float32)
    with caplog.at_level(logging.WARNING):
        halves = locations.bfloat16()
        for _ in range(2):
            output = ms_deform_attn(value, sizes, None, halves, weights.bfloat16())
    expected = by_loops(value, sizes, halves, weights.bfloat16())
    assert relative_error(output, expected) < 1e-5
    (record,) = caplog.records
    assert "sampling_locations come in torch.bfloat16" in record.getMessage()


def test_deterministic_mode(device):
    if selection.backends().serving(device) == "torch" and device == "cuda":
        pytest.skip("whether cuBLAS is deterministic is set before the process starts")
    sizes = [(7, 9), (4, 5)]
    inputs = random_inputs(sizes, queries=300, dtype=torch.float32, device=device)
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(20):
            output = ms_deform_attn(inputs[0], sizes, None, *inputs[1:])
            runs.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(run, runs[0], strict=True))


def test_threads_do_not_change_a_bit(device):
    if device == "cuda":
        pytest.skip("threads of the CPU are no matter to a GPU")
    sizes = [(7, 9), (4, 5)]
    inputs = random_inputs(sizes, queries=700, dtype=torch.float32, device=device)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            output = ms_deform_attn(inputs[0], sizes, None, *inputs[1:])
            results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@needs_native
@pytest.mark.slow
def test_kernels_for_any_processor():
    """The same tests with the kernels that do without AVX2."""
    names = "loops or gradcheck or borders or not_finite or infinite or expanded or any_extent"
    names += " or of_grid_sample[native-20-"
    files = [__file__, str(Path(__file__).with_name("test_every_shape.py"))]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "ISDA_MSDA_CPU": "baseline", "PYTHONPATH": str(PROJECTS)}
    found = subprocess.run(
        [*command, "-k", f"native and ({names})"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-3000:]


@needs_native
@pytest.mark.parametrize(
    ("message", "position", "change"),
    [
        ("level 1 of 2x1 cells from token 13 does not fit", 2, lambda t: t + 1),
        ("level 0 of -3x4 cells", 1, lambda t: t * torch.tensor([[-1, 1], [1, 1]])),
        ("level 0 of 3000000000000x4000000000000 cells", 1, lambda t: t * 10**12),
        ("spatial_shapes does not have the shape", 1, lambda t: t[:1]),
        ("sampling_locations does not have the shape", 3, lambda t: t[:, :, :1]),
        ("must be float64 if value is, else float32", 3, lambda t: t.double()),
        ("must be int64", 1, lambda t: t.int()),
        ("value must be", 0, lambda t: t[0]),
    ],
)
def test_kernels_never_trust_their_caller(message, position, change):
    sizes = [(3, 4), (2, 1)]
    value, locations, weights = (t.detach() for t in random_inputs(sizes, dtype=torch.float32))
    inputs = [value, *as_tensors(sizes), locations, weights]
    inputs[position] = change(inputs[position])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.isda.ms_deform_attn(*inputs)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_grid_sample_form_takes_every_dtype(dtype):
    sizes = [(3, 4), (2, 1)]
    value, locations, weights = random_inputs(sizes, dtype=dtype)
    output = pytorch.grid_sample_form(value, sizes, [0, 12], locations, weights)
    assert output.dtype == dtype
    expected = by_loops(value, sizes, locations, weights)
    assert relative_error(output, expected) < TOLERANCES[dtype][0]


@pytest.mark.parametrize("sizes", [[(1, 4000), (4000, 1)], [(300, 1), (1, 300), (2, 2)]])
def test_levels_that_do_not_stack_are_gathered(sizes):
    assert not bags.fits(sizes, sum(h * w for h, w in sizes))
    value, locations, weights = random_inputs(sizes, batch=1)
    output = ms_deform_attn(value, sizes, None, locations, weights)
    expected = pytorch.grid_sample_form(
        value, sizes, as_tensors(sizes)[1].tolist(), locations, weights
    )
    assert relative_error(output, expected) < 1e-12


def test_backends_are_listed():
    listed = ops.backends()
    assert listed.built[-1] == "torch"
    assert set(listed.built) | set(listed.missing) == {"cpu", "cuda", "torch"}
    assert listed.serving("meta") == "torch"
    with ops.backend("torch"):
        assert ops.backends().chosen == "torch"
        assert ops.backends().serving("cpu") == "torch"
    assert ops.backends().chosen == listed.chosen


def test_forced_backends_are_checked(monkeypatch):
    with pytest.raises(ValueError, match="must be one of auto, cuda, cpu, torch, got 'gpu'"):
        with ops.backend("gpu"):
            pass
    monkeypatch.setattr(selection, "load_extensions", lambda: {"cuda": "not built (there is no x)"})
    with pytest.raises(RuntimeError, match="asks for the cuda backend, which is not built"):
        with ops.backend("cuda"):
            pass
    with ops.backend("cpu"), pytest.raises(RuntimeError, match="forced to the cpu backend, but"):
        selection.pure_requested(torch.device("meta"))
    arguments = with_change()
    monkeypatch.setenv("ISDA_MSDA_BACKEND", "fast")
    with pytest.raises(ValueError, match="ISDA_MSDA_BACKEND must be one of .*, got 'fast'"):
        ms_deform_attn(**arguments)
    monkeypatch.setenv("ISDA_MSDA_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="ISDA_MSDA_BACKEND asks for the cuda backend"):
        ms_deform_attn(**arguments)
    monkeypatch.setenv("ISDA_MSDA_BACKEND", "torch")
    assert ms_deform_attn(**arguments).shape == (2, 3, 8)


def test_forced_torch_calls_the_pure_operator():
    calls = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    with ops.backend("torch"), Recorder():
        ms_deform_attn(**with_change())
    assert "isda.ms_deform_attn_pure.default" in calls
    assert "isda.ms_deform_attn.default" not in calls


def test_a_missing_kernel_is_told_of_once_and_a_broken_one_raises(monkeypatch, caplog):
    reasons = {"cpu": "not built (there is no x)", "cuda": "built but does not load: libx.so"}
    monkeypatch.setattr(selection, "load_extensions", lambda: reasons)
    selection.announce.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            selection.announce("cpu")
            with pytest.raises(RuntimeError, match="for cuda is built but does not load: libx.so"):
                selection.announce("cuda")
    selection.announce.cache_clear()
    (said,) = caplog.records
    assert said.levelno == logging.INFO and "faster kernel is not built" in said.getMessage()


def test_a_broken_kernel_raises_when_it_is_asked_for(tmp_path):
    """Not before, and not where it is left out; a file that is no library stands for it."""
    (tmp_path / "_msda_cpu.abi3.so").write_bytes(b"no library")
    program = f"""
        import torch, isda
        isda.__path__.insert(0, {str(tmp_path)!r})
        from isda import ops
        print(ops.backends().missing["cpu"])
        value, weights = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1)
        inputs = value, [(1, 1)], None, torch.full((1, 1, 1, 1, 1, 2), 0.5), weights
        for _ in range(2):
            try:
                ops.ms_deform_attn(*inputs)
            except RuntimeError as error:
                print(error)
        with ops.backend("torch"):
            print(ops.ms_deform_attn(*inputs).item())
    """
    found = run_program(program, PYTHONPATH=str(PROJECTS), ISDA_MSDA_BACKEND="")
    listed, *raised, forced = found.stdout.splitlines()
    assert listed.startswith("built but does not load: ") and listed.endswith("file too short")
    assert raised[0] == raised[1]
    assert f"deformable attention for cpu is {listed}. Build it again" in raised[0]
    assert "ISDA_MSDA_BACKEND=torch" in raised[0]
    assert forced == "1.0"


def test_the_operator_needs_neither_detectron2_nor_the_models():
    program = (
        "import sys, isda.ops; "
        "print(sorted({'detectron2', 'isda.modeling', 'isda.meta_arch'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECTS)}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def run_program(program: str, **settings: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_extensions_it_runs_and_says_so():
    """Forward, backward and twice: nothing is compiled, and one line tells that."""
    program = """
        import importlib.util, logging
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda n, *r: None if "._msda_" in n else find(n, *r)
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        import torch
        from isda import ops
        value = torch.randn(1, 12, 2, 3, dtype=torch.float64, requires_grad=True)
        locations = torch.rand(1, 2, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
        weights = torch.rand(1, 2, 2, 1, 2, dtype=torch.float64, requires_grad=True)
        def attend(*inputs):
            return ops.ms_deform_attn(inputs[0], [(3, 4)], None, *inputs[1:])
        assert torch.autograd.gradcheck(attend, (value, locations, weights))
        assert torch.autograd.gradgradcheck(attend, (value, locations, weights))
        print(ops.backends().built)
    """
    found = run_program(program, PYTHONPATH=str(PROJECTS))
    assert found.stdout == "('torch',)\n", found.stderr
    (said,) = [line for line in found.stderr.splitlines() if "Deformable attention" in line]
    assert "on cpu runs in plain PyTorch; its faster kernel is not built" in said


FOREIGN = ("MultiScaleDeformableAttention", "functions", "modules", "mmcv", "ms_deform_attn")


def test_nothing_of_other_operators_is_used_or_taken(tmp_path):
    """Their modules may be there and broken, and everything that we register is in our name."""
    for name in FOREIGN:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is imported')")
    program = """
        import sys, torch
        torch.onnx.is_in_onnx_export()  # PyTorch registers something of its own for that
        names = torch._C._dispatch_get_all_op_names
        before, modules = set(names()), set(sys.modules)
        import isda.ops
        value, weights = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1)
        isda.ops.ms_deform_attn(value, [(1, 1)], None, torch.ones(1, 1, 1, 1, 1, 2), weights)
        print(sorted({name.split("::")[0] for name in set(names()) - before}))
        print(sorted({name.split(".")[0] for name in set(sys.modules) - modules} & set(sys.argv)))
    """
    found = run_program(
        f"import sys; sys.argv = {list(FOREIGN)}\n" + textwrap.dedent(program),
        PYTHONPATH=f"{tmp_path}{os.pathsep}{PROJECTS}",
    )
    assert found.stdout == "['isda']\n[]\n", found.stdout + found.stderr


def test_foreign_operators_imported_first_stay_what_they_are(tmp_path):
    """As Deformable DETR's extension: a module at the top, operators in another name space."""
    (tmp_path / "MultiScaleDeformableAttention.py").write_text(
        textwrap.dedent("""
            import torch
            library = torch.library.Library("foreign", "DEF")
            library.define("ms_deform_attn(Tensor x) -> Tensor")
            library.impl("ms_deform_attn", lambda x: x + 1, "CompositeExplicitAutograd")
            def ms_deform_attn_forward(x): return torch.ops.foreign.ms_deform_attn(x)
        """)
    )
    theirs = "import MultiScaleDeformableAttention as theirs"
    for imports in (f"{theirs}; from isda import ops", f"from isda import ops; {theirs}"):
        program = f"""
            import torch
            {imports}
            value, weights = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1)
            locations = torch.full((1, 1, 1, 1, 1, 2), 0.5)
            print(ops.ms_deform_attn(value, [(1, 1)], None, locations, weights).item())
            print(theirs.ms_deform_attn_forward(torch.zeros(())).item())
        """
        found = run_program(program, PYTHONPATH=f"{tmp_path}{os.pathsep}{PROJECTS}")
        assert found.stdout == "1.0\n1.0\n", found.stderr
