"""Packaging of ISDA: what it needs at least. `make env` installs a pinned environment.

``ISDA_BUILD`` says which kernels of the deformable attention are compiled: "auto" (the default)
takes what can be built here and leaves out the rest with a message, "cpu" fails without the CPU
kernels, "cuda" fails without these and the CUDA kernels, "none" builds none. The package works
without any, only slower. Nothing asks whether there is a GPU.

What lies outside ``projects/`` and belongs to an installed package all the same is copied when it
is built: the recipes (``isda/configs``), what the keys mean (``isda/docs/CONFIG.md``), and the
commit (``isda/commit.txt``).
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist
from setuptools.errors import BaseError, CCompilerError

# Detectron2 is needed too, but is on no package index under its own name, so it cannot be stated
# here: `make env` and docs/INSTALL.md install it, and `isda` says so where it is missing.
REQUIREMENTS = [
    "torch>=2.10",
    "torchvision",
    "numpy",
    "scipy",
    "pillow",
    "tifffile>=2023.2.2,<2027",
    "pycocotools>=2.0.2",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.11",
    "yacs>=0.1.8",
    "tabulate",
    "termcolor",
]

CONFIGS = Path("configs")
REFERENCE = Path("docs/CONFIG.md")
COMMIT = Path("commit.txt")  # in a source distribution, which has no git
SOURCES = Path("projects/isda/ops/csrc")
# Instead of these, TORCH_CUDA_ARCH_LIST.
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
OLDEST_TORCH = (2, 10)  # the first whose stable ABI has what the kernels need
KERNELS = {"isda._msda_cpu": "CPU kernels", "isda._msda_cuda": "CUDA kernels"}
# Never -ffast-math: NaN has to get through. Instruction sets are chosen at run time.
CXX_OPTIONS = ["-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden", "-Wno-psabi"]
# Lines of the source, for profilers, are most of the machine code's size, unless compressed.
NVCC_OPTIONS = [
    "-O3",
    "-lineinfo",
    "-Xfatbin",
    "-compress-all",
    "-Xcompiler",
    "-fvisibility=hidden",
]
# Of compilers, of PyTorch, which with ninja raises RuntimeError, and of programs it calls.
FAILURES = (BaseError, CCompilerError, RuntimeError, OSError, subprocess.SubprocessError)


class BuildPackage(build_py):
    """``build_py``, with what lies outside the package; an editable one sees the checkout's."""

    def run(self):
        super().run()
        if getattr(self, "editable_mode", False):
            return
        package = Path(self.build_lib, "isda")
        for file in (*sorted(CONFIGS.rglob("*.yaml")), REFERENCE):
            target = package / file
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(file), str(target))
        write_commit(package)


class SourceDistribution(sdist):
    """``sdist``, with the commit."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        write_commit(Path(base_dir))


COMMANDS = {"build_py": BuildPackage, "sdist": SourceDistribution}


def write_commit(folder: Path) -> None:
    """Say in ``folder`` what it was built from, where that is known."""
    commit = current_commit()
    if commit:
        (folder / COMMIT).write_text(f"{commit}\n", encoding="utf-8")


def current_commit() -> "str | None":
    """The commit of this checkout, or the one that a source distribution names."""
    if COMMIT.exists():
        return COMMIT.read_text(encoding="utf-8").strip()
    if not Path(".git").exists():  # else git would look in the folders above
        return None
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.SubprocessError):
        return None


def extensions() -> dict:
    """The arguments of setup() that have to do with compiled kernels."""
    choice = os.environ.get("ISDA_BUILD") or "auto"
    if choice not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(f"ISDA_BUILD must be auto, cpu, cuda or none, got {choice!r}")
    if choice == "none":
        return {"cmdclass": COMMANDS}
    obstacle = obstacle_to_building()
    if obstacle:
        give_up(choice, obstacle, "compiled kernels")
        return {"cmdclass": COMMANDS}
    modules = [cpu_extension]
    if choice != "cpu":
        obstacle = obstacle_to_cuda()
        if obstacle:
            give_up(choice, obstacle, "CUDA kernels")
        else:
            # PyTorch looks only beside nvcc, and as soon as its tools for building are imported.
            os.environ["CUDA_HOME"] = cuda_home()
            modules.append(cuda_extension)
    return {
        "ext_modules": [module() for module in modules],
        "cmdclass": {**COMMANDS, "build_ext": build_command(choice)},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},  # a wheel for every later Python
    }


def cpu_extension():
    from torch.utils.cpp_extension import CppExtension

    return CppExtension(
        "isda._msda_cpu",
        sorted(str(path) for path in SOURCES.glob("cpu/*.cpp")),
        depends=sorted(str(path) for path in [*SOURCES.glob("*.h"), *SOURCES.glob("cpu/*.h")]),
        define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000")],
        extra_compile_args=CXX_OPTIONS,
        py_limited_api=True,
    )


def cuda_extension():
    from torch.utils.cpp_extension import CUDAExtension

    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        os.environ["TORCH_CUDA_ARCH_LIST"] = known_architectures(os.environ["CUDA_HOME"])
    sources = [path for pattern in ("*.cpp", "*.cu") for path in SOURCES.glob(f"cuda/{pattern}")]
    patterns = ("*.h", "cuda/*.h", "cuda/*.cuh")
    headers = [path for pattern in patterns for path in SOURCES.glob(pattern)]
    return CUDAExtension(
        "isda._msda_cuda",
        sorted(map(str, sources)),
        depends=sorted(map(str, headers)),
        define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000"), ("USE_CUDA", None)],
        extra_compile_args={
            "cxx": CXX_OPTIONS,
            "nvcc": NVCC_OPTIONS,
        },
        py_limited_api=True,
    )


def build_command(choice: str):
    """``build_ext``, which leaves out what does not compile unless it has been asked for."""
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def build_extensions(self):
            try:
                super().build_extensions()
            except FAILURES as error:  # before any is compiled, and it may be nvcc's alone
                others = [e for e in self.extensions if e.name != "isda._msda_cuda"]
                give_up(choice, str(error), "CUDA kernels" if others else "compiled kernels")
                if len(others) in (0, len(self.extensions)):
                    self.extensions = []
                else:
                    self.extensions = others
                    self.build_extensions()

        def build_extension(self, extension):
            try:
                super().build_extension(extension)
            except FAILURES as error:
                give_up(choice, f"compiling failed: {error}", KERNELS[extension.name])
                # They are about to be copied.
                self.extensions = [e for e in self.extensions if e is not extension]

    return Build


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


def obstacle_to_cuda() -> "str | None":
    import torch

    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    home = cuda_home()
    if home is None:
        return "there is no nvcc; a CUDA toolkit that is not on PATH can be named in CUDA_HOME"
    found = re.search(r"release (\d+)\.(\d+)", nvcc(home, "--version"))
    if found is None or found.group(1) != torch.version.cuda.split(".")[0]:
        version = found.group().split()[-1] if found else "of an unknown version"
        return (
            f"nvcc is {version}, and PyTorch is built with CUDA {torch.version.cuda}: the first "
            "numbers must agree"
        )
    return None


def cuda_home() -> "str | None":
    """Where the CUDA toolkit is: as named, or as the nvcc on PATH knows it."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named:
        return named if Path(named, "bin", "nvcc").exists() else None
    found = shutil.which("nvcc")
    if found is None:
        usual = Path("/usr/local/cuda")
        return str(usual) if (usual / "bin/nvcc").exists() else None
    # It may be a script or a link that calls the real one, so its own folder says little.
    command = [found, "--dryrun", "-x", "cu", "-c", os.devnull]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.+)$", answer.stderr, re.MULTILINE)
    return str(Path(top.group(1)).resolve() if top else Path(found).parent.parent)


def nvcc(home: str, option: str) -> str:
    try:
        return subprocess.check_output([str(Path(home, "bin", "nvcc")), option], text=True)
    except (OSError, subprocess.SubprocessError):
        return ""


def known_architectures(home: str) -> str:
    """Those of ARCHITECTURES that this nvcc compiles for, and PTX for what comes after them."""
    listed = nvcc(home, "--list-gpu-arch").split()
    known = [a for a in ARCHITECTURES if f"compute_{a.replace('.', '')}" in listed]
    return ";".join([*known[:-1], f"{known[-1]}+PTX"] if known else ARCHITECTURES)


def give_up(choice: str, reason: str, what: str) -> None:
    """End the installation if the kernels have been asked for, else say that they are missing."""
    if choice != "auto":
        raise SystemExit(f"ISDA_BUILD={choice}: no {what}: {reason}")
    place = "on GPUs " if what == "CUDA kernels" else ""
    sys.stderr.write(f"isda: no {what}, so deformable attention {place}runs in PyTorch: {reason}\n")


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
    package_data={
        "isda": ["weights/*", "**/*.json", "**/*.html", "**/*.css", "**/*.js"],
        "isda.ops": ["csrc/cuda/*.h", "csrc/cuda/*.cuh"],  # for NVRTC
    },
    entry_points={"console_scripts": ["isda = isda.cli:program"]},
    python_requires=">=3.10",
    install_requires=REQUIREMENTS,
    extras_require={
        "backbones": ["timm"],
        "plots": ["matplotlib", "tensorboard", "opencv-python-headless"],
        "evaluation": ["hotcoco>=1.3,<2"],
        "lvis": ["hotcoco>=1.3,<2"],
        "cityscapes": ["cityscapesscripts", "shapely"],
        "codecs": ["imagecodecs"],  # of TIFF: JPEG 2000, JPEG XL, Zstandard, packed 12 bits
        "results": ["roifile", "scikit-image"],  # ImageJ's ROIs, measurements
        "export": ["onnx", "onnxscript", "onnxruntime"],
        "dev": ["pytest", "ruff"],
    },
    zip_safe=False,
    **extensions(),
)
