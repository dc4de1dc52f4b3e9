"""Selection of the implementation of the operators."""

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from isda.ops import nvrtc

__all__ = [
    *("Backends", "announce", "backend", "backends", "load_extensions", "pure_requested"),
    "uses_nvrtc",
]

logger = logging.getLogger(__name__)

_NAMES = ("auto", "cuda", "cpu", "torch")
_ABSENT = "not built"  # how the reason of a missing kernel begins, as opposed to a broken one
_EXTENSIONS = {"cpu": "isda._msda_cpu", "cuda": "isda._msda_cuda"}
_forced: str | None = None  # by the context manager; else the environment decides


@dataclass(frozen=True)
class Backends:
    """What ``backends()`` reports."""

    chosen: str  # "auto", "cuda", "cpu" or "torch"
    built: tuple[str, ...]  # always ends in "torch"
    missing: dict[str, str]  # the others, and why

    def serving(self, device: torch.device | str) -> str:
        """The one that serves tensors on ``device``: "cuda", "cpu" or "torch"."""
        kind = torch.device(device).type
        return kind if kind in self.built and self.chosen != "torch" else "torch"


def backends() -> Backends:
    """List what is built and chosen.

    Raises:
        ValueError: ISDA_MSDA_BACKEND is none of the names.
    """
    missing = load_extensions()
    built = tuple(name for name in _EXTENSIONS if name not in missing)
    return Backends(_chosen(), (*built, "torch"), dict(missing))


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force an implementation, for all threads: "cuda", "cpu" or "torch"; or "auto" for none.

    Also by the environment: ``ISDA_MSDA_BACKEND``.

    Raises:
        ValueError: no such name.
        RuntimeError: it is not built.
    """
    global _forced
    _check(name, "backend()")
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


def pure_requested(device: torch.device) -> bool:
    """Whether PyTorch is forced to serve ``device``, whatever is built.

    Raises:
        ValueError: ISDA_MSDA_BACKEND is none of the names.
        RuntimeError: what is forced is not built, or is for another device.
    """
    chosen = _chosen()
    if chosen in _EXTENSIONS and chosen != device.type:
        raise RuntimeError(
            f"deformable attention is forced to the {chosen} backend, but its tensors are on "
            f"{device}: choose 'auto' or 'torch'"
        )
    return chosen == "torch"


@functools.cache
def announce(device_type: str) -> None:
    """Say once that a device is served by PyTorch for want of a compiled kernel, and why.

    Raises:
        RuntimeError: the kernel is built, but does not load.
    """
    reason = load_extensions().get(device_type)
    if reason is None:
        return
    if not reason.startswith(_ABSENT):
        raise RuntimeError(
            f"the compiled kernel of deformable attention for {device_type} is {reason}. Build it "
            "again (docs/INSTALL.md), or set ISDA_MSDA_BACKEND=torch in the environment to run "
            "slower without it; `isda doctor` looks at everything"
        )
    logger.info(
        "Deformable attention on %s runs in plain PyTorch; its faster kernel is %s",
        device_type,
        reason,
    )


def _chosen() -> str:
    if _forced is not None:
        return _forced
    name = os.environ.get("ISDA_MSDA_BACKEND") or "auto"
    if name != "auto":
        _check(name, "ISDA_MSDA_BACKEND")
    return name


def _check(name: str, source: str) -> None:
    if name not in _NAMES:
        raise ValueError(f"{source} must be one of {', '.join(_NAMES)}, got {name!r}")
    if name in load_extensions():
        raise RuntimeError(
            f"{source} asks for the {name} backend, which is {load_extensions()[name]}"
        )


@functools.cache
def load_extensions() -> dict[str, str]:
    """Load the compiled kernels, which registers them; the reasons of those that are not there."""
    missing = {}
    for name, module in _EXTENSIONS.items():
        if importlib.util.find_spec(module) is None:
            missing[name] = f"{_ABSENT} (there is no {module}; docs/INSTALL.md has the command)"
            continue
        try:
            importlib.import_module(module)
        # Of whatever a library's first steps may raise. Not raised here, where a process that
        # needs no kernel, or that is to report this one, would die of it: see announce.
        except (ImportError, OSError, RuntimeError, SystemError) as error:
            missing[name] = f"built but does not load: {error}"
    if uses_nvrtc():
        del missing["cuda"]
    elif nvrtc.requested() and "cuda" in missing:
        missing["cuda"] += f"; ISDA_MSDA_NVRTC=1 does not help: {nvrtc.obstacle()}"
    return missing


@functools.cache
def uses_nvrtc() -> bool:
    """Whether the CUDA kernels are compiled at first use: on request, where none are built."""
    absent = importlib.util.find_spec(_EXTENSIONS["cuda"]) is None
    return absent and nvrtc.requested() and nvrtc.obstacle() is None
