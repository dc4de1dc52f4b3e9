"""Pickles of NumPy arrays and Python's plain types, read without calling anything that they name.

A pickle is a program: it names functions, and calls them. Here a name leads to a function of this
module or to an error. Not even NumPy's own functions are called, as their state in a hostile file
could describe memory that is not there.
"""

import codecs
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

__all__ = ["SAFE_NAMES", "ForbiddenNameError", "load_plain", "with_arrays"]

_DTYPE = re.compile(r"[biufcSU]\d{1,5}")


class ForbiddenNameError(pickle.UnpicklingError):
    """A pickle names what is not plain data; the text is that name."""


class DType:
    """Stands for ``numpy.dtype``: numbers and strings, neither objects nor structures."""

    def __init__(self, code: str, *_: Any):
        if not _DTYPE.fullmatch(code):
            raise ForbiddenNameError(f"a NumPy array of type {code}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        _, order, *structure = state[:5]
        if any(part is not None for part in structure):
            raise ForbiddenNameError("a structured NumPy array")
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class Array:
    """Stands for ``numpy.ndarray``; ``value`` is the array, in the machine's byte order."""

    def __init__(self, *_: Any):
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        *_, shape, dtype, is_fortran, data = state
        self.value = _array(data, dtype, shape, "F" if is_fortran else "C")


def _array(data: bytes | bytearray | str, dtype: DType, shape: tuple, order: str) -> np.ndarray:
    data = data.encode("latin1") if isinstance(data, str) else data  # of Python 2
    array = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)
    return array.astype(array.dtype.newbyteorder("="))  # a copy: the buffer cannot be written


def _reconstruct(*_: Any) -> Array:
    return Array()


def _from_buffer(data: bytes, dtype: DType, shape: tuple, order: str) -> Array:
    array = Array()
    array.value = _array(data, dtype, shape, order)
    return array


def _scalar(dtype: DType, data: bytes | str) -> np.generic:
    return _array(data, dtype, (), "C")[()]


def _encoded(text: str, encoding: str) -> bytes:
    """Bytes as Python 3 writes them for Python 2."""
    if codecs.lookup(encoding).name not in ("iso8859-1", "ascii", "utf-8"):
        raise ForbiddenNameError(f"the encoding {encoding}")
    return text.encode(encoding)


def _bytes(*arguments: Any) -> bytes:
    return bytes(_bytearray(*arguments))


def _bytearray(content: bytes | str = b"", encoding: str = "latin1") -> bytearray:
    if isinstance(content, int):  # a length, of any size
        raise pickle.UnpicklingError("a buffer without content")
    return bytearray(content, encoding) if isinstance(content, str) else bytearray(content)


#: What a pickle may name, as written by Python 2 and 3 and by NumPy before and since version 2.
SAFE_NAMES: dict[str, Callable] = {
    "numpy.dtype": DType,
    "numpy.ndarray": Array,
    "_codecs.encode": _encoded,
    "collections.OrderedDict": OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):
    SAFE_NAMES[f"{_core}.multiarray._reconstruct"] = _reconstruct
    SAFE_NAMES[f"{_core}.multiarray.scalar"] = _scalar
    SAFE_NAMES[f"{_core}.numeric._frombuffer"] = _from_buffer
for _builtins in ("builtins", "__builtin__"):
    SAFE_NAMES |= {f"{_builtins}.{kind.__name__}": kind for kind in (set, frozenset, complex)}
    SAFE_NAMES |= {f"{_builtins}.bytes": _bytes, f"{_builtins}.bytearray": _bytearray}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable:
        safe = SAFE_NAMES.get(f"{module}.{name}")
        if safe is None:
            raise ForbiddenNameError(f"{module}.{name}")
        # A function of its own for each mention, so that no file can alter what others get.
        return lambda *arguments: safe(*arguments)


def load_plain(file: BinaryIO) -> Any:
    """What a pickle of NumPy arrays and plain types holds; :func:`with_arrays` gives the arrays.

    Raises:
        ForbiddenNameError: it names anything else.
        Exception: it is damaged; any kind, as what it does until then is up to it.
    """
    return _PlainUnpickler(file, encoding="latin1").load()


def with_arrays(content: Any) -> Any:
    """The arrays for what stands for them, in a dict and in the dicts in it."""
    if isinstance(content, Array):
        return content.value
    if not isinstance(content, dict):
        return content
    return {
        key: {k: with_array(v) for k, v in value.items()}
        if isinstance(value, dict)
        else with_array(value)
        for key, value in content.items()
    }


def with_array(value: Any) -> Any:
    return value.value if isinstance(value, Array) else value
