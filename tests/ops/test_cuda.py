"""Models' shapes on the compiled kernels, and what only a GPU can show: `tools/gpu_check.sh`.

Borders, types, empty tensors and so on are in ``test_ms_deform_attn.py``, for every backend; the
kernels' logic is in ``test_cuda_kernels.py``, without a GPU. What says nothing of a GPU runs on the
CPU kernels as well, so that the tests themselves are tested where there is none.
"""

import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from problems import PROJECTS, TOLERANCES, needs_cuda, needs_native, starts_of
from torch import Tensor

from isda import ops
from isda.ops import ms_deform_attn, nvrtc, pytorch

LEVELS = [(50, 84), (25, 42), (13, 21), (7, 11)]
SMALLER = [(10, 17), (5, 9), (3, 5), (2, 3)]  # for CPUs
on_gpu = [needs_cuda, pytest.mark.gpu]


@pytest.fixture(
    params=[pytest.param("cpu", marks=needs_native), pytest.param("cuda", marks=on_gpu)]
)
def device(request):
    """Where the compiled kernels serve, which are forced."""
    with ops.backend(request.param):
        yield request.param


@pytest.fixture
def levels(device):
    return LEVELS if device == "cuda" else SMALLER


@pytest.fixture
def gpu():
    """For what is about a GPU."""
    with ops.backend("cuda"):
        yield


def gpu_only(test):
    for mark in on_gpu:
        test = mark(test)
    return pytest.mark.usefixtures("gpu")(test)


def encoder_inputs(
    sizes, *, device="cuda", dtype=torch.float32, queries=None, batch=1, heads=8, dim=32
):
    """Every token samples around itself on all levels, or ``queries`` of them around anywhere."""
    generator = torch.Generator(device).manual_seed(0)
    random = {"generator": generator, "device": device, "dtype": torch.float64}
    tokens = sum(height * width for height, width in sizes)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    value = torch.randn(batch, tokens, heads, dim, **random).to(dtype)
    if queries is None:
        centres = torch.cat([centres_of(height, width) for height, width in sizes]).to(value.device)
    else:
        centres = torch.rand(queries, 2, **random)
    extents = torch.tensor([(w, h) for h, w in sizes]).to(centres)
    shape = (batch, len(centres), heads, len(sizes), 4, 2)
    offsets = 4 * torch.randn(shape, **random) / extents.view(-1, 1, 2)
    locations = (centres.view(1, -1, 1, 1, 1, 2) + offsets).to(wide)
    weights = torch.randn(shape[:-1], **random).flatten(3).softmax(-1).view(shape[:-1]).to(wide)
    return [t.requires_grad_() for t in (value, locations, weights)]


def centres_of(height: int, width: int) -> Tensor:
    cells = torch.arange(height * width, dtype=torch.float64)
    return torch.stack([(cells % width + 0.5) / width, ((cells // width) + 0.5) / height], dim=-1)


def off_borders(locations: Tensor, sizes) -> Tensor:
    """Samples farther than 1e-3 cells from where the derivative jumps."""
    extents = locations.new_tensor([(w, h) for h, w in sizes]).view(-1, 1, 2)
    position = locations.double() * extents - 0.5
    return ((position - position.round()).abs() > 1e-3).all(-1)


def error_of(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


def check(inputs: list[Tensor], sizes) -> None:
    """Output and gradients against grid_sample in float64."""
    value, locations, weights = inputs
    output = ms_deform_attn(value, sizes, None, locations, weights)
    upstream = torch.randn_like(output)
    grads = torch.autograd.grad(output, inputs, upstream)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    expected = pytorch.grid_sample_form(wide[0], sizes, starts_of(sizes), *wide[1:])
    expected_grads = torch.autograd.grad(expected, wide, upstream.double())
    of_output, of_grads = TOLERANCES[value.dtype]
    assert error_of(output, expected) < of_output
    assert error_of(grads[0], expected_grads[0]) < of_grads
    assert error_of(grads[2], expected_grads[2]) < of_grads
    away = off_borders(locations, sizes)
    assert error_of(grads[1][away], expected_grads[1][away]) < of_grads


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("queries", [None, 300, 3000])
def test_encoder_and_decoder(device, levels, dtype, queries):
    check(encoder_inputs(levels, device=device, dtype=dtype, queries=queries, batch=2), levels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [16, 32, 64, 128, 24])
@pytest.mark.parametrize("heads, queries", [(3, 100), (8, 1100)])
def test_lengths_of_rows(device, dtype, dim, heads, queries):
    sizes = [(17, 23), (9, 12), (5, 6)]  # 12 samples
    arguments = {"dtype": dtype, "queries": queries, "heads": heads, "dim": dim}
    check(encoder_inputs(sizes, device=device, **arguments), sizes)


def test_every_schedule_once(device):
    """Small, for compute-sanitizer."""
    sizes, small = [(6, 9), (3, 4)], {"device": device, "heads": 2}
    for dtype, dim in [(torch.float32, 32), (torch.bfloat16, 16), (torch.float32, 20)]:
        for queries in (5, 4200):
            check(encoder_inputs(sizes, dtype=dtype, queries=queries, dim=dim, **small), sizes)
    check(encoder_inputs([(65, 67)], **small), [(65, 67)])
    deterministic_grads(encoder_inputs(sizes, queries=40, **small), sizes)


def deterministic_grads(inputs: list[Tensor], sizes) -> list[Tensor]:
    torch.use_deterministic_algorithms(True)
    try:
        output = ms_deform_attn(inputs[0], sizes, None, *inputs[1:])
        return [output, *torch.autograd.grad(output, inputs, torch.ones_like(output))]
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_deterministic_mode_repeats_itself(device, levels, dtype):
    inputs = encoder_inputs(levels, device=device, dtype=dtype, batch=2)
    first, *others = [deterministic_grads(inputs, levels) for _ in range(20)]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    output = ms_deform_attn(inputs[0], levels, None, *inputs[1:])
    grads = torch.autograd.grad(output, inputs, torch.ones_like(output))
    assert torch.equal(output, first[0])
    assert torch.equal(grads[1], first[2]) and torch.equal(grads[2], first[3])
    assert error_of(grads[0], first[1].double()) < max(1e-5, TOLERANCES[dtype][1])


def test_deterministic_mode_with_every_sample_in_one_cell(device, levels):
    inputs = encoder_inputs(levels, device=device, queries=2000)
    inputs[1] = torch.full_like(inputs[1], 0.5).requires_grad_()
    grads = deterministic_grads(inputs, levels)
    weights = inputs[2].detach().double().sum((1, 4))  # (1, heads, levels)
    found = grads[1].double().split([h * w for h, w in levels], dim=1)
    totals = torch.stack([level.sum(1)[..., 0] for level in found], dim=-1)
    assert error_of(totals, weights) < 1e-5


def test_a_batch_is_its_images(device, levels):
    for queries in (None, 300):
        arguments = {"device": device, "queries": queries, "batch": 3}
        inputs = [t.detach() for t in encoder_inputs(levels, **arguments)]
        together = ms_deform_attn(inputs[0], levels, None, *inputs[1:])
        for image in range(3):
            value, *rest = (t[image : image + 1] for t in inputs)
            assert torch.equal(ms_deform_attn(value, levels, None, *rest)[0], together[image])


@gpu_only
def test_shapes_may_be_on_the_device(monkeypatch):
    inputs = encoder_inputs(LEVELS)
    shapes = torch.tensor(LEVELS, device="cuda")
    expected = ms_deform_attn(inputs[0], LEVELS, None, *inputs[1:])
    found = ms_deform_attn(inputs[0], shapes, None, *inputs[1:])
    assert torch.equal(found, expected)
    too_large = shapes + torch.tensor([[0, 0], [0, 0], [0, 0], [1, 0]], device="cuda")
    starts = torch.tensor(starts_of(LEVELS), device="cuda")
    spoilt = ms_deform_attn(inputs[0], too_large, starts, *inputs[1:])
    assert spoilt.isnan().all()
    (grad,) = torch.autograd.grad(spoilt.sum(), inputs[0])
    assert grad.isfinite().all()
    monkeypatch.setenv("ISDA_MSDA_CHECK", "1")
    with pytest.raises(ValueError, match="level 3 of 8x11 cells from token 5523 does not fit"):
        ms_deform_attn(inputs[0], too_large, starts, *inputs[1:])


@pytest.mark.parametrize("shapes_on_device", [False, True])
def test_more_levels_than_a_launch_carries(device, shapes_on_device):
    sizes = [(4 + i, 9 - i) for i in range(9)]
    inputs = encoder_inputs(sizes, device=device, queries=50)
    shapes = torch.tensor(sizes, device=device if shapes_on_device else "cpu")
    output = ms_deform_attn(inputs[0], shapes, None, *inputs[1:])
    expected = pytorch.grid_sample_form(inputs[0], sizes, starts_of(sizes), *inputs[1:])
    assert error_of(output, expected.double()) < 1e-5


def test_views_that_are_not_aligned(device, levels):
    """By one number, each of them, and the gradient that comes back too."""
    inputs = [t.detach() for t in encoder_inputs(levels, device=device, queries=300)]
    upstream = torch.randn(1, 300, 256, device=device)

    def shifted(tensor: Tensor) -> Tensor:
        room = torch.empty(tensor.numel() + 1, device=device)
        view = room[1:].view_as(tensor).copy_(tensor)
        assert view.is_contiguous() and view.data_ptr() % 16
        return view

    def results(inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
        inputs = [t.requires_grad_() for t in inputs]
        output = ms_deform_attn(inputs[0], levels, None, *inputs[1:])
        return [output, *torch.autograd.grad(output, inputs, upstream)]

    found = results([shifted(t) for t in inputs], shifted(upstream))
    expected = results(inputs, upstream)
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(one, other) if i != 1 else error_of(one, other.double()) < 1e-5


@gpu_only
@pytest.mark.parametrize("queries", [None, 300])
def test_graphs_capture_it(queries):
    inputs = encoder_inputs(LEVELS, queries=queries)

    def step():
        output = ms_deform_attn(inputs[0], LEVELS, None, *inputs[1:])
        return [output, *torch.autograd.grad(output, inputs, torch.ones_like(output))]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        inputs[1].add_(0.01)
    graph.replay()
    for found, expected in zip(captured, step(), strict=True):
        assert error_of(found, expected.double()) < 1e-5


@gpu_only
def test_it_runs_on_the_current_stream():
    inputs = [t.detach() for t in encoder_inputs(LEVELS)]
    expected = ms_deform_attn(inputs[0], LEVELS, None, *inputs[1:])
    value = torch.zeros_like(inputs[0])
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # cycles: whoever does not wait reads zeros
        value.copy_(inputs[0])
        found = ms_deform_attn(value, LEVELS, None, *inputs[1:])
    stream.synchronize()
    assert torch.equal(found, expected)


@gpu_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_that_of_the_results(dtype):
    inputs = encoder_inputs(LEVELS, dtype=dtype)
    value, locations, weights = inputs
    shapes = torch.tensor(LEVELS)
    starts = torch.tensor(starts_of(LEVELS))
    output = torch.ops.isda.ms_deform_attn(value.detach(), shapes, starts, *inputs[1:]).detach()

    def peak(call) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before

    slack = 3 * 512
    detached = [t.detach() for t in inputs]
    arguments = (detached[0], shapes, starts, *detached[1:])
    assert peak(lambda: torch.ops.isda.ms_deform_attn(*arguments)) <= (
        output.numel() * output.element_size() + slack
    )
    wanted = sum(t.numel() * t.element_size() for t in inputs)
    if dtype != torch.float32:
        wanted += 4 * value.numel()
    backward = torch.ops.isda.ms_deform_attn_backward
    assert peak(lambda: backward(output, *arguments, [True] * 3)) <= wanted + slack


@gpu_only
def test_kernels_never_trust_their_caller():
    value, locations, weights = (t.detach() for t in encoder_inputs(LEVELS, queries=5))
    shapes, starts = torch.tensor(LEVELS), torch.tensor(starts_of(LEVELS))
    for position, change, message in [
        (2, starts + 1, "level 3 of 7x11 cells from token 5524 does not fit"),
        (3, locations[:, :1], "sampling_locations does not have the shape"),
        (3, locations.double(), "must be float64 if value is, else float32"),
        (3, locations.cpu(), "all tensors must be on the value's device"),
    ]:
        inputs = [value, shapes, starts, locations, weights]
        inputs[position] = change
        with pytest.raises(RuntimeError, match=message):
            torch.ops.isda.ms_deform_attn(*inputs)


@pytest.mark.slow
def test_more_than_2_to_the_31_numbers(device):
    """A level of 2900x2900 cells of 8 x 32 numbers in bfloat16: 4.3 GB, and 8.6 GB of gradients.

    On a CPU a smaller one, for the sake of this test."""
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip("needs 40 GB of free memory")
    side = 2900 if device == "cuda" else 60
    value = torch.empty(1, side * side, 8, 32, dtype=torch.bfloat16, device=device)
    assert value.numel() > 2**31 or device == "cpu"
    value.view(side * side, -1).copy_(torch.randn(side * side, 1, device=device))
    locations, weights = (
        t.detach()[:, :, :, :1].contiguous()
        for t in encoder_inputs([(2, 2)], device=device, queries=64)[1:]
    )
    corner = 32  # cells, the last ones, which are all that is touched
    locations = ((side - 6 + locations.clamp(-8, 6)) / side).requires_grad_()
    leaves = (value.requires_grad_(), locations, weights.requires_grad_())
    output = ms_deform_attn(value, [(side, side)], None, locations, weights)
    upstream = torch.randn_like(output)
    grads = torch.autograd.grad(output, leaves, upstream)

    def corner_of(tensor: Tensor) -> Tensor:
        return tensor.view(side, side, 8, 32)[-corner:, -corner:].reshape(1, -1, 8, 32)

    with torch.no_grad():
        inner = (locations.double() * side - (side - corner)) / corner
    wide = [t.detach().double().requires_grad_() for t in (corner_of(value), inner, weights)]
    expected = pytorch.grid_sample_form(wide[0], [(corner, corner)], [0], *wide[1:])
    expected_grads = torch.autograd.grad(expected, wide, upstream.double())
    assert error_of(output, expected) < 1.6e-2
    assert error_of(corner_of(grads[0]), expected_grads[0]) < 1.6e-2
    assert not grads[0].view(side, side, 8, 32)[:-corner].any()
    assert error_of(grads[2], expected_grads[2]) < 1.6e-2


@gpu_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_kernels_compiled_at_first_use(dtype, tmp_path, monkeypatch):
    if nvrtc.obstacle():
        pytest.skip(f"NVRTC: {nvrtc.obstacle()}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for queries in (None, 300):
        inputs = [t.detach() for t in encoder_inputs(LEVELS, dtype=dtype, queries=queries, batch=2)]
        tensors = (inputs[0], torch.tensor(LEVELS), torch.tensor(starts_of(LEVELS)), *inputs[1:])
        output = torch.ops.isda.ms_deform_attn(*tensors)
        of_output, of_grads = TOLERANCES[dtype]
        assert error_of(nvrtc.forward(*tensors), output.double()) < of_output
        for deterministic in (False, True):
            found = nvrtc.backward(output, *tensors, [True] * 3, deterministic)
            expected = torch.ops.isda.ms_deform_attn_backward_cuda(
                output, *tensors, [True] * 3, deterministic
            )
            for grad, wanted in zip(found, expected, strict=True):
                assert error_of(grad, wanted.double()) < of_grads
    assert len(list(tmp_path.glob("isda/*.cubin"))) >= 4


@gpu_only
def test_kernels_compiled_at_first_use_in_a_fresh_thread(tmp_path, monkeypatch):
    """It may have no context yet, as autograd's; nothing but our launch would make one there."""
    if nvrtc.obstacle():
        pytest.skip(f"NVRTC: {nvrtc.obstacle()}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    inputs = [t.detach() for t in encoder_inputs(LEVELS, queries=300)]
    tensors = (inputs[0], torch.tensor(LEVELS), torch.tensor(starts_of(LEVELS)), *inputs[1:])
    expected, found = nvrtc.forward(*tensors), []
    torch.cuda.synchronize()
    thread = threading.Thread(target=lambda: found.append(nvrtc.forward(*tensors)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], expected)


@gpu_only
def test_kernels_compiled_at_first_use_serve_the_operator(tmp_path):
    """In a process that finds no compiled ones."""
    if nvrtc.obstacle():
        pytest.skip(f"NVRTC: {nvrtc.obstacle()}")
    program = """
        import importlib.util, os, sys
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda n, *r: None if n == "isda._msda_cuda" else find(n, *r)
        import torch
        from isda import ops
        torch.manual_seed(0)
        value = torch.randn(1, 12, 2, 32, device="cuda", requires_grad=True)
        locations, weights = torch.rand(1, 5, 2, 1, 4, 2), torch.rand(1, 5, 2, 1, 4)
        inputs = (value, [(3, 4)], None, locations.cuda(), weights.cuda())
        found = ops.ms_deform_attn(*inputs)
        grad, = torch.autograd.grad(found.sum(), value)
        with ops.backend("torch"):
            torch.testing.assert_close(ops.ms_deform_attn(*inputs), found)
        print(ops.backends().built, grad.sum().item() > 0)
    """
    environment = {"ISDA_MSDA_NVRTC": "1", "XDG_CACHE_HOME": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, **environment, "PYTHONPATH": str(PROJECTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "'cuda'" in found.stdout and "True" in found.stdout, found.stderr[-3000:]
