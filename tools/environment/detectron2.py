"""Detectron2, which is on no package index under its own name.

The wheel below carries the Python of the official commit GIT_URL; its compiled `_C` is for
Python 3.10 and another PyTorch, and its tags contradict each other. So it is unpacked, relieved
of a `_C` that does not load, and tagged again as what remains: pure Python.
"""

import base64
import hashlib
import os
import subprocess
import tempfile
import zipfile
from pathlib import Path

from environment import SetupError
from environment.pip import PipError, run_pip

PACKAGE, VERSION = "sal-detectron2", "0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
DIST_INFO = "sal_detectron2-0.7.2.dist-info"
GIT_URL = (
    "git+https://github.com/facebookresearch/detectron2.git"
    "@a59f05630a8f205756064244bf5beb8661f96180"
)


def install(python: Path, log: Path) -> str:
    """Install Detectron2 into the environment of `python`; says in a few words which one."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = download(python, Path(folder), log)
        if wheel is None:
            print("      the index has no Detectron2: compiling the official one takes minutes")
            install_from_git(python, log)
            return "official source, compiled"
        native = has_working_extension(python, wheel)
        if not native:
            wheel = retag(wheel, Path(folder) / "pure")
        run_pip(python, ["install", "--no-deps", "--no-index", wheel], log)
        return f"{PACKAGE} {VERSION}, {'with' if native else 'without'} compiled parts"


def download(python: Path, folder: Path, log: Path) -> "Path | None":
    """The wheel with the pinned hash, or None where the index does not have it.

    Raises:
        SetupError: the index cannot be reached, or serves another file.
    """
    pin = folder / "detectron2.txt"
    pin.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--python-version=3.10", "--implementation=cp"]
    try:
        run_pip(python, ["download", *options, "--require-hashes", "-r", pin, "-d", folder], log)
    except PipError as failure:
        if "index has no" not in str(failure):
            raise
        return None
    (wheel,) = folder.glob("*.whl")
    check_hash(wheel, SHA256)
    return wheel


def check_hash(file: Path, expected: str) -> None:
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise SetupError(f"{file.name} has the sha256 {found}, not the pinned {expected}.")


def install_from_git(python: Path, log: Path) -> None:
    # The build imports torch, so it must see this environment instead of an isolated one. The
    # commit's name is its hash.
    options = ["--no-build-isolation", "--no-deps"]
    try:
        run_pip(python, ["install", *options, f"detectron2 @ {GIT_URL}"], log)
    except PipError as failure:
        raise SetupError(
            "the package index has no Detectron2, and the official one cannot be fetched with git "
            f"or compiled (details: {log}): install Detectron2 into a Python of yours and run "
            "`make env PYTHON=<that Python>`."
        ) from failure


def has_working_extension(python: Path, wheel: Path) -> bool:
    """Whether the wheel's `_C` loads here: it needs Python 3.10 and a PyTorch like its own."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(str(wheel)) as archive:
        archive.extractall(folder)
        environ = dict(os.environ, PYTHONPATH=folder)
        command = [str(python), "-c", "import torch; from detectron2 import _C"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.call(command, env=environ, **quiet) == 0


def retag(wheel: Path, folder: Path) -> Path:
    """Write a pure-Python copy of the wheel, with a new RECORD, and return its path."""
    folder.mkdir()
    target = folder / f"sal_detectron2-{VERSION}-py3-none-any.whl"
    record = []
    with zipfile.ZipFile(str(wheel)) as source, zipfile.ZipFile(str(target), "w") as archive:
        for name in source.namelist():
            if name.startswith("detectron2/_C.") or name == f"{DIST_INFO}/RECORD":
                continue
            content = source.read(name)
            if name == f"{DIST_INFO}/WHEEL":
                content = _pure_tags(content)
            if name == f"{DIST_INFO}/METADATA":
                # Its Python runs with NumPy 2 as well, the only one there is for Python 3.13;
                # what does not is `_C`, left out here.
                content = content.replace(b"Requires-Dist: numpy<2\n", b"Requires-Dist: numpy\n")
            archive.writestr(name, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
            record.append(f"{name},sha256={digest.decode().rstrip('=')},{len(content)}\n")
        record.append(f"{DIST_INFO}/RECORD,,\n")
        archive.writestr(f"{DIST_INFO}/RECORD", "".join(record))
    return target


def _pure_tags(wheel_file: bytes) -> bytes:
    lines = [
        line
        for line in wheel_file.decode().splitlines()
        if not line.startswith(("Tag:", "Root-Is-Purelib:")) and line
    ]
    return "\n".join([*lines, "Root-Is-Purelib: true", "Tag: py3-none-any", ""]).encode()
