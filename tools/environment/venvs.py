"""Virtual environments of the checkout."""

import os
import subprocess
import sys
from pathlib import Path

from environment import SetupError


def python_of(venv: Path) -> Path:
    """Its interpreter."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def create(venv: Path, log: Path) -> None:
    """Make it with the interpreter that runs this; what is printed goes to `log`.

    Raises:
        SetupError: it failed.
    """
    command = [sys.executable, "-m", "venv", str(venv)]
    with log.open("a", encoding="utf-8") as file:
        # What is inherited keeps state.exclusive.
        quiet = {"stdout": file, "stderr": subprocess.STDOUT, "close_fds": False}
        if subprocess.call(command, **quiet):
            raise SetupError(f"`{' '.join(command)}` failed (details: {log}).")
