"""Choice of CUDA kernels for a problem, as csrc/cuda/launch.cuh and plan.h choose them.

Only ``nvrtc`` needs it; compiled extensions have their own. Symbols as in csrc/cuda/problem.h:
B images, S tokens, M heads, D channels, Q queries, L levels, P points.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

import torch

__all__ = [
    *("LEVELS_BY_VALUE", "Launch", "Problem", "Sorting", "backward_launches"),
    *("collect_launches", "find_launch", "forward_launches", "image"),
]

LEVELS_BY_VALUE = 8
_TILE_SIDE = 8
_EXTENTS_ROOM = 48 << 10  # bytes of shared memory
_BYTES_PER_EXTENTS = 16
_GENERIC_THREADS = 256
_NAMES = {
    torch.float64: "double",
    torch.float32: "float",
    torch.bfloat16: "isda::BFloat16",
    torch.float16: "isda::Half",
}


@dataclass
class Limits:
    """As in plan.h. Tests lower them."""

    blocks: int = 65535
    tokens: int = (1 << 27) - 1
    bags_that_fill_it: int = 8192


limits = Limits()


class Problem(ctypes.Structure):
    """What kernels take, laid out as in problem.h."""

    POINTERS = (
        *("value", "locations", "weights", "grad_output", "output"),
        *("grad_value", "grad_locations", "grad_weights", "shapes", "starts"),
    )
    COUNTS = ("images", "tokens", "heads", "channels", "queries", "levels", "points", "tiled")
    _fields_ = [
        *((name, ctypes.c_void_p) for name in POINTERS),
        ("levels_by_value", ctypes.c_longlong * 3 * LEVELS_BY_VALUE),
        *((name, ctypes.c_int) for name in COUNTS),
    ]

    @property
    def samples(self) -> int:
        """Of one image."""
        return self.queries * self.heads * self.levels * self.points


class Sorting(ctypes.Structure):
    """What the deterministic kernels take beside it."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("keys", "order", "records", "ranges")]


@dataclass
class Launch:
    """A kernel, named as in C++, and what it is launched with."""

    kernel: str
    blocks: tuple[int, int, int]
    threads: int
    shared_bytes: int
    arguments: tuple[ctypes.Structure, ...]


@dataclass
class _Schedule:
    """As in rows.cuh."""

    lanes: int
    split: bool

    @property
    def name(self) -> str:
        return f"isda::Schedule<{self.lanes}, {str(self.split).lower()}>"

    @property
    def bags(self) -> int:
        return 4 if self.split else _TILE_SIDE**2

    @property
    def threads(self) -> int:
        if self.split:
            return 128
        return self.bags * self.lanes if self.lanes < 4 else 256


def forward_launches(problem: Problem, dtype: torch.dtype) -> Iterator[Launch]:
    """Those for the output of a problem that is not empty."""
    if not _has_rows(problem, dtype):
        elements = problem.images * problem.queries * problem.heads * problem.channels
        yield _generic("forward_generic", dtype, elements, problem)
        return
    schedule = _Schedule(problem.channels * dtype.itemsize // 16, _splits_bags(problem))
    kernel = f"isda::forward_rows<{_NAMES[dtype]}, {schedule.name}, {_unrolled(problem, schedule)}>"
    yield from _rows(kernel, schedule, problem, dtype)


def backward_launches(problem: Problem, dtype: torch.dtype) -> Iterator[Launch]:
    """Those for the gradients that the problem points to."""
    if not _has_rows(problem, dtype):
        bags = problem.images * problem.queries * problem.heads
        yield _generic("backward_generic", dtype, bags * 32, problem)
        return
    of_value, of_geometry = bool(problem.grad_value), bool(problem.grad_weights)
    both = of_value and of_geometry
    schedule = _Schedule(problem.channels // 4, both and _splits_bags(problem))
    unrolled = _unrolled(problem, schedule) if both else 0
    flags = f"{str(of_value).lower()}, {str(of_geometry).lower()}"
    kernel = f"isda::backward_rows<{_NAMES[dtype]}, {schedule.name}, {unrolled}, {flags}>"
    yield from _rows(kernel, schedule, problem, dtype)


def find_launch(problem: Problem, sorting: Sorting, dtype: torch.dtype) -> Launch:
    """The first half of the deterministic gradient of the values, for one image."""
    return _generic("find_bins_kernel", _computed(dtype), problem.samples, problem, sorting)


def collect_launches(problem: Problem, sorting: Sorting, dtype: torch.dtype) -> list[Launch]:
    """The second half."""
    rows = problem.tokens * problem.heads
    return [
        _generic("list_bins_kernel", _computed(dtype), problem.samples, problem, sorting),
        _generic("collect_grads_kernel", dtype, rows * 32, problem, sorting),
    ]


def image(problem: Problem, first: int, count: int, dtype: torch.dtype, grad_value: int) -> Problem:
    """The problem of some of its images; ``grad_value`` is a number's bytes in that gradient."""
    stored, computed = dtype.itemsize, _computed(dtype).itemsize
    cells = problem.tokens * problem.heads * problem.channels
    channels = problem.queries * problem.heads * problem.channels
    strides = {
        "value": cells * stored,
        "grad_value": cells * grad_value,
        "output": channels * stored,
        "grad_output": channels * stored,
        "locations": problem.samples * 2 * computed,
        "grad_locations": problem.samples * 2 * computed,
        "weights": problem.samples * computed,
        "grad_weights": problem.samples * computed,
    }
    part = Problem.from_buffer_copy(problem)
    part.images = count
    for name, stride in strides.items():
        if getattr(problem, name):
            setattr(part, name, getattr(problem, name) + first * stride)
    return part


def _rows(
    kernel: str, schedule: _Schedule, problem: Problem, dtype: torch.dtype
) -> Iterator[Launch]:
    tiles = 0 if schedule.split else _tiles(problem)
    blocks = tiles or -(-problem.queries // schedule.bags)
    shared = _BYTES_PER_EXTENTS * problem.levels * problem.points
    most = min(limits.blocks, limits.tokens // problem.tokens)
    for first in range(0, problem.images, most):
        part = image(problem, first, min(most, problem.images - first), dtype, 4)
        part.tiled = tiles > 0
        grid = (blocks, problem.heads, part.images)
        yield Launch(kernel, grid, schedule.threads, shared, (part,))


def _generic(name: str, dtype: torch.dtype, threads: int, *arguments: ctypes.Structure) -> Launch:
    blocks = -(-threads // _GENERIC_THREADS)
    kernel = f"isda::{name}<{_NAMES[dtype]}>"
    return Launch(kernel, (blocks, 1, 1), _GENERIC_THREADS, 0, arguments)


def _computed(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _has_rows(problem: Problem, dtype: torch.dtype) -> bool:
    return (
        dtype != torch.float64
        and problem.channels in (16, 32, 64, 128)
        and problem.heads <= limits.blocks
        and problem.levels * problem.points * _BYTES_PER_EXTENTS <= _EXTENTS_ROOM
        and problem.tokens <= limits.tokens
    )


def _splits_bags(problem: Problem) -> bool:
    return problem.queries * problem.heads <= limits.bags_that_fill_it


def _unrolled(problem: Problem, schedule: _Schedule) -> int:
    return 16 if not schedule.split and problem.levels * problem.points == 16 else 0


def _tiles(problem: Problem) -> int:
    """Their number if the queries are the tokens of levels that follow each other, else 0."""
    if problem.shapes or problem.queries != problem.tokens:
        return 0
    token = count = 0
    for height, width, start in problem.levels_by_value[: problem.levels]:
        if start != token:
            return 0
        token += height * width
        count += -(-height // _TILE_SIDE) * -(-width // _TILE_SIDE)
    return count if token == problem.tokens else 0
