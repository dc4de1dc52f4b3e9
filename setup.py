"""Packaging of ISDA: what it needs at least. `make env` installs a pinned environment.

``ISDA_BUILD`` says which kernels of the deformable attention are compiled: "auto" (the default)
takes what can be built here and leaves out the rest with a message, "cpu" fails without the CPU
kernels, "none" builds none. The package works without any, only slower.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.errors import BaseError, CCompilerError

# Detectron2 is needed too, but is on no package index under its own name, so it cannot be stated
# here: `make env` and docs/INSTALL.md install it, and `isda` says so where it is missing.
REQUIREMENTS = [
    "torch>=2.10",
    "torchvision",
    "numpy",
    "scipy",
    "pillow",
    "pycocotools>=2.0.2",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.11",
    "yacs>=0.1.8",
    "tabulate",
    "termcolor",
    "setuptools<81",  # Detectron2's model zoo imports pkg_resources
]

SOURCES = Path("projects/isda/ops/csrc/cpu")
OLDEST_TORCH = (2, 10)  # the first whose stable ABI has what the kernels need
# Of compilers, of PyTorch, which with ninja raises RuntimeError, and of programs it calls.
FAILURES = (BaseError, CCompilerError, RuntimeError, OSError, subprocess.SubprocessError)


def extensions() -> dict:
    """The arguments of setup() that have to do with compiled kernels."""
    choice = os.environ.get("ISDA_BUILD") or "auto"
    if choice not in ("auto", "cpu", "none"):
        raise SystemExit(f"ISDA_BUILD must be auto, cpu or none, got {choice!r}")
    if choice == "none":
        return {}
    obstacle = obstacle_to_building()
    if obstacle and choice == "cpu":
        raise SystemExit(f"ISDA_BUILD=cpu: {obstacle}")
    if obstacle:
        leave_out(obstacle)
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class Build(BuildExtension):
        def build_extensions(self):
            try:
                super().build_extensions()
            except FAILURES as error:
                if choice == "cpu":
                    raise
                leave_out(f"compiling failed: {error}")
                self.extensions = []  # they are about to be copied

    extension = CppExtension(
        "isda._msda_cpu",
        sorted(str(path) for path in SOURCES.glob("*.cpp")),
        depends=sorted(str(path) for path in SOURCES.glob("*.h")),
        define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000")],
        # Never -ffast-math: NaN has to get through. Instruction sets are chosen at run time.
        extra_compile_args=[
            "-O3",
            "-g0",
            "-ffp-contract=fast",
            "-fvisibility=hidden",
            "-Wno-psabi",
        ],
        py_limited_api=True,
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},  # a wheel for every later Python
    }


def obstacle_to_building() -> "str | None":
    if os.name == "nt" or platform.python_implementation() != "CPython":
        return "the kernels need GCC or Clang, and CPython"
    try:
        import torch
    except ImportError:
        return "PyTorch is not there while building (pip needs --no-build-isolation)"
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        return f"PyTorch is {torch.__version__}, and the kernels need 2.10 or later"
    return None


def leave_out(reason: str) -> None:
    sys.stderr.write(
        f"isda: no compiled kernels, so deformable attention runs in PyTorch: {reason}\n"
    )


setup(
    name="isda",
    version="0.1.0",
    description="End-to-end, NMS-free instance segmentation on Detectron2",
    author="The ISDA project authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    package_dir={"": "projects"},
    packages=find_packages(where="projects"),
    package_data={"isda": ["weights/*"]},
    python_requires=">=3.10",
    install_requires=REQUIREMENTS,
    extras_require={
        "backbones": ["timm"],
        "plots": ["matplotlib", "tensorboard", "opencv-python-headless"],
        "lvis": ["lvis"],
        "cityscapes": ["cityscapesscripts"],
        "dev": ["pytest", "ruff"],
    },
    zip_safe=False,
    **extensions(),
)
