"""Kinds of files of weights, told by their content: names are no evidence."""

import zipfile
from pathlib import Path

from isda.weights_files.safetensors import LENGTH_BYTES

__all__ = ["PICKLE", "SAFETENSORS", "TORCH", "UnknownKindError", "kind_of"]

TORCH, PICKLE, SAFETENSORS = "torch", "pickle", "safetensors"

_HEAD = 1024  # bytes that are looked at
# The number that PyTorch's files before version 1.6 begin with, as a pickle has it.
_TORCH_NUMBER = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLES = [bytes([0x80, protocol]) for protocol in (2, 3, 4, 5)]
_TAR = slice(257, 262)

_DECOMPRESS = "decompress it and name the result"
_DOWNLOAD = "download the file itself"
_PAGES = ("<!doctype", "<html", "<head", "<body", "<!--", "<?xml", "<error")
#: First bytes: what the file is, and the remedy.
_OTHERS = {
    b"\x1f\x8b": ("is compressed by gzip", _DECOMPRESS),
    b"BZh": ("is compressed by bzip2", _DECOMPRESS),
    b"\xfd7zXZ": ("is compressed by xz", _DECOMPRESS),
    b"\x28\xb5\x2f\xfd": ("is compressed by zstd", _DECOMPRESS),
    b"7z\xbc\xaf": ("is a 7-Zip archive", "unpack it and name the file of weights in it"),
    b"Rar!": ("is a RAR archive", "unpack it and name the file of weights in it"),
    b"\x89HDF": ("is an HDF5 file", "convert it with the library that wrote it"),
    b"\x93NUMPY": ("is one NumPy array", "give a file with all tensors by their names"),
    b"version https://git-lfs": ("is a pointer of Git LFS", "fetch the file by `git lfs pull`"),
}


class UnknownKindError(ValueError):
    """No file of weights: what it is, and the remedy, without its name."""

    def __init__(self, description: str, remedy: str):
        super().__init__(f"{description}: {remedy}")


def kind_of(path: Path) -> str:
    """One of the three kinds of files with weights.

    Raises:
        UnknownKindError: it is none.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise UnknownKindError("is empty", "download or copy it again")
    if head.startswith(b"PK\x03\x04"):
        _require_weights_in_zip(path)
        return TORCH
    if _TORCH_NUMBER in head[:64]:
        return TORCH
    if _is_safetensors(head):
        return SAFETENSORS
    _refuse_others(head)
    if head[:2] in _PICKLES or path.suffix == ".pkl":  # the oldest pickles have no mark
        return PICKLE
    if path.suffix == ".safetensors":  # of which something is broken
        return SAFETENSORS
    _refuse_text(head)
    raise UnknownKindError(
        "is no file of weights", "give one of PyTorch, safetensors, or Detectron2's .pkl"
    )


def _is_safetensors(head: bytes) -> bool:
    # A header below 4 GB, and the brace that it opens with.
    return head[4:LENGTH_BYTES] == bytes(4) and head[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{"


def _refuse_others(head: bytes) -> None:
    for first, (description, remedy) in _OTHERS.items():
        if head.startswith(first):
            raise UnknownKindError(description, remedy)
    if head[_TAR] == b"ustar":
        raise UnknownKindError(
            "is a tar archive, perhaps of PyTorch before version 0.1.10",
            "unpack it, or save its state_dict by a later version",
        )
    if _text(head).startswith(_PAGES):
        raise UnknownKindError(
            "is a web page that was saved in place of the file",
            f"{_DOWNLOAD}, whose address a browser's download list shows",
        )


def _text(head: bytes) -> str:
    return head.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n").lower()


def _refuse_text(head: bytes) -> None:
    text = _text(head)[:-1]  # the last character may be cut
    if "\ufffd" not in text and all(c.isprintable() or c in "\t\r\n" for c in text):
        if text.startswith(("{", "[")):
            raise UnknownKindError("is JSON text", "name a file of weights; an index names them")
        raise UnknownKindError("is a text file", _DOWNLOAD)


def _require_weights_in_zip(path: Path) -> None:
    """
    Raises:
        UnknownKindError: the archive is cut off, or another program's.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise UnknownKindError("is cut off or damaged", "download or copy it again") from None
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:
        raise UnknownKindError("is a TorchScript program", "save its state_dict() by torch.save")
    if "data.pkl" in inner:
        return
    if any("exported_program" in name or name.startswith("models/") for name in inner):
        raise UnknownKindError("is an exported program", "give the weights that it was made from")
    if names and all(name.endswith(".npy") for name in names):
        raise UnknownKindError("is a NumPy archive (.npz)", "save its arrays as a state_dict")
    raise UnknownKindError(
        "is a ZIP archive without weights of PyTorch", "unpack it and name the file of weights"
    )
