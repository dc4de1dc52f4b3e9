"""Facts of the installation: the processor's name, versions of packages, the commit.

Standard library only, so that ``isda doctor`` can ask where PyTorch is missing or broken.
"""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

__all__ = ["PACKAGE", "ROOT", "commit", "processor_name", "version_of"]

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parents[1]  # of a checkout; of an installed package it means nothing
_CPU_INFO = Path("/proc/cpuinfo")  # of Linux


def processor_name() -> str:
    """The processor's model where Linux names it, else its architecture."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    """Version of an installed package by the metadata that pip reads; None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Commit that the package was built from or is checked out at; None if unknown."""
    written = PACKAGE / "commit.txt"
    if written.exists():
        return written.read_text(encoding="utf-8").strip()
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.SubprocessError):
        return None
