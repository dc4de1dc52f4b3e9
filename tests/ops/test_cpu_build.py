"""The CPU kernels under sanitizers and on processors that are not at hand: `make cpu-check`.

Here they run under AddressSanitizer and UndefinedBehaviorSanitizer. Where `ziglang` is installed,
whose compiler knows all targets, they are compiled for AArch64, and run in QEMU if it is on PATH.
"""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
import torch.utils.cpp_extension

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "projects/isda/ops/csrc/cpu"
ZIG = [sys.executable, "-m", "ziglang", "c++"]
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")

needs_zig = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="there is no ziglang (pip install ziglang)"
)
thorough = pytest.mark.skipif(
    os.environ.get("ISDA_CPU_CHECK") != "1", reason="`make cpu-check` runs this"
)


@needs_zig
@thorough
@pytest.mark.parametrize("target", ["aarch64-linux-gnu", "aarch64-macos"])
def test_compiles_for_other_processors(tmp_path, target):
    folders = [torch.utils.cpp_extension.include_paths()[0], sysconfig.get_paths()["include"]]
    options = ["-std=c++20", "-c", "-O0", "-Wall", "-Werror", "-ffp-contract=fast"]
    options += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
    options += [part for folder in folders for part in ("-isystem", folder)]
    for source in sorted(SOURCES.glob("*.cpp")):
        command = [*ZIG, "-target", target, *options, str(source), "-o", str(tmp_path / "x.o")]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr[-3000:]


def run_kernels(**settings: str) -> str:
    """What tests/ops/sanitized.cpp says of the kernels."""
    script = ROOT / "tools/sanitize_cpu_kernels.sh"
    environment = {**os.environ, **settings}
    found = subprocess.run(
        ["sh", str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, (found.stdout + found.stderr)[-3000:]
    return found.stdout


@thorough
@pytest.mark.skipif(os.name == "nt", reason="it is a shell script")
def test_kernels_under_sanitizers():
    said = run_kernels().splitlines()
    assert said[0] == "baseline: good"
    assert platform.machine() != "x86_64" or said[1:] == ["avx2: good"]


@needs_zig
@thorough
@pytest.mark.skipif(QEMU is None, reason="there is no qemu-aarch64 (apt install qemu-user-static)")
def test_kernels_run_on_aarch64():
    # With musl programs need nothing of a system.
    compiler = shlex.join([*ZIG, "-target", "aarch64-linux-musl"])
    assert run_kernels(CXX=compiler, RUN=QEMU, SANITIZE="") == "baseline: good\n"
