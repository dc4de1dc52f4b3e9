"""Faster starts of programs: imports that can be put off are put off.

torch._dynamo takes as long to import as PyTorch itself. torchvision imports it for the sake of one
function that ``roi_align`` may call on GPUs, and Detectron2's convolutions to ask whether they are
being compiled, which ``torch.compiler`` knows as well. Whoever compiles imports it all the same.

Python's collector goes through all that has been imported, again and again as it grows, for
garbage that is not there: a tenth of the time in which one image gets its masks.
"""

import contextlib
import gc
import importlib
import importlib.abc
import sys
import types
from collections.abc import Callable, Iterator

__all__ = ["before_import_of", "put_off_dynamo", "spare_convolutions_dynamo", "uncollected"]

_ASKING = "torchvision.ops.roi_align"
_ASKED = "torch._dynamo.utils"
_FUNCTION = "is_compile_supported"


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """For a block of imports: what it makes is not looked through for garbage, then or later."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def put_off_dynamo() -> None:
    """Let ``torchvision`` import without ``torch._dynamo``, unless either was imported before."""
    if _ASKED not in sys.modules and _ASKING not in sys.modules:
        before_import_of(_ASKING, _lay_out_stand_in)


def before_import_of(name: str, action: Callable[[], None]) -> None:
    """Call ``action()`` once, right before a module is imported; now, if it has been already."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Watcher(name, action))


def spare_convolutions_dynamo() -> None:
    """Let Detectron2's convolutions ask ``torch.compiler`` whether they are being compiled."""
    import torch
    from detectron2.layers import wrappers

    wrappers.check_if_dynamo_compiling = torch.compiler.is_compiling


class _Watcher(importlib.abc.MetaPathFinder):
    """Finds nothing; acts when a module is looked for."""

    def __init__(self, name: str, action: Callable[[], None]):
        self.name, self.action = name, action

    def find_spec(self, name: str, path=None, target=None) -> None:
        if name == self.name:
            sys.meta_path.remove(self)
            self.action()


def _lay_out_stand_in() -> None:
    if _ASKED not in sys.modules:
        sys.modules[_ASKED] = _StandIn(_ASKED)


class _StandIn(types.ModuleType):
    """Gives way to the module itself as soon as it is asked for anything."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(_ASKED) is self:
            del sys.modules[_ASKED]
        return _is_compile_supported if name == _FUNCTION else _real(name)


def _is_compile_supported(device_type: str) -> bool:
    return _real(_FUNCTION)(device_type)


def _real(name: str):
    return getattr(importlib.import_module(_ASKED), name)
