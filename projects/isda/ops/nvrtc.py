"""The CUDA kernels where there is no nvcc: compiled at first use by NVRTC, which PyTorch brings.

On request only, by ``ISDA_MSDA_NVRTC=1``, and never at import. A kernel takes a few seconds, once:
it is kept in the user's cache. The operators are those of csrc/cuda/binding.cpp, and so are the
sources of the kernels. Symbols as in ``isda.ops.launches``.
"""

import ctypes
import functools
import hashlib
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from isda.ops import launches
from isda.ops.launches import Launch, Problem, Sorting

__all__ = ["backward", "forward", "obstacle", "requested"]

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent / "csrc" / "cuda"
_HEADERS = (
    *("problem.h", "device.cuh", "geometry.cuh", "rows.cuh", "rows_forward.cuh"),
    *("rows_backward.cuh", "generic.cuh", "deterministic.cuh"),
)
_PROGRAM = "".join(f'#include "{name}"\n' for name in _HEADERS[-4:])
_MOST = 2**31 - 1


def requested() -> bool:
    """Whether the user asks for it."""
    return os.environ.get("ISDA_MSDA_NVRTC") == "1"


@functools.cache
def obstacle() -> str | None:
    """Why it cannot be, if so; compiles nothing and needs no GPU."""
    if torch.version.cuda is None:
        return "PyTorch is built without CUDA"
    if not all((_SOURCES / name).exists() for name in _HEADERS):
        return f"the sources of the kernels are not in {_SOURCES}"
    try:
        _nvrtc()
    except OSError as error:
        return f"NVRTC does not load: {error}"
    return None


def forward(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """The output (B, Q, M·D) for inputs that have been checked."""
    batch, queries, heads = weights.shape[:3]
    size = (batch, queries, heads * value.shape[-1])
    if not value.numel() * weights.numel():
        return value.new_zeros(size)
    inputs = _Inputs(value, shapes, starts, locations, weights)
    output = value.new_empty(size)
    inputs.problem.output = output.data_ptr()
    _run(value.device, launches.forward_launches(inputs.problem, value.dtype))
    return output


def backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    output_mask: Sequence[bool],
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of value, locations and weights; empty where ``output_mask`` is False."""
    tensors = (value, locations, weights)
    if not value.numel() * weights.numel():
        return tuple(t.new_zeros(t.shape if m else 0) for t, m in zip(tensors, output_mask))
    inputs = _Inputs(value, shapes, starts, locations, weights)
    problem, grads = inputs.problem, _ready(grad_output)
    problem.grad_output = grads.data_ptr()
    grad_value = None
    if output_mask[0] and deterministic:
        grad_value = _deterministic_grad_value(inputs)
    elif output_mask[0]:
        grad_value = torch.zeros_like(inputs.value, dtype=weights.dtype)
        problem.grad_value = grad_value.data_ptr()
    grad_locations = grad_weights = None
    if output_mask[1] or output_mask[2]:  # one costs as much as both
        grad_locations = torch.empty_like(inputs.locations)
        grad_weights = torch.empty_like(inputs.weights)
        problem.grad_locations = grad_locations.data_ptr()
        problem.grad_weights = grad_weights.data_ptr()
    if problem.grad_value or problem.grad_weights:
        _run(value.device, launches.backward_launches(problem, value.dtype))
    results = (grad_value, grad_locations, grad_weights)
    return tuple(
        result.to(t.dtype) if wanted else t.new_empty(0)
        for t, result, wanted in zip(tensors, results, output_mask, strict=True)
    )


def _deterministic_grad_value(inputs: "_Inputs") -> Tensor:
    """Summed in an order that does not depend on chance; image by image, for memory's sake."""
    whole, value, weights = inputs.problem, inputs.value, inputs.weights
    bins = whole.heads * whole.levels * (2 * whole.tokens + 2)
    if max(bins, whole.samples) >= _MOST:
        raise RuntimeError("an image has too many tokens or samples for deterministic algorithms")
    grad_value = torch.empty_like(value)
    whole = Problem.from_buffer_copy(whole)
    whole.grad_value = grad_value.data_ptr()
    for image in range(whole.images):
        problem = launches.image(whole, image, 1, value.dtype, value.element_size())
        keys = torch.empty(whole.samples, dtype=torch.int32, device=value.device)
        found = launches.find_launch(problem, Sorting(keys=keys.data_ptr()), value.dtype)
        _run(value.device, [found])
        keys, order = keys.sort(stable=True)
        records = weights.new_empty(whole.samples, 4)
        ranges = torch.zeros(bins, 2, dtype=torch.int32, device=value.device)
        sorting = Sorting(*(t.data_ptr() for t in (keys, order, records, ranges)))
        _run(value.device, launches.collect_launches(problem, sorting, value.dtype))
    return grad_value


class _Inputs:
    """The inputs, ready to be read, and the problem that points into them."""

    def __init__(
        self, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
    ):
        self.value, self.locations, self.weights = map(_ready, (value, locations, weights))
        batch, tokens, heads, channels = value.shape
        queries, levels, points = weights.shape[1], *weights.shape[3:]
        counts = (batch, tokens, heads, channels, queries, levels, points, 0)
        too_long = max(2 * tokens + 2, 2 * levels * points, 16 * heads * channels, *counts)
        if too_long > _MOST:
            raise RuntimeError(f"a tensor is too large for the CUDA kernels: {too_long}")
        problem = self.problem = Problem(**dict(zip(Problem.COUNTS, counts, strict=True)))
        for name in ("value", "locations", "weights"):
            setattr(problem, name, getattr(self, name).data_ptr())
        on_host = shapes.device.type == starts.device.type == "cpu"
        if on_host and levels <= launches.LEVELS_BY_VALUE:
            for level, (pair, start) in enumerate(zip(shapes.tolist(), starts.tolist())):
                problem.levels_by_value[level][:] = (*pair, start)
        else:
            self.shapes = shapes.to(value.device).contiguous()
            self.starts = starts.to(value.device).contiguous()
            problem.shapes, problem.starts = self.shapes.data_ptr(), self.starts.data_ptr()


def _ready(tensor: Tensor) -> Tensor:
    """Contiguous, and aligned for reads of 16 bytes."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _run(device: torch.device, steps: Iterable[Launch]) -> None:
    stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
    with torch.cuda.device(device):
        _bind_context(device.index)
        for step in steps:
            function = _function(step.kernel, device.index)
            addresses = [ctypes.addressof(argument) for argument in step.arguments]
            arguments = (ctypes.c_void_p * len(addresses))(*addresses)
            threads, shared = (step.threads, 1, 1), step.shared_bytes
            _check_driver(
                _driver().cuLaunchKernel(
                    function, *step.blocks, *threads, shared, stream, arguments, None
                )
            )


def _bind_context(device: int) -> None:
    """Give this thread PyTorch's context of a device if it has none.

    CUDA's runtime does that itself, when it is first used in a thread. A thread of autograd may
    come here before that.
    """
    context, handle = ctypes.c_void_p(), ctypes.c_int()
    _check_driver(_driver().cuCtxGetCurrent(ctypes.byref(context)))
    if context.value:
        return
    _check_driver(_driver().cuDeviceGet(ctypes.byref(handle), device))
    _check_driver(_driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), handle))
    _check_driver(_driver().cuCtxSetCurrent(context))


@functools.cache
def _function(kernel: str, device: int) -> ctypes.c_void_p:
    """A kernel on a device, which is the current one."""
    major, minor = torch.cuda.get_device_capability(device)
    symbol, code = compiled(kernel, f"sm_{major}{minor}")
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _check_driver(_driver().cuModuleLoadData(ctypes.byref(module), code))
    _check_driver(_driver().cuModuleGetFunction(ctypes.byref(function), module, symbol))
    return function


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _check_driver(status: int) -> None:
    if status:
        message = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(message))
        text = message.value.decode() if message.value else "unknown"
        raise RuntimeError(f"CUDA error {status} in deformable attention: {text}")


def compiled(kernel: str, architecture: str) -> tuple[bytes, bytes]:
    """A kernel's symbol and its machine code, out of the user's cache if they are there.

    Raises:
        RuntimeError: NVRTC does not know the architecture, or finds an error.
    """
    sources = {name: (_SOURCES / name).read_bytes() for name in _HEADERS}
    options = ["-std=c++17", f"--gpu-architecture={architecture}"]
    digest = hashlib.sha256(repr((sources, options, kernel, _version())).encode()).hexdigest()
    path = _cache() / f"msda_{digest[:32]}.cubin"
    if path.exists():
        symbol, code = path.read_bytes().split(b"\n", 1)
        return symbol, code
    logger.warning("Compiling %s for %s, once; kept in %s", kernel, architecture, path.parent)
    symbol, code = _compile(kernel, sources, options)
    _keep(path, symbol + b"\n" + code)
    return symbol, code


def _keep(path: Path, content: bytes) -> None:
    """Write to the cache; a full or read-only one costs the next process the compilation only."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        logger.warning("The compiled kernel is not kept: %s cannot be written (%s)", path, error)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isda"


def _compile(kernel: str, sources: dict[str, bytes], options: list[str]) -> tuple[bytes, bytes]:
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    texts = (ctypes.c_char_p * len(sources))(*sources.values())
    names = (ctypes.c_char_p * len(sources))(*(name.encode() for name in sources))
    _check_nvrtc(
        nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), _PROGRAM.encode(), b"isda.cu", len(sources), texts, names
        )
    )
    try:
        _check_nvrtc(nvrtc.nvrtcAddNameExpression(program, kernel.encode()))
        arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), arguments):
            log = _content(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            raise RuntimeError(f"NVRTC {_version()} cannot compile {kernel}: {log or options}")
        symbol = ctypes.c_char_p()
        _check_nvrtc(nvrtc.nvrtcGetLoweredName(program, kernel.encode(), ctypes.byref(symbol)))
        return symbol.value, _content(program, "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _content(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check_nvrtc(getattr(_nvrtc(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check_nvrtc(getattr(_nvrtc(), f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _check_nvrtc(status: int) -> None:
    if status:
        _nvrtc().nvrtcGetErrorString.restype = ctypes.c_char_p
        text = _nvrtc().nvrtcGetErrorString(status).decode()
        raise RuntimeError(f"NVRTC {_version()}: {text}")


@functools.cache
def _version() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    """NVRTC of PyTorch's CUDA version: of its packages, or where the system looks for libraries."""
    major = torch.version.cuda.split(".")[0]
    if sys.platform == "win32":
        return ctypes.CDLL(f"nvrtc64_{major}0_0.dll")
    name, packages = f"libnvrtc.so.{major}", Path(torch.__file__).parents[1]
    places = (f"nvidia/*/lib/{name}*", f"torch/lib/{name}*")
    found = [path for place in places for path in packages.glob(place)]
    return ctypes.CDLL(str(found[0]) if found else name)
