"""The CUDA kernels on the CPU: their sources compiled by g++, with fibers for threads.

Warps meet where they must, memory is checked at every access, and the results are those of
``grid_sample`` in float64. What only a GPU can show is in ``test_ms_deform_attn.py``.
"""

import ctypes
import itertools
import logging
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from isda.ops import launches, nvrtc, pytorch
from isda.ops.launches import Problem, Sorting

SOURCES = Path(__file__).parents[2] / "projects/isda/ops/csrc/cuda"
HERE = Path(__file__).parent / "emulation"
pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++")

NONE = 0x7FFFFFFF
TYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 2e-5),
    torch.bfloat16: (8e-3, 8e-3),
    torch.float16: (1e-3, 1e-3),
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The library; with limits so low that small problems take every path."""
    path = tmp_path_factory.mktemp("emulation") / "kernels.so"
    options = [
        "-std=c++17",
        "-O1",
        "-shared",
        "-fPIC",
        "-U_FORTIFY_SOURCE",
        "-Wno-unknown-pragmas",
        "-Wno-psabi",
    ]
    command = ["g++", *options, f"-I{SOURCES}", str(HERE / "kernels.cpp"), "-o", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    library = ctypes.CDLL(str(path))
    library.set_limits.argtypes = [ctypes.c_longlong] * 3
    for name in ("run_forward", "run_backward", "run_find_bins", "run_collect_grads"):
        getattr(library, name).restype = ctypes.c_char_p
    library.last_launches.restype = library.run_launch.restype = ctypes.c_char_p
    library.set_limits(65535, 1 << 26, 40)
    return library


class Case:
    """Inputs, and what the kernels make of them."""

    def __init__(
        self,
        library,
        sizes,
        *,
        batch=1,
        queries=5,
        heads=2,
        channels=32,
        points=2,
        dtype=torch.float32,
        starts=None,
        on_device=False,
        seed=0,
    ):
        self.library, self.sizes, self.dtype, self.on_device = library, sizes, dtype, on_device
        areas = [height * width for height, width in sizes]
        self.starts = starts or [0, *itertools.accumulate(areas)][:-1]
        tokens = max([s + a for s, a in zip(self.starts, areas, strict=True)], default=0)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.value = normal(batch, tokens, heads, channels).to(dtype)
        shape = (batch, queries, heads, len(sizes), points, 2)
        extents = torch.tensor([(w, h) for h, w in sizes], dtype=torch.float64).view(-1, 1, 2)
        # Anywhere up to a cell and a half outside, none within 0.05 of a cell's border.
        uniform = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
        xy = (uniform[0] * (extents + 3)).floor() - 1.95 + 0.9 * uniform[1]
        self.locations = ((xy + 0.5) / extents.clamp(min=1)).to(wide)
        self.weights = normal(*shape[:-1]).to(wide)
        self.grad_output = normal(batch, queries, heads * channels).to(dtype)

    def problem(self, **tensors: Tensor) -> Problem:
        batch, tokens, heads, channels = self.value.shape
        queries, levels, points = self.weights.shape[1], *self.weights.shape[3:]
        counts = (batch, tokens, heads, channels, queries, levels, points, 0)
        problem = Problem(**dict(zip(Problem.COUNTS, counts, strict=True)))
        inputs = {n: getattr(self, n) for n in ("value", "locations", "weights", "grad_output")}
        if self.on_device:
            inputs["shapes"] = torch.tensor(self.sizes)
            inputs["starts"] = torch.tensor(self.starts)
        else:
            for level, ((height, width), start) in enumerate(
                zip(self.sizes, self.starts, strict=True)
            ):
                problem.levels_by_value[level][:] = (height, width, start)
        self.kept = {**inputs, **tensors}
        for name, tensor in self.kept.items():
            assert tensor.is_contiguous()
            setattr(problem, name, tensor.data_ptr())
        return problem

    def call(self, name: str, *arguments) -> None:
        references = [ctypes.byref(argument) for argument in arguments]
        error = getattr(self.library, name)(TYPES[self.dtype], *references)
        assert error == b"", error.decode()

    def forward(self) -> Tensor:
        output = torch.full_like(self.grad_output, math.nan)
        self.call("run_forward", self.problem(output=output))
        return output

    def backward(self, value=True, geometry=True) -> list[Tensor | None]:
        grads = {}
        if value:
            grads["grad_value"] = torch.zeros_like(self.value, dtype=self.weights.dtype)
        if geometry:
            grads["grad_locations"] = torch.full_like(self.locations, math.nan)
            grads["grad_weights"] = torch.full_like(self.weights, math.nan)
        self.call("run_backward", self.problem(**grads))
        return [grads.get(name) for name in ("grad_value", "grad_locations", "grad_weights")]

    def deterministic_grad_value(self) -> Tensor:
        grad_value = torch.full_like(self.value, math.nan)
        batch, tokens, heads, _ = self.value.shape
        samples = self.weights[0].numel()
        whole, problem = batch, self.problem(grad_value=grad_value)
        for image in range(whole):
            for name, tensor in self.kept.items():
                if name not in ("shapes", "starts"):
                    setattr(problem, name, tensor[image].data_ptr())
            problem.images = 1
            keys = torch.empty(samples, dtype=torch.int32)
            sorting = Sorting(keys=keys.data_ptr())
            self.call("run_find_bins", problem, sorting)
            keys, order = keys.sort(stable=True)
            bins = heads * len(self.sizes) * (2 * tokens + 2)
            assert all(0 <= key < bins or key == NONE for key in keys.tolist())
            ranges = torch.zeros(bins, 2, dtype=torch.int32)
            records = torch.empty(samples, 4, dtype=self.weights.dtype)
            sorting = Sorting(*(t.data_ptr() for t in (keys, order, records, ranges)))
            self.call("run_collect_grads", problem, sorting)
        return grad_value

    def expected(self) -> tuple[Tensor, list[Tensor]]:
        """Output and gradients by grid_sample, in float64."""
        inputs = [t.double().requires_grad_() for t in (self.value, self.locations, self.weights)]
        output = pytorch.grid_sample_form(inputs[0], self.sizes, self.starts, *inputs[1:])
        return output.detach(), list(torch.autograd.grad(output, inputs, self.grad_output.double()))

    def launches(self) -> list[str]:
        """Of the last call: blocks, threads, shared memory."""
        return [line.split(": ")[1] for line in self.named_launches()]

    def named_launches(self) -> list[str]:
        return self.library.last_launches().decode().splitlines()


def error_of(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


def check(case: Case) -> None:
    output, grads = case.expected()
    of_output, of_grads = TOLERANCES[case.dtype]
    assert error_of(case.forward(), output) < of_output
    for found, wanted in zip(case.backward(), grads, strict=True):
        # What is added up in float32 is rounded by whoever asked for it.
        assert error_of(found, wanted) < min(of_grads, 2e-5)
    assert error_of(case.deterministic_grad_value(), grads[0]) < of_grads


LEVELS = [(5, 4), (3, 2), (2, 1), (1, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [16, 32, 64, 128])
@pytest.mark.parametrize(
    "queries, points",
    [
        (7, 4),  # split: 7 * 2 bags are few
        (7, 3),
        (30, 4),  # 16 samples, unrolled
        (30, 3),  # 12, and the last chunk is not full
    ],
)
def test_rows(kernels, dtype, channels, queries, points):
    check(Case(kernels, LEVELS, channels=channels, queries=queries, points=points, dtype=dtype))


@pytest.mark.parametrize("queries", [7, 30])
@pytest.mark.parametrize(
    "dtype, channels",
    [(torch.float32, 32), (torch.bfloat16, 16), (torch.float32, 128), (torch.float32, 20)],
)
def test_every_number_of_levels_and_points(kernels, dtype, channels, queries):
    """From 1 to 25 samples, which lanes share in chunks of 1 to 16."""
    for levels, points in itertools.product(range(1, 6), repeat=2):
        sizes = [*LEVELS, (2, 3)][:levels]
        arguments = {"channels": channels, "queries": queries, "dtype": dtype}
        check(Case(kernels, sizes, heads=2, points=points, **arguments))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("channels", [1, 20, 71])
def test_rows_of_any_length(kernels, dtype, channels):
    case = Case(kernels, [(3, 5), (2, 1)], batch=2, channels=channels, points=3, dtype=dtype)
    check(case)


def test_float64_rows_of_common_length(kernels):
    check(Case(kernels, LEVELS, channels=32, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("points", [4, 5])
def test_tiles(kernels, dtype, points):
    """Queries that are the tokens: whole tiles, narrow ones, and one that only touches a level."""
    sizes = [(9, 17), (8, 8), (3, 1), (1, 9)]
    tokens = sum(height * width for height, width in sizes)
    case = Case(kernels, sizes, queries=tokens, heads=1, points=points, dtype=dtype, batch=2)
    check(case)
    case.forward()
    assert case.launches() == [f"{6 + 1 + 1 + 2} x 1 x 2 of 256, {4 * points * 16} bytes"]


@pytest.mark.parametrize(
    "change", [{"starts": [18, 0]}, {"starts": [0, 0]}, {"on_device": True}, {"queries": 50}]
)
def test_no_tiles_where_queries_are_not_the_tokens(kernels, change):
    sizes = [(4, 9), (2, 9)]
    arguments = {"queries": max(54, *(s + 36 for s in change.get("starts", [0]))), **change}
    case = Case(kernels, sizes, **arguments)
    check(case)
    case.forward()
    assert case.launches() == ["1 x 2 x 1 of 256, 64 bytes"]


@pytest.mark.parametrize("limits", [(2, 1 << 26, 40), (65535, 100, 40)])
def test_batches_of_several_launches(kernels, limits):
    case = Case(kernels, LEVELS, batch=5, queries=9, points=1)
    whole = case.forward(), case.backward()
    kernels.set_limits(*limits)
    try:
        pieces = case.forward(), case.backward()
        assert len(case.launches()) == (3 if limits[0] == 2 else 2)
    finally:
        kernels.set_limits(65535, 1 << 26, 40)
    assert torch.equal(whole[0], pieces[0])
    assert all(torch.equal(one, other) for one, other in zip(whole[1], pieces[1], strict=True))


def test_too_many_tokens_for_a_launch_take_the_generic_kernels(kernels):
    case = Case(kernels, LEVELS)
    kernels.set_limits(65535, 20, 40)
    try:
        check(case)
        case.forward()
        assert case.launches() == [f"{math.ceil(5 * 2 * 32 / 256)} x 1 x 1 of 256, 0 bytes"]
    finally:
        kernels.set_limits(65535, 1 << 26, 40)


@pytest.mark.parametrize("schedule", ["split", "whole"])
def test_output_does_not_depend_on_batch_or_schedule_of_gradients(kernels, schedule):
    queries = 9 if schedule == "split" else 41
    case = Case(kernels, LEVELS, batch=3, queries=queries, points=4)
    together, grads = case.forward(), case.backward()
    geometry = case.backward(value=False)
    assert geometry[0] is None
    assert torch.equal(geometry[1], grads[1]) and torch.equal(geometry[2], grads[2])
    value_only = case.backward(geometry=False)
    assert value_only[1] is value_only[2] is None
    assert error_of(value_only[0], grads[0].double()) < 1e-6
    for name in ("value", "locations", "weights", "grad_output"):
        setattr(case, name, getattr(case, name)[1:2].contiguous())
    assert torch.equal(case.forward(), together[1:2])


def test_levels_overlap_in_any_order(kernels):
    check(Case(kernels, [(2, 3), (2, 2), (1, 3)], starts=[4, 0, 5], points=5))


@pytest.mark.parametrize("channels", [32, 20])
def test_more_levels_than_a_launch_carries(kernels, channels):
    check(Case(kernels, [(2, 3)] * 9, channels=channels, on_device=True))


@pytest.mark.parametrize("channels", [32, 20])
def test_levels_that_do_not_fit_are_not_numbers(kernels, channels):
    """On the device nobody has looked at them. Nothing outside the tensors may be touched."""
    case = Case(kernels, [(4, 5), (2, 3)], channels=channels, on_device=True)
    for sizes, starts in [
        ([(4, 5), (2, 4)], [0, 20]),
        ([(4, 5), (2, 3)], [0, 21]),
        ([(-4, 5), (2, 3)], [0, 20]),
        ([(4, 5), (2, 3)], [-1, 20]),
        ([(1 << 40, 1 << 40), (2, 3)], [0, 20]),
    ]:
        case.sizes, case.starts = sizes, starts
        assert case.forward().isnan().all()
        grads = case.backward()
        assert grads[0].isfinite().all() and grads[2].isfinite().all()
        assert case.deterministic_grad_value().isfinite().all()


@pytest.mark.parametrize("channels", [32, 20])
def test_an_empty_level_is_zero(kernels, channels):
    case = Case(kernels, [(0, 4), (2, 3), (3, 0)], channels=channels)
    output, grads = case.forward(), case.backward()
    alone = Case(kernels, [(2, 3)], channels=channels)
    alone.value, alone.grad_output = case.value, case.grad_output
    alone.locations, alone.weights = (
        t[:, :, :, 1:2].contiguous() for t in (case.locations, case.weights)
    )
    assert error_of(output, alone.forward().double()) < 1e-6
    expected = alone.backward()
    assert error_of(grads[0], expected[0].double()) < 1e-6
    for found, wanted in zip(grads[1:], expected[1:], strict=True):
        assert error_of(found[:, :, :, 1:2], wanted.double()) < 1e-6
        assert not found[:, :, :, ::2].any()
    assert error_of(case.deterministic_grad_value(), grads[0].double()) < 1e-6


def one_sample(kernels, u, v, *, height=2, width=4, channels=16, value=1.0):
    """A case with a single sample of weight one, and cells that are all the same."""
    case = Case(kernels, [(height, width)], queries=1, heads=1, channels=channels, points=1)
    case.value.fill_(value)
    case.locations[:] = torch.tensor([u, v])
    case.weights.fill_(1)
    case.grad_output.fill_(1)
    return case


@pytest.mark.parametrize("channels", [16, 20])
@pytest.mark.parametrize(
    "x, y, output, slope_x, slope_y",
    [
        # Integer coordinates take the derivative to the right of them and below.
        (-1, 0, 0, 4, 0),
        (3, 0, 1, -4, 0),
        (4, 0, 0, 0, 0),
        (1, -1, 0, 0, 2),
        (1, 1, 1, 0, -2),
        (1, 2, 0, 0, 0),
        (-0.5, 0, 0.5, 4, 0),
        (1e30, 0, 0, 0, 0),
        (0, -1e30, 0, 0, 0),
    ],
)
def test_borders(kernels, channels, x, y, output, slope_x, slope_y):
    case = one_sample(kernels, (x + 0.5) / 4, (y + 0.5) / 2, channels=channels)
    assert (case.forward() == output).all()
    _, grad_locations, grad_weights = case.backward()
    assert grad_locations.flatten().tolist() == [slope_x * channels, slope_y * channels]
    assert grad_weights.item() == output * channels


@pytest.mark.parametrize("channels", [16, 20])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_reaches_only_samples_inside(kernels, channels, value):
    for x, y in [(-1, 0), (4, 0), (1, -1), (1, 2), (-1.5, 0.3), (7, 7), (1e30, -1e30)]:
        case = one_sample(kernels, (x + 0.5) / 4, (y + 0.5) / 2, channels=channels, value=value)
        assert not case.forward().any()
        assert not case.backward()[2].any() or (x, y) in [(-1, 0), (1, -1)]
        case.grad_output.fill_(value)
        assert not case.backward(geometry=False)[0].any() or (x, y) in [(-1, 0), (1, -1)]
    # Half inside: the half outside is nothing, not nothing times infinity.
    for x, y in [(-0.5, 0.5), (3.5, 0.5), (1.5, -0.5), (1.5, 1.5), (-0.5, -0.5), (3.5, 1.5)]:
        case = one_sample(kernels, (x + 0.5) / 4, (y + 0.5) / 2, channels=channels, value=value)
        output = case.forward()
        assert (output.isnan() if math.isnan(value) else output == math.inf).all()


@pytest.mark.parametrize("queries", [9, 41])
@pytest.mark.parametrize("channels", [32, 20])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_location_that_is_not_finite_spoils_its_query_and_head_only(
    kernels, channels, queries, bad
):
    case = Case(kernels, LEVELS, queries=queries, channels=channels)
    shape = (queries, 2, channels)
    clean, grads = case.forward().view(shape), case.backward()
    for query, head, level, point, axis in [(2, 0, 1, 1, 0), (queries - 1, 1, 3, 0, 1)]:
        case.locations[0, query, head, level, point, axis] = bad
        output = case.forward().view(shape)
        assert output[query, head].isnan().all()
        clean[query, head] = output[query, head] = 0
        assert torch.equal(output, clean)
        grad_value, grad_locations, _ = case.backward()
        assert grad_value.isfinite().all()
        others = torch.ones_like(grad_locations, dtype=torch.bool)
        others[0, :, :, level, point] = False
        assert torch.equal(grad_locations[others], grads[1][others])
        case.locations[0, query, head, level, point, axis] = 9.0
        assert error_of(case.deterministic_grad_value(), case.backward()[0].double()) < 1e-6
        clean = case.forward().view(shape)
        grads = case.backward()


# --- compiled at first use


@pytest.fixture
def lowered(monkeypatch):
    """Python's limits, as low as those of the library."""
    monkeypatch.setattr(launches, "limits", launches.Limits(65535, 1 << 26, 40))


def described(launch: launches.Launch) -> str:
    parameters = ", ".join(f"isda::{type(a).__name__}" for a in launch.arguments)
    grid = " x ".join(map(str, launch.blocks))
    return (
        f"void {launch.kernel}({parameters}): {grid} of {launch.threads}, "
        f"{launch.shared_bytes} bytes"
    )


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "arguments",
    [
        {"channels": 32, "queries": 9, "points": 4},
        {"channels": 32, "queries": 30, "points": 4},
        {"channels": 16, "queries": 30, "points": 3},
        {"channels": 128, "queries": 4, "points": 1},
        {"channels": 64, "queries": 31, "batch": 2},
        {"channels": 20, "queries": 31, "batch": 2},
        {"sizes": [(4, 9), (2, 9)], "queries": 54},
        {"sizes": [(4, 9), (2, 9)], "queries": 54, "on_device": True},
        {"sizes": [(4, 9), (2, 9)], "queries": 54, "starts": [18, 0]},
    ],
)
def test_python_knows_the_launches(kernels, lowered, dtype, arguments):
    case = Case(kernels, **{"sizes": LEVELS, "dtype": dtype, **arguments})
    case.forward()
    expected = launches.forward_launches(case.problem(), dtype)
    assert case.named_launches() == [described(launch) for launch in expected]
    for wanted in [(True, True), (True, False), (False, True)]:
        grads = dict(zip(["grad_value", "grad_weights"], wanted, strict=True))
        case.backward(*wanted)
        problem = case.problem(**{n: case.value for n, w in grads.items() if w})
        expected = launches.backward_launches(problem, dtype)
        assert case.named_launches() == [described(launch) for launch in expected]


def test_python_knows_the_launches_of_large_batches(kernels, monkeypatch):
    case = Case(kernels, LEVELS, batch=5, queries=30)
    monkeypatch.setattr(launches, "limits", launches.Limits(2, 1 << 26, 40))
    kernels.set_limits(2, 1 << 26, 40)
    try:
        case.forward()
        found = list(launches.forward_launches(case.problem(), torch.float32))
        assert case.named_launches() == [described(launch) for launch in found]
    finally:
        kernels.set_limits(65535, 1 << 26, 40)
    strides = [launch.arguments[0].value - case.value.data_ptr() for launch in found]
    assert strides == [i * 2 * case.value[0].numel() * 4 for i in range(3)]


@pytest.fixture
def emulated(kernels, lowered, monkeypatch):
    """NVRTC's operators, on the CPU, with the library in place of the driver."""
    listed = [
        subprocess.check_output(["nm", "-D", *option, kernels._name], text=True).splitlines()
        for option in ([], ["-C"])
    ]
    names = {
        plain.split(maxsplit=2)[-1]: mangled.split()[-1]
        for mangled, plain in zip(*listed, strict=True)
    }

    def run(device, steps):
        for step in steps:
            (symbol,) = [v for k, v in names.items() if k.startswith(f"void {step.kernel}(")]
            address = ctypes.cast(getattr(kernels, symbol), ctypes.c_void_p)
            blocks = (ctypes.c_int * 3)(*step.blocks)
            problem, sorting = (*map(ctypes.byref, step.arguments), None)[:2]
            sizes = (step.threads, step.shared_bytes)
            error = kernels.run_launch(address, blocks, *sizes, problem, sorting)
            assert error == b"", error.decode()

    monkeypatch.setattr(nvrtc, "_run", run)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("channels", [32, 20])
@pytest.mark.parametrize("levels", [2, 9])
def test_operators_without_nvcc(kernels, emulated, dtype, channels, levels):
    case = Case(kernels, LEVELS[:2] * (levels // 2) + LEVELS[:1] * (levels % 2), batch=3,
                channels=channels, dtype=dtype)  # fmt: skip
    shapes, starts = torch.tensor(case.sizes), torch.tensor(case.starts)
    # Views that are neither contiguous nor aligned.
    value = torch.cat([case.value[..., :1], case.value], -1)[..., 1:]
    inputs = (value, shapes, starts, case.locations, case.weights)
    output, grads = case.expected()
    assert error_of(nvrtc.forward(*inputs), output) < TOLERANCES[dtype][0]
    for deterministic in (False, True):
        found = nvrtc.backward(case.grad_output, *inputs, [True] * 3, deterministic)
        for tensor, grad, wanted in zip((value, *inputs[3:]), found, grads, strict=True):
            assert grad.dtype == tensor.dtype
            assert error_of(grad, wanted) < TOLERANCES[dtype][1]
        for mask in itertools.product([True, False], repeat=3):
            some = nvrtc.backward(case.grad_output, *inputs, mask, deterministic)
            for wanted, grad, whole in zip(mask, some, found, strict=True):
                assert grad.numel() == (whole.numel() if wanted else 0)
                exact = deterministic or whole is not found[0]  # else as atomics come
                if wanted:
                    assert error_of(grad, whole.double()) <= (0 if exact else 1e-2)


def test_empty_problems_without_nvcc():
    value, weights = torch.ones(2, 0, 3, 4), torch.ones(2, 5, 3, 1, 2)
    locations = torch.ones(2, 5, 3, 1, 2, 2)
    inputs = (value, torch.zeros(1, 2).long(), torch.zeros(1).long(), locations, weights)
    output = nvrtc.forward(*inputs)
    assert output.shape == (2, 5, 12) and not output.any()
    grads = nvrtc.backward(output, *inputs, [True, False, True], False)
    assert [g.shape for g in grads] == [value.shape, (0,), weights.shape]
    assert not any(grad.any() for grad in grads)


class Driver:
    """What binding a context asks of CUDA's driver, for a thread that has ``current``."""

    def __init__(self, current: int):
        self.current, self.retained = current, []

    def cuCtxGetCurrent(self, context):  # noqa: N802
        context._obj.value = self.current
        return 0

    def cuDeviceGet(self, handle, device):  # noqa: N802
        handle._obj.value = 10 + device
        return 0

    def cuDevicePrimaryCtxRetain(self, context, handle):  # noqa: N802
        self.retained.append(handle.value)
        context._obj.value = 100 + handle.value
        return 0

    def cuCtxSetCurrent(self, context):  # noqa: N802
        self.current = context.value
        return 0


@pytest.mark.parametrize("current, expected, retained", [(0, 111, [11]), (7, 7, [])])
def test_a_thread_without_a_context_gets_pytorchs(monkeypatch, current, expected, retained):
    driver = Driver(current)
    monkeypatch.setattr(nvrtc, "_driver", lambda: driver)
    nvrtc._bind_context(1)
    assert driver.current == expected and driver.retained == retained


@pytest.mark.skipif(nvrtc.obstacle() is not None, reason=f"NVRTC: {nvrtc.obstacle()}")
def test_nvrtc_compiles_and_keeps(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel = "isda::backward_rows<isda::Half, isda::Schedule<8, false>, 16, true, true>"
    with caplog.at_level(logging.WARNING):
        symbol, code = nvrtc.compiled(kernel, "sm_90")
    assert code.startswith(b"\x7fELF") and symbol in code
    assert f"Compiling {kernel} for sm_90, once; kept in {tmp_path}" in caplog.text
    monkeypatch.setattr(nvrtc, "_compile", lambda *_: pytest.fail("compiled again"))
    assert nvrtc.compiled(kernel, "sm_90") == (symbol, code)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match="cannot compile isda::nothing.*: .*nothing"):
        nvrtc.compiled("isda::nothing", "sm_90")
