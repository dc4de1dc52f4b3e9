"""Make the environment of this checkout in `.venv`: `make env` calls this with any Python.

It is done once and repeated only when its inputs change: the lock file, the interpreter, or a
Detectron2 that this interpreter has already (which is then used as it is). Standard library only.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from environment import SetupError, checks, detectron2, state, venvs
from environment.lock import Lock, normalised
from environment.pip import PipError, Progress, run_pip

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOG = VENV / "make_env.log"
LOCK = ROOT / "requirements.txt"
RECIPE = "1"  # raise it when the steps below change what they install
BUILD_TOOLS = {"pip", "setuptools", "wheel"}
SOURCES = {".cpp", ".h", ".cu", ".cuh"}
OWN_TOOLS = {"pytest", "ruff"}  # needed with their scripts, so never borrowed from elsewhere


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--any-python",
        action="store_true",
        help="use the interpreter of last time, or another one on PATH if this one does not fit",
    )
    any_python = parser.parse_args().any_python
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        other = other_python(any_python)
        if other:
            return hand_over(other)
        make_env()
    except (SetupError, OSError) as error:  # of the system: a full disk, a forbidden folder
        print(f"make env: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make env: interrupted; the next make begins anew.", file=sys.stderr)
        return 130
    return 0


def other_python(any_python: bool) -> "str | None":
    """The interpreter to hand over to, if it is not the running one."""
    inside = Path(sys.prefix).resolve() == VENV.resolve()
    if any_python or inside:
        before = state.read(VENV).get("python")
        if before and Path(before).exists():
            return before if before != sys.executable else None
        if inside:
            return getattr(sys, "_base_executable", sys.executable)
    if any_python and not checks.supports(sys.version_info) and not own_detectron2():
        return checks.find_python()
    return None


def hand_over(python: str) -> int:
    command = [python, str(Path(__file__).resolve())]
    if os.name == "nt":  # where exec would return to the prompt at once
        return subprocess.call(command)
    return os.execv(python, command)


def own_detectron2() -> "str | None":
    """Where the running interpreter has Detectron2, without the cost of importing it."""
    spec = importlib.util.find_spec("detectron2")
    return spec.origin if spec else None


def make_env() -> None:
    """Bring `.venv` up to date; returns at once where it is.

    Raises:
        SetupError: something is missing on this machine.
    """
    if sys.version_info < checks.OLDEST:
        checks.check_python(sys.version_info, sys.executable)
    with state.exclusive(ROOT / ".env-lock", "make env: waiting for another one to finish"):
        owned = own_detectron2()
        facts = (RECIPE, sys.executable, sys.version, str(owned))
        dependencies = state.fingerprint([LOCK], *facts)
        settings = build_settings()
        facts = [f"{name}={value}" for name, value in sorted(settings.items())]
        package = state.fingerprint([ROOT / "setup.py", *kernel_sources()], *facts)
        record = state.read(VENV)
        if record.get("dependencies") != dependencies:
            check_machine(owned)
            state.start_over(VENV)
            install_dependencies(owned)
            record = {}
        if record.get("package") != package:
            install_package(settings)
            state.write(VENV, dependencies=dependencies, package=package, python=sys.executable)


def kernel_sources() -> "list[Path]":
    """What the package compiles when it is installed."""
    folder = ROOT / "projects/isda/ops/csrc"
    return sorted(path for path in folder.rglob("*") if path.suffix in SOURCES)


def check_machine(owned: "str | None") -> None:
    if not owned:
        checks.check_python(sys.version_info, sys.executable)
        checks.check_disk(ROOT)
    checks.check_venv_module()
    checks.find_compiler()


def venv_python() -> Path:
    return venvs.python_of(VENV)


def step(number: int, text: str) -> None:
    print(f"[{number}/4] {text}", flush=True)


def install_dependencies(owned: "str | None") -> None:
    """An environment with everything of the lock file and Detectron2."""
    started = time.monotonic()
    if owned and imports_detectron2(sys.executable):
        print(f"Using the Detectron2 of {sys.executable} as it is: {owned}", flush=True)
    else:
        owned = None
        print(
            "Setting up .venv, once: 6.4 GB on the disk, of which 2.4 GB are downloaded. It "
            "takes 80 s\nwhere the index is near, and as long as the download where it is not.",
            flush=True,
        )
    step(1, f"virtual environment with Python {checks.dotted(sys.version_info[:3])}")
    create_venv(bool(owned))
    lock = Lock(LOCK.read_text(encoding="utf-8"))
    names = lock.missing(installed_here() - OWN_TOOLS) if owned else set(lock.blocks)
    install_locked(lock, names)
    if owned:
        step(3, "Detectron2: there already")
    else:
        step(3, "Detectron2")
        print(f"      {detectron2.install(venv_python(), LOG)}", flush=True)
        run_pip(venv_python(), ["check"], LOG)
    print(f"      {time.monotonic() - started:.0f} s so far", flush=True)


def imports_detectron2(python: str) -> bool:
    code = "import detectron2.layers"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if subprocess.call([python, "-c", code], **quiet) == 0:
        return True
    print(f"The Detectron2 of {python} cannot be imported; .venv gets one of its own.", flush=True)
    return False


def create_venv(inherit: bool) -> None:
    venvs.create(VENV, LOG)
    if inherit:
        # --system-site-packages would not do: where the interpreter is itself one of a virtual
        # environment, that means the system's packages and not this environment's.
        parents = [folder for folder in sys.path if Path(folder).name.endswith("-packages")]
        lines = [f"import site; site.addsitedir({folder!r})" for folder in parents]
        site_packages().joinpath("parent.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")


def site_packages() -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    answer = subprocess.check_output([str(venv_python()), "-c", code], universal_newlines=True)
    return Path(answer.strip())


def installed_here() -> "set[str]":
    from importlib.metadata import distributions  # Python 3.8

    return {normalised(d.metadata["Name"]) for d in distributions() if d.metadata["Name"]}


def install_locked(lock: Lock, names: "set[str]") -> None:
    # Source distributions must be built with the locked build tools, not with ones that pip
    # fetches unhashed: hence in two goes, and without build isolation.
    # Packages that the interpreter lends may be there in the same version and still lack scripts.
    rest = names - BUILD_TOOLS
    for group, replacing in ((BUILD_TOOLS, "--upgrade"), (rest, "--ignore-installed")):
        pins = VENV / "pins.txt"
        pins.write_text(lock.select(group), encoding="utf-8")
        options = ["--require-hashes", "--no-deps", "--no-build-isolation", replacing]
        progress = None
        if group is rest:
            total = sum(len(lock.blocks[name]) for name in group)
            progress = Progress("[2/4] packages", total, site_packages())
        run_pip(venv_python(), ["install", *options, "-r", pins], LOG, progress)


def build_settings() -> "dict[str, str]":
    """Which kernels setup.py is to compile, for which GPUs, as environment variables.

    Compiling CUDA kernels takes minutes, so without being asked that is done only where there is
    a GPU, and only for that one.
    """
    asked = {n: os.environ[n] for n in ("ISDA_BUILD", "TORCH_CUDA_ARCH_LIST") if n in os.environ}
    if "ISDA_BUILD" in asked:
        return asked
    capabilities = gpus()
    if not capabilities:
        return {"ISDA_BUILD": "cpu"}
    return dict({"ISDA_BUILD": "auto", "TORCH_CUDA_ARCH_LIST": ";".join(capabilities)}, **asked)


def gpus() -> "list[str]":
    """Compute capabilities of NVIDIA's GPUs here, as their driver tells them."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.check_output(
            query, stderr=subprocess.DEVNULL, universal_newlines=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return sorted({line.strip() for line in answer.splitlines() if line.strip()})


def install_package(settings: "dict[str, str]") -> None:
    step(4, "this package, editable")
    options = ["--no-build-isolation", "--no-deps"]
    arguments = ["install", *options, "--editable", ROOT]
    try:
        run_pip(venv_python(), arguments, LOG, settings=settings)
    except PipError:
        if "ISDA_BUILD" in os.environ:
            raise
        print(
            f"      the kernels do not compile here (details: {LOG}): PyTorch has to do", flush=True
        )
        run_pip(venv_python(), arguments, LOG, settings={"ISDA_BUILD": "none"})


if __name__ == "__main__":
    sys.exit(main())
