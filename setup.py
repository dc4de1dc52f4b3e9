"""Packaging of ISDA: what it needs at least. `make env` installs a pinned environment."""

from setuptools import find_packages, setup

# Detectron2 is needed too, but is on no package index under its own name, so it cannot be stated
# here: `make env` and docs/INSTALL.md install it, and `isda` says so where it is missing.
REQUIREMENTS = [
    "torch>=2.4",
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
)
