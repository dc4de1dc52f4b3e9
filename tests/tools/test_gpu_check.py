"""What tools/gpu_check.sh does, with programs that only say what they are asked to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TORCH = """
__version__ = "2.14.1+cu130"
"""
CUDA = """
def get_device_name():
    return "NVIDIA H200"

def get_device_capability():
    return 9, 0
"""
# Stands for the interpreter; what it cannot pretend is left to the real one.
PYTHON = """#!/bin/sh
case "$*" in
*get_device_capability*)
  if [ -n "$NO_GPU" ]; then echo "PyTorch sees no GPU" >&2; exit 1; fi
  echo 9.0 ;;
*missing.get*) echo "$LOADING" >&2; [ -z "$LOADING" ] ;;
"setup.py "*) echo "building for $TORCH_CUDA_ARCH_LIST"; exit "${{BUILD:-0}}" ;;
"-m pytest "*junitxml*)
  sleep "${{TESTING:-0}}"
  while [ $# -gt 0 ]; do [ "$1" = --junitxml ] && report=$2; shift; done
  printf '<testsuites><testsuite tests="9" failures="1" errors="0" skipped="2"/></testsuites>' \\
    >"$report" ;;
"-m pytest "*every_schedule*) echo "sanitized, caching $PYTORCH_NO_CUDA_MEMORY_CACHING" ;;
"benchmarks/msda.py "*) echo "benchmark $*" ;;
*) exec "{real}" "$@" ;;
esac
"""
SANITIZER = """#!/bin/sh
echo "compute-sanitizer $1 $2"
while [ "$1" != "$PYTHON" ]; do shift; done
exec "$@"
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="it is a shell script")


@pytest.fixture
def check(tmp_path):
    """Run the script; its end, and what it left."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(TORCH + "from torch import cuda\n")
    (tmp_path / "torch/cuda.py").write_text(CUDA)
    for name, text in {
        "bin/python": PYTHON.format(real=sys.executable),
        "toolkit/bin/compute-sanitizer": SANITIZER,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(**settings: str):
        results = tmp_path / "results"
        environment = {
            "PATH": os.defpath,
            "PYTHON": str(tmp_path / "bin/python"),
            "PYTHONPATH": str(tmp_path),
            "CUDA_HOME": str(tmp_path / "toolkit"),
            "ISDA_GPU_RESULTS": str(results),
            **settings,
        }
        found = subprocess.run(
            ["bash", str(ROOT / "tools/gpu_check.sh")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        summary = results / "summary.json"
        return found, json.loads(summary.read_text()) if summary.exists() else None, results

    return run


def outcomes(summary: dict) -> dict[str, str]:
    return {step["name"]: step["result"] for step in summary["steps"]}


def test_everything_in_order(check):
    found, summary, results = check()
    assert found.returncode == 0, found.stdout + found.stderr
    names = ["build", "loads", "tests", "memcheck", "racecheck", "benchmark"]
    assert outcomes(summary) == dict.fromkeys(names, "passed")
    assert summary["gpu"] == "NVIDIA H200" and summary["capability"] == "9.0"
    assert summary["tests"] == {"tests": 9, "failures": 1, "errors": 0, "skipped": 2}
    assert (results / "build.log").read_text() == "building for 9.0\n"
    log = (results / "racecheck.log").read_text()
    assert log == "compute-sanitizer --tool racecheck\nsanitized, caching 1\n"
    page = (results / "summary.md").read_text()
    assert "|racecheck|passed|" in page
    assert f"--output {results}/msda" in page


def test_kernels_that_do_not_load_are_no_success(check):
    found, summary, results = check(LOADING="libcudart.so.13 is missing")
    assert found.returncode == 1
    assert outcomes(summary)["loads"] == "failed"
    assert "libcudart.so.13 is missing" in found.stdout


def test_a_failed_build_is_shown_and_the_rest_is_done(check):
    found, summary, _ = check(BUILD="3", CUDA_HOME="/nowhere")
    assert found.returncode == 1 and "building for 9.0" in found.stdout
    results = outcomes(summary)
    assert results["build"] == "failed" and results["benchmark"] == "passed"
    assert results["sanitizer"] == "skipped: compute-sanitizer is not installed"


def test_a_step_that_hangs_leaves_time_for_the_others(check):
    found, summary, _ = check(TESTING="60", ISDA_GPU_SECONDS="16")
    assert found.returncode == 1
    results = outcomes(summary)
    assert results["tests"] == "ran out of time" and results["memcheck"] == "passed"
    assert sum(step["seconds"] for step in summary["steps"]) <= 17


def test_without_a_gpu_it_says_so(check):
    found, summary, _ = check(NO_GPU="1")
    assert found.returncode == 1 and summary is None
    assert found.stderr == "gpu_check: PyTorch sees no GPU\n"


def test_an_interpreter_without_pytorch_is_named(check, tmp_path):
    (tmp_path / "torch/__init__.py").write_text("raise ImportError('no torch')")
    found, _, _ = check(PYTHON=sys.executable)
    assert found.returncode == 1
    assert f"gpu_check: {sys.executable} has no PyTorch (no torch); PYTHON=..." in found.stderr
