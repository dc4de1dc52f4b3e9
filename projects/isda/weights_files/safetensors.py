"""The safetensors format: a header in JSON, then the tensors' bytes.

Read here and not by the library of that name, so that every installation reads these files, and
what is wrong with one is told in its user's words. The format is described at
https://github.com/huggingface/safetensors#format.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

__all__ = ["LENGTH_BYTES", "SafetensorsError", "UnknownTypeError", "read_safetensors"]

LENGTH_BYTES = 8  # of the header's length, little-endian
_LARGEST_HEADER = 100_000_000  # the format's own limit
_LARGEST_COUNT = 2**63 - 1  # of PyTorch
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsError(ValueError):
    """What is wrong with a file, without its name."""


class UnknownTypeError(SafetensorsError):
    """A whole file with numbers of a type that no weights here are."""


class _Entry(NamedTuple):
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        UnknownTypeError: a tensor holds numbers that no weights here are.
        SafetensorsError: the file is cut off, or is not of this format.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, start = _header(file, size)
        entries = [_entry(name, value) for name, value in header.items() if name != "__metadata__"]
        _check_complete(entries, size - start)
        return {entry.name: _tensor(file, start, entry) for entry in entries}


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors begin."""
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if size < LENGTH_BYTES or length > _LARGEST_HEADER:
        raise SafetensorsError("it does not begin with the length of a header")
    if LENGTH_BYTES + length > size:
        raise SafetensorsError(f"it is cut off within its header, after {size} bytes")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_without_repetition)
    except SafetensorsError:
        raise
    except (ValueError, RecursionError) as error:
        raise SafetensorsError("its header is not JSON") from error
    if not isinstance(header, dict):
        raise SafetensorsError("its header is not a table of tensors")
    return header, LENGTH_BYTES + length


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise SafetensorsError(f"its header has {repeated} twice")
    return content


def _entry(name: str, value: Any) -> _Entry:
    value = value if isinstance(value, dict) else {}
    dtype, shape, offsets = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
        raise SafetensorsError(f"its header does not describe {name} as a tensor")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise UnknownTypeError(f"{name} as numbers of type {dtype}")
    entry = _Entry(name, _DTYPES[dtype], tuple(shape), *offsets)
    if entry.end - entry.start != math.prod(shape) * entry.dtype.itemsize:
        raise SafetensorsError(f"its header gives {name} another size than its shape")
    return entry


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(v) is int and 0 <= v <= _LARGEST_COUNT for v in values
    )


def _check_complete(entries: list[_Entry], available: int) -> None:
    """Tensors have to fill the rest of the file without gaps and overlaps."""
    position = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.start != position:
            raise SafetensorsError(f"its header has {entry.name} in the wrong place")
        position = entry.end
    if position > available:
        raise SafetensorsError(f"it is cut off: {position - available} bytes are missing")
    if position < available:
        raise SafetensorsError(f"it has {available - position} bytes that belong to no tensor")


def _tensor(file: BinaryIO, start: int, entry: _Entry) -> Tensor:
    file.seek(start + entry.start)
    content = bytearray(file.read(entry.end - entry.start))
    if not content:
        return torch.empty(entry.shape, dtype=entry.dtype)
    return torch.frombuffer(content, dtype=torch.uint8).view(entry.dtype).reshape(entry.shape)
