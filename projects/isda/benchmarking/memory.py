"""Peak memory: CUDA counts for itself; on a CPU Linux does, in pages that are resident."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["memory_is_measurable", "peak_beyond", "peak_memory", "reset_peak_memory"]

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def memory_is_measurable(device: torch.device) -> bool:
    """Whether it can be told: on a CPU it takes Linux, and its leave to reset the peak."""
    try:
        reset_peak_memory(device)
    except OSError:
        return False
    return True


def reset_peak_memory(device: torch.device) -> int:
    """Forget the peak so far; return the bytes in use now.

    Raises:
        OSError: a CPU's memory cannot be told here.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if not _RESET.exists():
        raise OSError("this system does not let a process reset its memory peak")
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # what is freed must not hide what is needed next
    _RESET.write_text("5", encoding="utf-8")
    return _resident("VmRSS")


def peak_memory(device: torch.device) -> int:
    """Most bytes in use since the last reset: allocated by PyTorch, or resident on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return _resident("VmHWM")


def peak_beyond(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that one call needs at most beyond what is in use before it, results included.

    None where it cannot be told.
    """
    if not memory_is_measurable(device):
        call()
        return None
    before = reset_peak_memory(device)
    result = call()
    peak = peak_memory(device) - before
    del result
    return peak


def _resident(entry: str) -> int:
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {entry}")
