"""Reading of weights: a path or an address to tensors by name."""

import argparse
import os
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor

from isda.weights_files.errors import WeightsError
from isda.weights_files.kinds import PICKLE, SAFETENSORS, UnknownKindError, kind_of
from isda.weights_files.pickled_data import (
    SAFE_NAMES,
    ForbiddenNameError,
    load_plain,
    with_arrays,
)
from isda.weights_files.safetensors import (
    SafetensorsError,
    UnknownTypeError,
    read_safetensors,
)

__all__ = ["local_file", "others_read_tensors_only", "read_checkpoint", "read_state_dict"]

#: Where checkpoints have their state dict: ours and Detectron2's, OpenMMLab's, pycls', tutorials'.
WRAPPERS = ("model", "state_dict", "model_state", "model_state_dict")
# Deformable DETR's authors saved the arguments of their command line along.
_TORCH_SAFE = [argparse.Namespace, *((stand_in, name) for name, stand_in in SAFE_NAMES.items())]
_PART = 2**20  # bytes that are read at once
_TORCH_PROTOCOL = 3  # and lower ones are what PyTorch reads without executing it
_AGAIN = "download or copy it again"
_SAVE = "give a file of torch.save(model.state_dict(), FILE)"
_DENSE = "save it as a dense tensor of numbers"
_SHOWN = 200  # characters at each end of a message; a name in a file may have millions


def read_checkpoint(source: str | os.PathLike, *, mmap: bool = False) -> dict[str, Any]:
    """What a file of weights holds, its tensors by name below ``model``.

    No function that the file names is called, whatever its kind.

    Args:
        source: a path, or an address that iopath understands.
        mmap: leave the numbers of tensors in the file until they are used, where it can be done.

    Returns:
        ``model``, and what else the file has. As Detectron2 has it, ``matching_heuristics`` and
        ``__author__`` say that names are another library's.

    Raises:
        WeightsError: there is no such file, or it does not hold dense tensors by name.
    """
    path = local_file(source)
    kept = "" if os.fspath(path) == os.fspath(source) else f" (kept as {path}: delete it first)"
    try:
        kind = kind_of(path)
        content = _READERS.get(kind, _read_torch)(path, mmap)
        return _with_model(content, is_pickle=kind == PICKLE)
    except UnknownKindError as error:
        raise WeightsError(f"{source} {error}{kept}") from None
    except SafetensorsError as error:
        raise WeightsError(
            f"{source} is no readable safetensors file, {_printable(str(error))}: {_AGAIN}{kept}"
        ) from None
    except OSError as error:
        raise WeightsError(
            f"{source} cannot be read ({error.strerror or error}): check the file and its "
            f"permissions{kept}"
        ) from error
    except _ContentError as error:
        raise WeightsError(f"{source} {_printable(str(error))}{kept}") from None


def read_state_dict(source: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        WeightsError: as :func:`read_checkpoint`.
    """
    weights = read_checkpoint(source)["model"]
    return {n: torch.from_numpy(w) if isinstance(w, np.ndarray) else w for n, w in weights.items()}


def local_file(source: str | os.PathLike) -> Path:
    """The file of a path or address, which is downloaded once.

    Raises:
        WeightsError: there is none, or it cannot be fetched.
    """
    source = os.fspath(source)
    path = _fetched(source) if "://" in source else Path(source)
    if os.path.isdir(path):
        raise WeightsError(f"{source} is a folder: name the file of weights in it")
    if not os.path.isfile(path):  # Path's own raises where a name is too long
        raise WeightsError(f"there is no file {source}: check its name and folder")
    return path


def _fetched(address: str) -> Path:
    if address.startswith("file://"):  # which iopath does not know
        return Path(url2pathname(urlparse(address).path))
    try:
        # Without "?matching_heuristics=True", which is for Detectron2's checkpointer.
        return Path(PathManager.get_local_path(address.partition("?")[0]))
    # KeyError and RuntimeError are those of Detectron2's catalogue of models.
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise WeightsError(
            f"{address} cannot be fetched ({error}): check the address, or download the file "
            "by other means and name it"
        ) from error


@contextmanager
def others_read_tensors_only() -> Iterator[None]:
    """Let no library that reads files of weights by ``torch.load`` itself execute them.

    Raises:
        WeightsError: a file holds more than tensors.
    """
    try:
        with _tensors_only():
            yield
    except pickle.UnpicklingError as error:
        raise WeightsError(f"a downloaded file {_diagnosis(error)}") from None


@contextmanager
def _tensors_only() -> Iterator[None]:
    """PyTorch's own switch, whatever the user's environment says of it."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        del os.environ[names[0]]
        os.environ.update(before)


class _ContentError(ValueError):
    """What is wrong with a file's content, without its name."""


@contextmanager
def _diagnosed(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001  (a pickle is a program: any error may be its own)
        if _is_unknown_instruction(error) and (protocol := _protocol(path)) > _TORCH_PROTOCOL:
            raise _ContentError(
                f"is pickled by protocol {protocol}, which PyTorch reads by executing it only: "
                "have it saved without pickle_protocol, best as .safetensors"
            ) from None
        raise _ContentError(_diagnosis(error)) from None


def _is_unknown_instruction(error: Exception) -> bool:
    return isinstance(error, pickle.UnpicklingError) and "Unsupported operand" in str(error)


def _protocol(path: Path) -> int:
    """Of the pickle in a file of PyTorch; 0 if it says none, or is damaged."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            head = file.read(2)
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
                head = archive.read(name)[:2]
        except (zipfile.BadZipFile, zlib.error):
            return 0
    return head[1] if head[:1] == pickle.PROTO else 0


def _check_sums(path: Path) -> None:
    """PyTorch does not: it would take a number that was damaged on its way as it is.

    Raises:
        UnknownKindError: a part of the archive is not what was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.CRC == 0:  # none was written: torch.serialization.set_crc32_options
                    continue
                with archive.open(entry) as part:
                    while part.read(_PART):
                        pass
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UnknownKindError(f"is damaged ({error})", _AGAIN) from None


def _read_torch(path: Path, mmap: bool) -> Any:
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        _check_sums(path)
    # The older format cannot be mapped, and a name in ".safetensors" has PyTorch expect that.
    mmap = mmap and path.suffix != ".safetensors" and is_archive
    with (
        open(path, "rb") as file,
        torch.serialization.safe_globals(_TORCH_SAFE),
        _tensors_only(),
        _diagnosed(path),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        content = torch.load(
            path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap
        )
    return with_arrays(content)


def _read_pickle(path: Path, mmap: bool) -> Any:
    with open(path, "rb") as file, _diagnosed(path):
        return with_arrays(load_plain(file))


def _read_safetensors(path: Path, mmap: bool) -> dict[str, Tensor]:
    try:
        return read_safetensors(path)
    except UnknownTypeError as error:
        raise _ContentError(f"holds {error}: {_DENSE}") from None


_READERS = {PICKLE: _read_pickle, SAFETENSORS: _read_safetensors}


def _diagnosis(error: Exception) -> str:
    """What a failure to unpickle says of the file; PyTorch's own text advises to execute it."""
    text = str(error)
    named = re.search(r"GLOBAL (\S+)", text)
    if isinstance(error, ForbiddenNameError):
        return _objects(text)
    if isinstance(error, pickle.UnpicklingError) and named:
        return _objects(named[1])
    if isinstance(error, pickle.UnpicklingError) and "WeightsUnpickler error: " in text:
        text = text.partition("WeightsUnpickler error: ")[2]
    reason = next((line.strip() for line in text.splitlines() if line.strip()), "")
    reason = "" if "weights_only" in reason else f" ({reason.rstrip('.')})" if reason else ""
    return f"is damaged or cut off, or holds more than tensors{reason}: {_AGAIN}"


def _objects(name: str) -> str:
    return (
        f"holds Python objects besides tensors ({name}), which are not loaded because they could "
        "run code: get its state_dict alone, best as .safetensors"
    )


def _with_model(content: Any, *, is_pickle: bool) -> dict[str, Any]:
    """A checkpoint's content, its state dict below ``model`` and checked."""
    if not isinstance(content, Mapping):
        raise _ContentError(f"holds a {_kind(content)} instead of tensors by name: {_SAVE}")
    content = dict(content)
    wrapper = next((w for w in WRAPPERS if isinstance(content.get(w), Mapping)), None)
    if wrapper is None and is_pickle:
        content = _of_caffe2(content)
    elif wrapper is None:
        content = {"model": content}
    else:
        content["model"] = content.pop(wrapper)
    weights = dict(content["model"])
    weights = {n: np.asarray(w) if isinstance(w, np.generic) else w for n, w in weights.items()}
    if wrapper == "model" and isinstance(weights.get("state_dict"), Mapping):
        weights = dict(weights["state_dict"])
    if wrapper == "model_state":  # of pycls, whose names Detectron2 matches by likeness
        weights = {n: w for n, w in weights.items() if not str(n).endswith("num_batches_tracked")}
        content |= {"__author__": "pycls", "matching_heuristics": True}
    _check_weights(weights, wrapper)
    if "training_model" in content:  # of ours, with averaged weights
        _check_weights(content["training_model"], "training_model")
    return content | {"model": weights}


def _of_caffe2(content: dict) -> dict[str, Any]:
    """What Detectron2 makes of a pickle without its mark: a file of Detectron, its predecessor."""
    blobs = content["blobs"] if isinstance(content.get("blobs"), Mapping) else content
    blobs = {n: w for n, w in blobs.items() if not str(n).endswith("_momentum")}
    return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}


def _check_weights(weights: Any, wrapper: str | None) -> None:
    where = f"below {wrapper} " if wrapper else ""
    if not isinstance(weights, Mapping) or not weights:
        raise _ContentError(f"holds no tensors {where}at all: {_SAVE}")
    for name, tensor in weights.items():
        if not isinstance(name, str):
            raise _ContentError(f"has {name!r} {where}in place of a tensor's name: {_SAVE}")
        if not isinstance(tensor, Tensor | np.ndarray):
            raise _ContentError(
                f"holds no state dict, neither alone nor below model or state_dict: {name!r} "
                f"{where}is of type {_kind(tensor)}, not a tensor; {_SAVE}"
            )
        if not name.isprintable():
            raise _ContentError(f"holds a tensor under the name {name!r}, which no model has")
        if fault := _fault(tensor):
            raise _ContentError(f"holds {name} as {fault}: {_DENSE}")


def _printable(text: str) -> str:
    """Of some lines, and nothing that steers a terminal: names in a file are its writer's."""
    if len(text) > 2 * _SHOWN:
        text = f"{text[:_SHOWN]} … {text[-_SHOWN:]}"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _fault(tensor: Tensor | np.ndarray) -> str:
    """Why a parameter or buffer cannot be filled from a tensor; "" if it can."""
    if isinstance(tensor, np.ndarray):
        return "" if tensor.dtype.kind in "biuf" else f"a NumPy array of type {tensor.dtype}"
    if tensor.is_quantized:
        return "quantised numbers"
    if tensor.layout != torch.strided:
        return "a sparse tensor"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.is_meta:
        return "a tensor without data, of device meta"
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.element_size() < 2):
        return f"numbers of type {str(tensor.dtype).removeprefix('torch.')}"
    return ""
