"""Programs that a tool runs: what they say, how they end, and that none outlives the tool."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import training_process

TOOLS = Path(__file__).resolve().parents[2] / "tools"
# A tool that runs a program, which writes its number into a file and sleeps.
# A shell that starts the tests in the background has them, and so the tool, ignore SIGINT.
TOOL = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {str(TOOLS)!r})
from pathlib import Path
from training_process import run_program
program = "import os, time; open('program', 'w').write(str(os.getpid())); time.sleep(60)"
run_program(["-c", f"import os; os.chdir({{str(Path.cwd())!r}}); " + program], Path("console.log"))
"""


def test_what_a_program_says_is_read_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(training_process, "ROOT", tmp_path)
    console, lines = tmp_path / "console.log", []
    console.write_text("of before\n")
    code = "import os, sys; print(os.getcwd(), os.environ['KEY']); sys.exit('over')"
    ended = training_process.run_program(["-c", code], console, lines.append, {"KEY": "word"})
    assert ended == 1
    assert lines == [f"{tmp_path} word\n", "over\n"]
    assert console.read_text() == "of before\n" + "".join(lines)
    text = training_process.failure_text("sleeping", ended, console, "dreams")
    assert text.splitlines()[0].startswith("sleeping ended with exit code 1. Its last lines")
    assert text.endswith("\n    over")
    assert "without writing dreams" in training_process.failure_text("x", 0, console, "dreams")


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def runs(pid):
    """Whether the process is there, and no zombie that nobody has asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_program_ends_with_the_tool_that_runs_it(tmp_path, how):
    tool = subprocess.Popen([sys.executable, "-c", TOOL], cwd=tmp_path, stderr=subprocess.DEVNULL)
    program = tmp_path / "program"
    assert wait_for(lambda: program.is_file() and program.read_text())
    pid = int(program.read_text())
    assert runs(pid)
    os.kill(tool.pid, how)
    tool.wait(timeout=20)
    assert wait_for(lambda: not runs(pid))
