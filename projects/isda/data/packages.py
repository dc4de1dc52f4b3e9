"""Packages that some data sets need, and that are not installed with this one."""

import importlib.util
from collections.abc import Iterable

from detectron2.data import MetadataCatalog

from isda.data.lvis_api import provide_lvis
from isda.errors import MissingPackageError

__all__ = ["prepare_packages"]

# By the evaluator_type of a data set; they are imported by the names that pip knows.
PACKAGES = {
    "lvis": ("hotcoco",),
    # The first knows the classes and evaluates, the second makes polygons.
    "cityscapes_instance": ("cityscapesscripts", "shapely"),
}


def prepare_packages(names: Iterable[str]) -> None:
    """Look for what the data sets need, before time is spent on them.

    Afterwards Detectron2 can read and evaluate LVIS in this process.

    Args:
        names: of data sets; whether they are registered is not looked at.

    Raises:
        MissingPackageError: something is not installed; the message says how to install it.
    """
    for name in names:
        kind = MetadataCatalog.get(name).get("evaluator_type")
        needed = PACKAGES.get(kind, ())
        missing = [package for package in needed if importlib.util.find_spec(package) is None]
        if missing:
            noun = "packages" if len(missing) > 1 else "package"
            raise MissingPackageError(
                f"data set '{name}' needs the {noun} {' and '.join(missing)}: "
                f"pip install {' '.join(missing)}"
            )
        if kind == "lvis":
            provide_lvis()
