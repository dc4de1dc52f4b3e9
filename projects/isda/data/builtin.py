"""Registers our data sets with Detectron2: nuclei, a part of them, and the generated shapes.

COCO, LVIS and Cityscapes come with Detectron2's own registrations; datasets/README.md says where
their files belong.
"""

import functools
import os
from pathlib import Path

from detectron2.data import DatasetCatalog

from isda.data.errors import DatasetError
from isda.data.registration import register_located
from isda.data.shapes import ShapesParameters, ensure_shapes

_CHECKOUT = Path(__file__).resolve().parents[3]

# name: (number of images, parameters)
SHAPES = {
    "shapes_train": (4000, ShapesParameters(seed=1)),
    "shapes_val": (200, ShapesParameters(seed=2)),
    # To be overfit, so without the images that teach nothing.
    "shapes_tiny8_train": (8, ShapesParameters(seed=3, crowd_share=0, empty_share=0)),
}
# name: (folder, annotations)
NUCLEI = {
    "nuclei_mini_train": ("nuclei_mini", "instances_train.json"),
    "nuclei_mini_val": ("nuclei_mini", "instances_val.json"),
    "nuclei_train": ("nuclei", "instances_train.json"),
    "nuclei_val": ("nuclei", "instances_val.json"),
}


def datasets_root() -> Path:
    """Where generated data sets belong.

    ``$DETECTRON2_DATASETS``, else ``datasets/`` of the checkout, else of the working directory.
    """
    root = os.environ.get("DETECTRON2_DATASETS")
    if root:
        return Path(root).expanduser()
    return (_CHECKOUT if _is_checkout() else Path.cwd()) / "datasets"


def _is_checkout() -> bool:
    return (_CHECKOUT / "datasets" / "README.md").is_file()


def locate_shapes(name: str) -> tuple[str, str]:
    """Paths of the annotations and of the images' folder, generated if need be.

    Raises:
        DatasetError: the folder cannot be written; the message says how to choose another one.
    """
    num_images, parameters = SHAPES[name]
    folder = datasets_root() / "shapes" / name
    try:
        json_file = ensure_shapes(folder, num_images, parameters)
    except OSError as error:
        raise DatasetError(
            f"cannot generate data set '{name}' in {folder} ({error}): "
            "set DETECTRON2_DATASETS to a folder that can be written"
        ) from error
    return str(json_file), str(folder)


def locate_nuclei(name: str) -> tuple[str, str]:
    """Paths of the annotations and of the images' folder.

    Raises:
        DatasetError: neither ``$DETECTRON2_DATASETS`` nor the checkout has them.
    """
    folder, annotations = NUCLEI[name]
    folders = [_CHECKOUT / "datasets" / folder]
    root = os.environ.get("DETECTRON2_DATASETS")
    if root:
        folders.insert(0, Path(root).expanduser() / folder)
    for candidate in folders:
        if (candidate / annotations).is_file():
            return str(candidate / annotations), str(candidate / "images")
    remedy = (
        "it is part of the repository, so install the package from a clone in editable mode, or "
        "copy datasets/nuclei_mini there"
        if folder == "nuclei_mini"
        else "tools/make_nuclei.py makes it, and its first lines say from what"
    )
    raise DatasetError(
        f"data set '{name}' is neither in {folders[-1]} nor in $DETECTRON2_DATASETS/{folder} "
        f"(DETECTRON2_DATASETS is {root or 'not set'}): {remedy}"
    )


def register_embedded() -> None:
    """Registers every embedded data set that is not registered yet."""
    classes = {name: parameters.classes for name, (_, parameters) in SHAPES.items()}
    classes |= dict.fromkeys(NUCLEI, ("nucleus",))
    for name, names in classes.items():
        if name not in DatasetCatalog:
            locate = locate_shapes if name in SHAPES else locate_nuclei
            register_located(
                name,
                functools.partial(locate, name),
                thing_classes=list(names),
                thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(names))},
            )


register_embedded()
