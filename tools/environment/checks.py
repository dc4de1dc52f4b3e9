"""What a machine must have before anything is downloaded."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from environment import SetupError

OLDEST, NEWEST = (3, 10), (3, 13)
DISK_GB = 7.5  # 6.4 GB of packages, and the largest wheel while it is unpacked
QUIET = subprocess.DEVNULL
COMPILERS = ("c++", "g++", "clang++", "cl")


def dotted(version: tuple) -> str:
    return ".".join(str(part) for part in version)


def supports(version: tuple) -> bool:
    return OLDEST <= tuple(version[:2]) <= NEWEST


def check_python(version: tuple, executable: str) -> None:
    """Raise SetupError unless every pinned package has a build for this Python."""
    if not supports(version):
        raise SetupError(
            f"{executable} is Python {dotted(version[:3])}, and ISDA's pinned packages need "
            f"{dotted(OLDEST)} to {dotted(NEWEST)}: install one of these and name it, as in "
            "`make env PYTHON=python3.11`."
        )


def find_python() -> "str | None":
    """The first interpreter on PATH that fits and starts."""
    for minor in (11, 12, 10, 13):
        candidate = shutil.which(f"python3.{minor}")
        if candidate and _version_of(candidate) == (3, minor):
            return candidate
    return None


def _version_of(executable: str) -> "tuple | None":
    """(major, minor), or None for what cannot start, such as a version manager's dead shim."""
    code = "import sys; print(*sys.version_info[:2])"
    try:
        answer = subprocess.check_output([executable, "-c", code], stderr=QUIET)
    except (OSError, subprocess.CalledProcessError):
        return None
    return tuple(int(part) for part in answer.split())


def check_venv_module(executable: str = sys.executable) -> None:
    """Debian and its kin ship Python without the parts that make virtual environments."""
    if subprocess.call([executable, "-c", "import venv, ensurepip"], stderr=QUIET):
        name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        raise SetupError(
            f"{executable} cannot make virtual environments: install its venv module "
            f"(on Debian and Ubuntu: apt install {name}-venv)."
        )


def find_compiler(environ: "dict | None" = None) -> str:
    """Path of a C++ compiler that starts: $CXX, or the first known name on PATH."""
    environ = os.environ if environ is None else environ
    wanted = environ.get("CXX", "").split()[:1]
    for name in wanted or COMPILERS:
        path = shutil.which(name, path=environ.get("PATH"))
        if path and _starts(path):
            return path
    missing = f"CXX={wanted[0]} does not start" if wanted else "no C++ compiler was found"
    raise SetupError(
        f"{missing}, and some packages are compiled: install one (on Debian and Ubuntu: "
        "apt install g++; on macOS: xcode-select --install; on Windows: the Visual Studio Build "
        "Tools, from whose prompt make is then run)."
    )


def _starts(compiler: str) -> bool:
    # macOS has a c++ that only asks for the developer tools. MSVC's `cl` knows no --version, but
    # there is no such placeholder for it.
    if Path(compiler).stem.lower() == "cl":
        return True
    return subprocess.call([compiler, "--version"], stdout=QUIET, stderr=QUIET) == 0


def check_disk(folder: Path, needed_gb: float = DISK_GB) -> None:
    """Raise SetupError unless the file system of `folder` has room for the environment."""
    free_gb = shutil.disk_usage(str(folder)).free / 1e9
    if free_gb < needed_gb:
        raise SetupError(
            f"the disk of {folder} has {free_gb:.1f} GB free, and the environment needs "
            f"{needed_gb:.1f} GB: make room, or clone the repository to a larger disk."
        )
