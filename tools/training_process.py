"""``train_net.py`` and other programs of the checkout, run as a user would, watched and ended."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from training_progress import shown_path

__all__ = ["CONSOLE_FILE", "failure_text", "python_name", "run_program"]

ROOT = Path(__file__).resolve().parents[1]
CONSOLE_FILE = "console.log"
_TAIL = 15  # lines
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def run_program(
    arguments: Sequence[str],
    console: Path,
    read: Callable[[str], None] = lambda line: None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Runs Python in the checkout; it ends with this process, on Linux even if that is killed.

    Args:
        arguments: what follows ``python``.
        console: everything that the program says is appended to this file.
        read: is given every line of it.
        environment: variables beside those of this process.

    Returns:
        The exit code; the negative number of the signal that killed it.
    """
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=variables | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        close_fds=False,  # a lock that is inheritable is held as long as the program runs
        preexec_fn=_end_with_parent(),
    )
    try:
        with console.open("a", encoding="utf-8") as record:
            for line in process.stdout:
                record.write(line)
                record.flush()
                read(line)
        return process.wait()
    finally:
        _stop(process)


def _end_with_parent() -> Callable[[], None] | None:
    """What a child does first, so that the system ends it when its parent dies; Linux only."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask_for_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # it was faster
            os._exit(1)

    return ask_for_signal


def _stop(process: subprocess.Popen) -> None:
    """Ends the process if it still runs, in peace where it listens."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def failure_text(what: str, code: int, console: Path, missing: str) -> str:
    """What went wrong, and the last lines of the console.

    Args:
        what: the program did, such as "training ISDA".
        missing: the file that it should have written, for exit code 0.
    """
    tail = console.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
    reason = f"ended with exit code {code}" if code >= 0 else f"was killed by signal {-code}"
    if code == -signal.SIGKILL:
        reason += " (the system may have run out of memory)"
    if code == 0:
        reason = f"ended without writing {missing}"
    head = f"{what} {reason}. Its last lines, of {shown_path(console)}:"
    return "\n".join([head, *(f"    {line}" for line in tail)])


def python_name() -> str:
    """How a user calls this interpreter from the checkout."""
    executable = Path(sys.executable)
    if executable.is_relative_to(ROOT):
        return str(executable.relative_to(ROOT))
    on_path = shutil.which("python")
    return "python" if on_path and Path(on_path) == executable else str(executable)
