"""Running pip quietly: its output goes to a log, the user reads progress or one sentence."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from environment import SetupError

TAIL_LINES = 15
UNREACHABLE = (
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError|"
    r"Temporary failure in name resolution|Connection refused|Network is unreachable|"
    r"No route to host|SSLError|CERTIFICATE_VERIFY_FAILED"
)


class PipError(SetupError):
    """pip stopped; `text` is everything that it printed."""

    def __init__(self, sentence: str, text: str):
        super().__init__(sentence)
        self.text = text


def explain(text: str, log: Path) -> str:
    """One sentence for the user out of pip's output."""
    if re.search(r"DO NOT MATCH THE HASHES|HashMismatch", text):
        culprit = re.search(r"^\s+(\S+==\S+|\S+) from .*:$", text, re.MULTILINE)
        return (
            f"{culprit.group(1) if culprit else 'a download'} does not have its pinned hash, so "
            "it was not installed: another file was served than the one that was tested; clear "
            f"pip's cache or choose another index (details: {log})."
        )
    if re.search(r"No space left on device|not enough space", text, re.IGNORECASE):
        return f"the disk is full: the environment needs 7.5 GB (details: {log})."
    if re.search(UNREACHABLE, text):
        return (
            "the package index cannot be reached: check the network, the proxy and "
            f"`pip config list`, then repeat the command (details: {log})."
        )
    absent = re.search(r"No matching distribution found for (\S+)", text)
    if absent:
        return (
            f"the package index has no {absent.group(1)} for this Python and platform: choose "
            f"another Python or index (details: {log})."
        )
    tail = "\n".join(text.splitlines()[-TAIL_LINES:])
    return f"pip failed; the end of {log} says:\n{tail}"


class Progress:
    """Turns pip's lines into one line that is rewritten, or one every 15 s in a file."""

    def __init__(self, title: str, total: int, site_packages: "Path | None" = None):
        self.title, self.total, self.site_packages = title, total, site_packages
        self.collected, self.megabytes, self.installing = 0, 0.0, False
        self.started = self.shown = time.monotonic()

    def read(self, line: str) -> None:
        if line.startswith("Ignoring "):
            self.total -= 1
        elif line.startswith(("Collecting ", "Processing ")):
            self.collected += 1
        elif line.startswith("Installing collected packages"):
            self.installing = True
        size = re.match(r"\s+Downloading .*\(([\d.]+) (kB|MB|GB)\)", line)
        if size:
            scale = {"kB": 1e-3, "MB": 1.0, "GB": 1e3}[size.group(2)]
            self.megabytes += float(size.group(1)) * scale

    def show(self, final: bool = False) -> None:
        live = sys.stdout.isatty()
        now = time.monotonic()
        if not final and now - self.shown < (1 if live else 15):
            return
        self.shown = now
        text = f"{self.title}: {self._state(final)}, {now - self.started:.0f} s"
        print(f"\r{text:<79}" if live else text, end="\n" if final or not live else "", flush=True)

    def _state(self, final: bool) -> str:
        if final:
            return "done"
        if self.installing and self.site_packages:
            count = sum(1 for _ in self.site_packages.glob("*.dist-info"))
            return f"installing, {count} of {self.total} (the CUDA libraries take longest)"
        downloaded = f", {self.megabytes:.0f} MB downloaded" if self.megabytes else ""
        return f"{min(self.collected, self.total)} of {self.total} fetched{downloaded}"


def run_pip(
    python: Path,
    arguments: list,
    log: Path,
    progress: "Progress | None" = None,
    settings: "dict | None" = None,
) -> str:
    """Run pip with its output appended to `log`, and return that output.

    `settings` are environment variables for it.

    Raises:
        PipError: with one sentence for the user.
    """
    command = [str(python), "-m", "pip", *map(str, arguments)]
    if arguments[0] in ("install", "download"):
        command += ["--no-input", "--disable-pip-version-check", "--retries", "2"]
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        start = file.tell()
        environ = dict(os.environ, **(settings or {}))
        quiet = {"stdout": file, "stderr": subprocess.STDOUT, "env": environ}
        process = subprocess.Popen(command, close_fds=False, **quiet)  # keeps state.exclusive
        try:
            _follow(process, log, start, progress)
        except BaseException:  # an interrupt: nothing may go on writing behind our back
            process.kill()
            process.wait()
            raise
    text = _read_from(log, start)
    if process.returncode:
        raise PipError(explain(text, log), text)
    if progress:
        progress.show(final=True)
    return text


def _follow(process: subprocess.Popen, log: Path, start: int, progress: "Progress | None") -> None:
    position = start
    while process.poll() is None:
        time.sleep(0.2)
        if progress is None:
            continue
        lines = _read_from(log, position).splitlines(keepends=True)
        for line in lines:
            if line.endswith("\n"):
                progress.read(line)
                position += len(line.encode())
        progress.show()


def _read_from(log: Path, position: int) -> str:
    with log.open("rb") as file:
        file.seek(position)
        return file.read().decode("utf-8", errors="replace").replace("\r\n", "\n")
