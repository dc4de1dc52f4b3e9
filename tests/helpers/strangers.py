"""Files of weights that hold a trap: a harmless function that whoever executes the file calls."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import torch

SPRUNG: list[str] = []


def spring(name: str) -> str:
    SPRUNG.append(name)
    return name


class Trap:
    def __reduce__(self):
        return spring, ("sprung",)


def trapped() -> dict:
    """A checkpoint with its trap beside the weights."""
    return {"model": {"a.weight": torch.zeros(2)}, "__author__": "a stranger", "hooks": Trap()}


def _pickled(protocol: int) -> bytes:
    arrays = {"a.weight": np.zeros(2, np.float32)}
    return pickle.dumps(trapped() | {"model": arrays}, protocol)


def _saved(**options) -> bytes:
    buffer = io.BytesIO()
    torch.save(trapped(), buffer, **options)
    return buffer.getvalue()


def _module() -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": {"a": torch.zeros(2)}, "net": torch.nn.Linear(1, 1)}, buffer)
    return buffer.getvalue()


def _tar() -> bytes:
    """As PyTorch wrote before version 0.1.10."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(Trap(), 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _arrays_of_objects() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, components=np.array([Trap()], dtype=object))
    return buffer.getvalue()


#: Every way to write Python objects into a file of weights.
CONTENTS = {
    "pickle 0": _pickled(0),
    "pickle 2": _pickled(2),
    "pickle 5": _pickled(5),
    "torch": _saved(),
    "torch, protocol 4": _saved(pickle_protocol=4),
    "torch before 1.6": _saved(_use_new_zipfile_serialization=False),
    "torch before 0.1.10": _tar(),
    "module": _module(),
    "numpy": _arrays_of_objects(),
}
SUFFIXES = (".pkl", ".pth", ".pyth", ".pt", ".bin", ".safetensors", ".npz", "")


def write(folder: Path, content: str, suffix: str) -> Path:
    path = folder / f"stranger{suffix}"
    path.write_bytes(CONTENTS[content])
    return path
