"""What setup.py compiles, with a PyTorch and an nvcc that only say what they are asked to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BOTH = ["isda._msda_cpu", "isda._msda_cuda"]
CPU = BOTH[:1]
CPP_EXTENSION = """
import os
import setuptools
from setuptools.command.build_ext import build_ext

CUDA_HOME = os.environ.get("CUDA_HOME")

def CppExtension(name, sources, **_):
    return setuptools.Extension(name, sources)

CUDAExtension = CppExtension

class BuildExtension(build_ext):
    def build_extensions(self):
        if "isda._msda_cuda" in os.environ.get("REFUSED", "") and len(self.extensions) > 1:
            raise RuntimeError("the compiler is too new for nvcc")
        super().build_extensions()

    def build_extension(self, extension):
        if extension.name in os.environ.get("FAILING", ""):
            raise RuntimeError("Error compiling objects for extension")
        print("built", extension.name, len(extension.sources))
        print("for", os.environ.get("TORCH_CUDA_ARCH_LIST"), "with", CUDA_HOME)
"""
NVCC = """#!/bin/sh
case $1 in
--version) echo "Cuda compilation tools, release 13.1, V13.1.2" ;;
--list-gpu-arch) printf 'compute_75\\ncompute_90\\ncompute_100\\ncompute_101\\n' ;;
--dryrun) echo "#$ TOP={top}/bin/.." >&2 ;;
esac
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fakes programs by shell scripts")


@pytest.fixture
def build(tmp_path):
    """Run ``setup.py build_ext`` and tell what it has built and said."""
    torch, toolkit = tmp_path / "python/torch", tmp_path / "toolkit"
    (torch / "utils").mkdir(parents=True)
    (torch / "__init__.py").write_text("from torch import version\n__version__ = '2.14.1+cu130'\n")
    (torch / "version.py").write_text("cuda = '13.0'\n")
    (torch / "utils/__init__.py").write_text("")
    (torch / "utils/cpp_extension.py").write_text(CPP_EXTENSION)
    (toolkit / "bin").mkdir(parents=True)
    (tmp_path / "path").mkdir()
    for nvcc in (toolkit / "bin/nvcc", tmp_path / "path/nvcc"):
        nvcc.write_text(NVCC.format(top=toolkit))
        nvcc.chmod(0o755)

    def run(**settings: str):
        environment = {
            "PATH": f"{tmp_path / 'path'}:{os.defpath}",
            "PYTHONPATH": str(tmp_path / "python"),
            **settings,
        }
        folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
        found = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", *folders],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = found.stdout.splitlines()
        return [line.split()[1] for line in lines if line.startswith("built")], found

    run.folder = tmp_path
    return run


def test_auto_builds_both_for_what_this_nvcc_knows(build):
    built, found = build()
    assert built == BOTH and found.returncode == 0, found.stderr
    assert "isda: no" not in found.stderr
    # The nvcc on PATH is a script that calls another one, whose folder counts.
    assert f"for 7.5;9.0;10.0+PTX with {build.folder / 'toolkit'}" in found.stdout


def test_named_architectures_win(build):
    _, found = build(TORCH_CUDA_ARCH_LIST="8.6", ISDA_BUILD="cuda")
    assert "for 8.6 with" in found.stdout


@pytest.mark.parametrize("choice, expected", [("cpu", CPU), ("none", []), ("cuda", BOTH)])
def test_choices(build, choice, expected):
    built, found = build(ISDA_BUILD=choice)
    assert built == expected and found.returncode == 0


def test_unknown_choice(build):
    _, found = build(ISDA_BUILD="gpu")
    assert found.returncode and "must be auto, cpu, cuda or none, got 'gpu'" in found.stderr


def older_cuda(folder: Path) -> None:
    (folder / "python/torch/version.py").write_text("cuda = '12.8'\n")


def cpu_only(folder: Path) -> None:
    (folder / "python/torch/version.py").write_text("cuda = None\n")


@pytest.mark.parametrize(
    "change, settings, reason",
    [
        (older_cuda, {}, "nvcc is 13.1, and PyTorch is built with CUDA 12.8: the first numbers"),
        (cpu_only, {}, "this PyTorch is built without CUDA"),
        (None, {"CUDA_HOME": "/nowhere"}, "there is no nvcc; a CUDA toolkit that is not on PATH"),
    ],
)
def test_no_cuda_kernels_without_a_fitting_toolkit(build, change, settings, reason):
    if change:
        change(build.folder)
    built, found = build(**settings)
    assert built == CPU and found.returncode == 0
    message = "isda: no CUDA kernels, so deformable attention on GPUs runs in PyTorch: "
    assert message + reason in found.stderr
    built, found = build(ISDA_BUILD="cuda", **settings)
    assert not built and found.returncode
    assert f"ISDA_BUILD=cuda: no CUDA kernels: {reason}" in found.stderr


@pytest.mark.parametrize("trouble", ["FAILING", "REFUSED"])
def test_what_fails_is_left_out_unless_it_is_asked_for(build, trouble):
    built, found = build(**{trouble: "isda._msda_cuda"})
    assert built == CPU and found.returncode == 0, found.stderr
    assert "isda: no CUDA kernels" in found.stderr
    built, found = build(ISDA_BUILD="cuda", **{trouble: "isda._msda_cuda"})
    assert found.returncode and "ISDA_BUILD=cuda: no CUDA kernels" in found.stderr


def test_cuda_kernels_without_those_for_the_cpu(build):
    built, found = build(FAILING="isda._msda_cpu")
    assert built == BOTH[1:] and "isda: no CPU kernels, so deformable" in found.stderr
    assert build(ISDA_BUILD="cpu", FAILING="isda._msda_cpu")[1].returncode
