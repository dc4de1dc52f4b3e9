"""The benchmark at a size that takes seconds: what it measures is not tested, how it does is."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from isda.ops import backend, ms_deform_attn

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = ["--levels", "6x8,3x4", "--kinds", "encoder", "--batches", "1", "--threads", "1",
         "--rounds", "2", "--floor", "0", "--patience", "0", "--calm", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def benchmark():
    """Its modules as one name space; the script runs as a program, not as part of a package."""
    before = list(sys.path)
    yield runpy.run_path(str(FOLDER / "msda.py"))
    sys.path[:] = before


def test_results_are_written(benchmark, tmp_path, caplog):
    arguments = [*SMALL, "--contenders", "isda torch,gather", "--offsets", "wide", "--memory"]
    assert benchmark["main"]([*arguments, "--scaling", "--output", str(tmp_path / "o/cpu")]) == 0
    content = json.loads((tmp_path / "o/cpu.json").read_text())
    plain = [row for row in content["rows"] if not row["axis"]]
    assert {row["contender"] for row in plain} == {"grid_sample", "isda torch", "gather"}
    assert {row["passes"] for row in plain} == {"forward", "forward+backward"}
    assert all(len(row["seconds"]) == row["calm_rounds"] == 2 for row in plain)
    assert {row["axis"] for row in content["rows"]} == {"", "tokens", "batch", "points"}
    assert content["torch"] == torch.__version__ and content["processor"]
    text = (tmp_path / "o/cpu.md").read_text()
    assert "|encoder B1|wide|float32|forward|1|gather|2|" in text
    assert (tmp_path / "o/cpu.png").stat().st_size > 10_000


def test_what_computes_something_else_is_left_out(benchmark, monkeypatch, caplog):
    def wrong(device, wanted, reference_cuda):
        contenders, left_out = benchmark["by_name"](device, ["isda torch"], reference_cuda)
        contender = contenders["isda torch"]
        contenders["isda torch"] = type(contender)(lambda *inputs: 1.001 * contender(*inputs))
        return contenders, left_out

    main = benchmark["main"]
    monkeypatch.setitem(main.__globals__, "by_name", wrong)
    with caplog.at_level("INFO"):
        assert main([*SMALL, "--passes", "forward", "--offsets", "init"]) == 1
    assert "isda torch DOES NOT AGREE, and is left out" in caplog.text
    assert "|isda torch|" not in caplog.text


def test_ratios_are_of_the_same_round(benchmark):
    sizes = {"kind": "encoder", "batch": 1, "offsets": "wide", "dtype": "float32", "tokens": 9}
    row = benchmark["Row"](
        **sizes, points=1, passes="forward", threads=1, contender="x", calm_rounds=3,
        seconds=[1.0, 2.0, 8.0], references={"grid_sample": [10.0, 10.0, 16.0]},
    )  # fmt: skip
    assert row.speedup("grid_sample") == (5.0, 3.5, 7.5)
    assert row.milliseconds == 2000
    assert row.speedup("2020 kernel") is None


class Clocks:
    """A processor that launches, and a GPU that does one thing after the other."""

    def __init__(self):
        self.host = self.device = 0.0

    def now(self) -> float:
        return self.host

    def run(self, seconds: float) -> None:
        self.device = max(self.device, self.host) + seconds

    def event(self, enable_timing: bool) -> "Event":
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, clocks: Clocks):
        self.clocks, self.time = clocks, None

    def record(self) -> None:
        self.clocks.run(0)
        self.time = self.clocks.device

    def synchronize(self) -> None:
        self.clocks.host = max(self.clocks.host, self.time)

    def elapsed_time(self, end: "Event") -> float:
        return 1000 * (end.time - self.time)


def test_time_on_a_gpu_is_not_that_of_launching(benchmark, monkeypatch):
    clocks, calls = Clocks(), []

    def call():
        clocks.host += 1e-3  # of Python
        clocks.run(6e-5)
        calls.append(clocks.host)

    monkeypatch.setattr(torch.cuda, "Event", clocks.event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: clocks.run(cycles / 1.5e9))
    stopwatch = benchmark["Stopwatch"]("cuda", 1, 0, floor=0.1, flush=False)
    stopwatch.now = clocks.now
    assert stopwatch._seconds(call) == pytest.approx(6e-5)
    assert len(calls) > 20 and clocks.host < 0.12


def test_time_ends_before_the_work(benchmark, tmp_path, caplog):
    arguments = [*SMALL, "--contenders", "isda torch", "--offsets", "wide", "--within", "0"]
    assert benchmark["main"]([*arguments, "--output", str(tmp_path / "cpu")]) == 0
    content = json.loads((tmp_path / "cpu.json").read_text())
    assert content["rows"] == []
    assert "encoder B1 wide float32 forward: no time left" in content["left_out"]


def test_what_asks_for_too_much_memory_is_left_out(benchmark, caplog):
    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory")

    calls = {"large": too_large, "small": lambda: None}
    with caplog.at_level("INFO"):
        assert list(benchmark["within_memory"](calls, "encoder B8")) == ["small"]
    assert "left out of encoder B8: large: too little memory" in caplog.text


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("offsets", ["init", "wide", "uniform"])
def test_workloads_are_those_of_the_models(benchmark, kind, offsets):
    workload = benchmark["Workload"](kind, 2, offsets, torch.bfloat16)
    inputs = workload.inputs("cpu")
    queries = 22323 if kind == "encoder" else 300
    assert inputs.value.shape == (2, 22323, 8, 32) and inputs.value.dtype == torch.bfloat16
    assert inputs.locations.shape == (2, queries, 8, 4, 4, 2)
    assert inputs.locations.dtype == inputs.weights.dtype == torch.float32
    sums = inputs.weights.sum((-1, -2))
    torch.testing.assert_close(sums, torch.ones_like(sums))
    if kind == "encoder":
        cells = (inputs.locations[0, 0] * inputs.shapes.flip(-1)[:, None] - 0.5)[:, 0]
        spread = {"init": 6, "wide": 20, "uniform": 200}[offsets]
        assert cells.abs().max() < spread


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--offsets", "narrow"], "--offsets: narrow is none of init, wide, uniform"),
        (["--dtypes", "float8"], "--dtypes: float8 is none of float32, bfloat16, float16"),
        (["--device", "cuda"], "PyTorch sees no GPU"),
        (["--cpu-time", "--threads", "1,2"], "--cpu-time adds threads up"),
    ],
)
def test_wrong_arguments(benchmark, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        benchmark["main"](arguments)
    assert message in capsys.readouterr().err


def test_an_unknown_contender_is_named(benchmark):
    with pytest.raises(SystemExit, match="--contenders: no warp;"):
        benchmark["main"]([*SMALL, "--contenders", "warp"])


def test_the_source_of_2020_is_repaired(benchmark):
    repaired = benchmark["by_name"].__globals__["repaired"]
    source = (
        'AT_DISPATCH_FLOATING_TYPES(value.type(), "forward", ([&] {}));\n'
        'AT_ASSERTM(value.type().is_cuda(), "value must be a CUDA tensor");\n'
    )
    assert repaired(source) == source.replace("(value.type(), ", "(value.scalar_type(), ")


def test_memory_is_counted_in_pages(benchmark):
    peak_memory = benchmark["peak_memory"]
    if peak_memory(lambda: None, "cpu") is None:
        pytest.skip("only Linux tells the peak")
    size = 32 << 20
    peak = peak_memory(lambda: torch.ones(size // 4), "cpu")
    assert 0.98 * size < peak < 1.1 * size  # pages are counted in batches
    assert peak_memory(lambda: None, "cpu") < size / 16


def test_memory_of_the_operator(benchmark):
    """Output or gradients and, per thread, one repacked head; no term of queries times points."""
    workload = benchmark["Workload"]("encoder", 1, "wide", levels=((96, 96), (48, 48)))
    inputs = workload.inputs("cpu")
    head = inputs.value[:, :, 0].numel() * 4
    if "cpu" not in benchmark["by_name"].__globals__["ops"].backends().built:
        pytest.skip("the CPU kernels are not built")
    leaves = inputs.leaves()

    def forward():
        with torch.no_grad():
            return ms_deform_attn(leaves[0], inputs.shapes, inputs.starts, *leaves[1:])

    with backend("cpu"):
        output = ms_deform_attn(leaves[0], inputs.shapes, inputs.starts, *leaves[1:])
        forward_peak = benchmark["peak_memory"](forward, "cpu")
        backward_peak = benchmark["peak_memory"](
            lambda: torch.autograd.grad(output, leaves, inputs.grad, retain_graph=True), "cpu"
        )
    if forward_peak is None:
        pytest.skip("only Linux tells the peak")
    slack = 3 << 20  # what else the process does; a term of that kind would be 9 MB
    assert forward_peak < inputs.result_bytes(gradients=False) + 1.1 * head + slack
    assert backward_peak < inputs.result_bytes(gradients=True) + 2.2 * head + slack
