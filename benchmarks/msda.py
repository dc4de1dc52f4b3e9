#!/usr/bin/env python3
"""Multi-scale deformable attention: our backends against grid_sample and other operators.

    python benchmarks/msda.py                          # 1 and 2 threads; some ten minutes
    python benchmarks/msda.py --scaling --output docs/benchmarks/cpu   # and time over size
    python benchmarks/msda.py --device cuda --reference-cuda ../Deformable-DETR/models/ops

Every contender must agree with grid_sample in float64 before it is timed. All run in one process,
in rounds of rotating order; a ratio is the median over the rounds of (time of the reference / time
of the contender in the same round), with its quartiles. Times include allocation.

A machine may be taken away unseen, by its host or by other programs. On a CPU every round lies
between two runs of a fixed product of matrices; where one of them loses more than ``--calm`` of its
time, the round does not count. A row with fewer than three calm rounds is made of all, and marked
``~``. On a GPU the clocks are recorded, and it is busy until a call has been launched: its time is
that of the GPU, not of Python.

Other operators take part where they can be imported: torch-ms-deform-attn, mmcv. That of
Deformable DETR, of 2020, is compiled from ``--reference-cuda``, its folder ``models/ops``.
"""

import argparse
import itertools
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_PROC_BIND", "close")  # before PyTorch: no two threads on one core
os.environ.setdefault("OMP_PLACES", "cores")
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks", "projects")]

import torch  # noqa: E402
from contenders import Contender, by_name  # noqa: E402
from measuring import Stopwatch, peak_memory  # noqa: E402
from results import Row, machine, print_header, print_row, write  # noqa: E402
from workloads import OFFSETS, Workload, parse_levels  # noqa: E402

PASSES = ("forward", "forward+backward")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
ODD_SIZES = (  # levels, heads, channels, points
    (((5, 7), (3, 4)), 2, 4, 3),
    (((9, 6), (1, 3), (4, 4)), 3, 20, 1),
    (((25, 42), (13, 21)), 8, 32, 4),
)

logger = logging.getLogger("msda")


def main(arguments: Sequence[str] | None = None) -> int:
    begun = time.monotonic()
    args = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    contenders, left_out = by_name(args.device, args.contenders, args.reference_cuda)
    for line in left_out:
        logger.info("left out: %s", line)
    about = machine(args.device)
    logger.info("%s", about)
    torch.set_num_threads(max(args.threads))
    contenders, failed = agreeing(contenders, args)
    stopwatch = Stopwatch(
        args.device, args.calm, args.patience, args.floor, args.flush, args.cpu_time
    )
    stopwatch.learn(args.threads)
    print_header()
    rows = []
    for workload, passes in itertools.product(workloads(args), args.passes):
        if time.monotonic() - begun > args.within:
            left_out.append(f"{name_of(workload, passes)}: no time left")
            continue
        rows += compared(workload, passes, contenders, stopwatch, args)
    if args.scaling:
        rows += scaled(contenders, stopwatch, args)
    memory = peaks(contenders, args) if args.memory else []
    command = shlex.join(["python", "benchmarks/msda.py", *(arguments or sys.argv[1:])])
    if args.output:
        about |= {"command": command, "clocks": stopwatch.clocks(), "left_out": left_out}
        write(args.output, about, rows, memory)
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words = {"type": lambda text: [word for word in text.split(",") if word]}
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--kinds", **words, default=["encoder", "decoder"])
    add("--batches", type=_integers, help="default: 1,2; on a GPU 1,2,8")
    add("--offsets", **words, default=list(OFFSETS))
    add("--passes", **words, default=list(PASSES))
    add("--dtypes", **words, default=["float32"], help="of float32,bfloat16,float16")
    add("--threads", type=_integers, help="default: 1,2; on a GPU 1")
    add("--contenders", **words, default=[], help="only these; the reference always runs")
    add("--reference-cuda", type=Path, help="Deformable DETR's folder models/ops, to be compiled")
    add("--rounds", type=int, default=9)
    add("--floor", type=float, default=0.1, help="seconds that one timing fills with calls")
    add("--calm", type=float, default=0.1, help="share of its time that the probe may lose")
    add("--patience", type=float, default=300, help="seconds to wait for a calm machine, in all")
    add("--flush", action="store_true", help="empty a GPU's L2 cache before every call")
    add("--cpu-time", action="store_true", help="for busy machines: the processor's time, 1 thread")
    add("--within", type=float, default=math.inf, help="seconds after which nothing is begun")
    add("--scaling", action="store_true", help="also time over tokens, batch and points")
    add("--memory", action="store_true", help="also peak memory beyond the inputs")
    add("--levels", type=parse_levels, help="default: 100x168,50x84,25x42,13x21")
    add("--output", type=Path, help="write PATH.json, PATH.md and PATH.png")
    args = parser.parse_args(arguments)
    on_gpu = args.device == "cuda"
    args.batches = args.batches or ([1, 2, 8] if on_gpu else [1, 2])
    args.threads = args.threads or ([1] if on_gpu else [1, 2])
    if args.cpu_time and (on_gpu or args.threads != [1]):
        parser.error("--cpu-time adds threads up: it is for --device cpu and --threads 1")
    if on_gpu and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU")
    for name, given, known in (
        ("--kinds", args.kinds, ("encoder", "decoder")),
        ("--offsets", args.offsets, OFFSETS),
        ("--passes", args.passes, PASSES),
        ("--dtypes", args.dtypes, DTYPES),
    ):
        if unknown := set(given) - set(known):
            parser.error(f"{name}: {', '.join(sorted(unknown))} is none of {', '.join(known)}")
    return args


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def workloads(args: argparse.Namespace) -> list[Workload]:
    sizes = {"levels": args.levels} if args.levels else {}
    return [
        Workload(kind, batch, offsets, DTYPES[dtype], **sizes)
        for dtype, kind, batch, offsets in itertools.product(
            args.dtypes, args.kinds, args.batches, args.offsets
        )
    ]


def agreeing(
    contenders: dict[str, Contender], args: argparse.Namespace
) -> tuple[dict[str, Contender], list[str]]:
    """Those that compute the right thing, and the names of the others."""
    good, failed = {}, []
    for name, contender in contenders.items():
        error, limit = largest_error(contender, contenders, args)
        if error < limit:
            good[name] = contender
        else:
            failed.append(name)
        verdict = "agrees" if error < limit else "DOES NOT AGREE, and is left out"
        logger.info("%s %s: largest error %.1e of at most %.0e", name, verdict, error, limit)
    return good, failed


def largest_error(
    contender: Contender, contenders: dict[str, Contender], args: argparse.Namespace
) -> tuple[float, float]:
    """Relative to the largest magnitude, over output and gradients, against float64."""
    reference = contenders["grid_sample"]
    dtype = torch.float64 if torch.float64 in contender.dtypes else torch.float32
    worst = 0.0
    for levels, heads, channels, points in ODD_SIZES:
        sizes = {"heads": heads, "channels": channels, "points": points, "queries": 23}
        workload = Workload("decoder", 2, "uniform", dtype, levels=levels, **sizes)
        inputs = workload.inputs(args.device)
        expected = with_gradients(reference, inputs.double())
        found = with_gradients(contender, inputs)
        keep = inputs.away_from_borders()
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            one, other = (t[keep] if i == 2 else t for t in (one.double(), other))
            worst = max(worst, ((one - other).abs().max() / other.abs().max()).item())
    return worst, TOLERANCE[dtype]


def with_gradients(contender: Contender, inputs) -> list[torch.Tensor]:
    leaves = inputs.leaves()
    output = contender(leaves[0], inputs.shapes, inputs.starts, *leaves[1:])
    return [output.detach(), *torch.autograd.grad(output, leaves, inputs.grad)]


def call_of(contender: Contender, inputs, passes: str) -> Callable[[], None]:
    leaves = inputs.leaves()

    def forward() -> None:
        with torch.no_grad():
            contender(leaves[0], inputs.shapes, inputs.starts, *leaves[1:])

    def both() -> None:
        output = contender(leaves[0], inputs.shapes, inputs.starts, *leaves[1:])
        torch.autograd.grad(output, leaves, inputs.grad)

    return forward if passes == "forward" else both


def compared(
    workload: Workload,
    passes: str,
    contenders: dict[str, Contender],
    stopwatch: Stopwatch,
    args: argparse.Namespace,
) -> list[Row]:
    """Every contender's row of one workload, for every number of threads; printed as well."""
    inputs = workload.inputs(args.device)
    calls = {}
    for name, contender in contenders.items():
        # One that knows no half types is measured in float32: that is what its users have.
        fits = workload.dtype in contender.dtypes
        calls[name] = call_of(contender, inputs if fits else inputs.float(), passes)
    if args.device == "cuda":
        calls = within_memory(calls, name_of(workload, passes))
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        times, calm = stopwatch.in_rounds(calls, args.rounds, threads)
        for name, seconds in times.items():
            references = {r: times[r] for r in ("grid_sample", *PEERS) if r in times}
            row = Row(**workload.described(), passes=passes, threads=threads, contender=name,
                      calm_rounds=calm, seconds=seconds, references=references)  # fmt: skip
            print_row(row)
            rows.append(row)
    return rows


PEERS = ("torch-ms-deform-attn", "2020 kernel")


def name_of(workload: Workload, passes: str) -> str:
    about = workload.described()
    return f"{about['kind']} B{about['batch']} {about['offsets']} {about['dtype']} {passes}"


def within_memory(calls: dict[str, Callable[[], None]], what: str) -> dict[str, Callable]:
    """Those that do not ask for more memory than the GPU has."""
    fitting = {}
    for name, call in calls.items():
        try:
            call()
        except torch.OutOfMemoryError:
            logger.info("left out of %s: %s: too little memory", what, name)
            torch.cuda.empty_cache()
            continue
        fitting[name] = call
    return fitting


def scaled(
    contenders: dict[str, Contender], stopwatch: Stopwatch, args: argparse.Namespace
) -> list[Row]:
    """Time over tokens, batch and points, each alone."""
    base = Workload("encoder", 1, "wide", **({"levels": args.levels} if args.levels else {}))
    smaller = [tuple((max(1, int(h * f)), max(1, int(w * f))) for h, w in base.levels)
               for f in (0.25, 0.5, 0.707, 1, 1.414)]  # fmt: skip
    series = {
        "tokens": [base.changed(levels=levels) for levels in smaller],
        "batch": [base.changed(batch=batch, levels=smaller[1]) for batch in (1, 2, 4, 8)],
        "points": [base.changed(points=points, levels=smaller[1]) for points in (1, 2, 4, 8)],
    }
    rows = []
    for axis, workload_list in series.items():
        for workload, passes in itertools.product(workload_list, args.passes):
            found = compared(workload, passes, contenders, stopwatch, args)
            rows += [Row(**{**asdict(row), "axis": axis}) for row in found]
    return rows


@dataclass(frozen=True)
class Memory:
    """Peak memory of one call beyond its inputs, beside the bytes of what it returns."""

    kind: str
    batch: int
    passes: str
    contender: str
    peak_bytes: int | None  # None where it cannot be told
    result_bytes: int


def peaks(contenders: dict[str, Contender], args: argparse.Namespace) -> list[dict]:
    torch.set_num_threads(args.threads[0])
    found = []
    for workload in workloads(args):
        if workload.offsets != args.offsets[0] or workload.dtype != DTYPES[args.dtypes[0]]:
            continue
        inputs = workload.inputs(args.device)
        for passes, (name, contender) in itertools.product(args.passes, contenders.items()):
            calls = {name: call_of(contender, inputs, passes)}
            if args.device == "cuda" and not within_memory(calls, name_of(workload, passes)):
                continue
            peak = peak_memory(calls[name], args.device)
            memory = Memory(workload.kind, workload.batch, passes, name, peak,
                            inputs.result_bytes(gradients=passes != "forward"))  # fmt: skip
            logger.info("%s", memory)
            found.append(asdict(memory))
    return found


if __name__ == "__main__":
    sys.exit(main())
