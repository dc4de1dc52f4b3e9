"""Compiling the CUDA kernels, where there is an nvcc; no GPU is needed.

Some files for one architecture here; `make cuda-check` compiles all of them for all, and runs the
binding over emulated kernels.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "projects/isda/ops/csrc/cuda"
HERE = Path(__file__).parent / "emulation"
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
# Those that models run: 32 channels, and 16 samples where a group of lanes has a bag for itself.
MAIN_KERNELS = {
    "float32 forward, many queries": "forward_rowsIfNS_8ScheduleILi8ELb0EEELi16E",
    "float32 forward, few": "forward_rowsIfNS_8ScheduleILi8ELb1EEELi0E",
    "float32 backward, many": "backward_rowsIfNS_8ScheduleILi8ELb0EEELi16ELb1ELb1E",
    "float32 backward, few": "backward_rowsIfNS_8ScheduleILi8ELb1EEELi0ELb1ELb1E",
    "bfloat16 forward, many": "forward_rowsINS_8BFloat16ENS_8ScheduleILi4ELb0EEELi16E",
    "bfloat16 forward, few": "forward_rowsINS_8BFloat16ENS_8ScheduleILi4ELb1EEELi0E",
    "bfloat16 backward, many": "backward_rowsINS_8BFloat16ENS_8ScheduleILi8ELb0EEELi16ELb1ELb1E",
    "bfloat16 backward, few": "backward_rowsINS_8BFloat16ENS_8ScheduleILi8ELb1EEELi0ELb1ELb1E",
}

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
thorough = pytest.mark.skipif(
    os.environ.get("ISDA_CUDA_CHECK") != "1", reason="`make cuda-check` runs this"
)


def compile_kernels(folder: Path, sources: list[Path], architectures: list[str], *options: str):
    """What ptxas says: (kernel, registers, bytes spilled)."""
    codes = [f"arch=compute_{a},code=sm_{a}" for a in architectures]
    command = [NVCC, "-O3", "-std=c++17", "-Xcompiler", "-fPIC", "-Xptxas", "-v", *options, "-c"]
    for code in codes:
        command += ["-gencode", code]
    found = subprocess.run(
        [*command, *map(str, sources)], cwd=folder, capture_output=True, text=True, check=False
    )
    output = found.stdout + found.stderr
    assert found.returncode == 0 and "warning" not in output, output[-3000:]
    pattern = r"entry function '(\S+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
    return [
        (name, int(registers), int(spilled))
        for name, spilled, registers in re.findall(pattern, output, re.DOTALL)
    ]


@needs_nvcc
def test_compiles_for_one_architecture(tmp_path):
    names = ["forward_float.cu", "double.cu", "deterministic.cu"]
    kernels = compile_kernels(tmp_path, [SOURCES / name for name in names], ["90"])
    # Rows of four lengths, three ways, and a generic one; both of the generic ones; per type or
    # per precision.
    assert len(kernels) == (4 * 3 + 1) + 2 + (2 + 2 + 4)
    for name, registers, spilled in kernels:
        # Those for sixteen samples, which is what models have, keep all in registers.
        most = 0 if "EEELi16EEE" in name else 32
        assert registers <= 80 and spilled <= most, (name, registers, spilled)


@needs_nvcc
@thorough
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for_every_architecture(tmp_path, architecture):
    options = [
        "-lineinfo",
        "-Xfatbin",
        "-compress-all",
        "-gencode",
        f"arch=compute_{architecture},code=compute_{architecture}",
    ]
    sources = sorted(SOURCES.glob("*.cu"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    kernels = compile_kernels(tmp_path, sources, [architecture], *options)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len(kernels) == 3 * (13 + 21) + 2 + 8
    main = {
        name: next(registers for kernel, registers, _ in kernels if part in kernel)
        for name, part in MAIN_KERNELS.items()
    }
    report = {
        "seconds of one core": round(after.ru_utime - before.ru_utime),
        "registers": main,
        "most registers": max(registers for _, registers, _ in kernels),
        "bytes spilled": {name: spilled for name, _, spilled in kernels if spilled},
        "bytes of machine code and PTX": sum(o.stat().st_size for o in tmp_path.glob("*.o")),
    }
    print(f"sm_{architecture}: {json.dumps(report)}")  # noqa: T201


@needs_nvcc
@thorough
def test_the_extension_builds_and_loads(tmp_path):
    """For one architecture, in a copy; and what is then chosen."""
    for part in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / part, tmp_path)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "projects/isda", tmp_path / "projects/isda", ignore=ignored)
    environment = {**os.environ, "ISDA_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": "9.0"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    built = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, (built.stdout + built.stderr)[-3000:]
    assert len(list((tmp_path / "projects/isda").glob("_msda_*.abi3.so"))) == 2
    code = "import isda.ops; listed = isda.ops.backends(); print(listed.built, listed.missing)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "projects")}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert found.stdout == "('cpu', 'cuda', 'torch') {}\n", found.stdout + found.stderr


@thorough
def test_binding_over_emulated_kernels(tmp_path):
    """The operators as C++ registers them, against the pure ones."""
    library = tmp_path / "_msda_cuda.so"
    pytorch = Path(torch.__file__).parent
    folders = [HERE, SOURCES, pytorch / "include", sysconfig.get_paths()["include"]]
    command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-DUSE_CUDA"]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-Wno-unknown-pragmas", "-Wno-psabi"]
    command += ["-Wl,-Bsymbolic", *(f"-I{folder}" for folder in folders)]
    command += [str(HERE / "binding.cpp"), "-o", str(library), f"-L{pytorch / 'lib'}"]
    command += ["-ltorch_cpu", "-lc10"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "projects")}
    command = [sys.executable, str(HERE / "check_binding.py"), str(library)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-1500:] + found.stderr[-1500:]
    assert found.stdout.endswith("60 cases\n"), found.stdout
