"""Registering data sets in COCO's format: one's own, and those of this package."""

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import load_coco_json

from isda import strict_json
from isda.data.changes import Changes
from isda.data.classes import distinct_names
from isda.data.cleaning import clean_annotations
from isda.data.coco_json import check_image_files, read_coco_json
from isda.data.errors import DatasetError
from isda.data.file_names import resolve_file_names
from isda.files import write_text

__all__ = [
    "LocatedMetadata",
    "is_temporary",
    "load_coco_json_checked",
    "register_coco_json",
    "register_located",
    "temporary_folder",
    "write_copy",
]

logger = logging.getLogger(__name__)

_LOCATORS: dict[str, Callable[[], tuple[str, str]]] = {}
# (file, image folder, time of change): the file itself, or a cleaned copy.
_CHECKED: dict[tuple[str, str, int], str] = {}
_COPIES: list[tempfile.TemporaryDirectory] = []  # deleted when the process ends


class LocatedMetadata(Metadata):
    """Metadata whose files are looked for, generated or checked when somebody asks for a path.

    Class names can so be there from the import on, at no cost, and an evaluator that is built
    before the data set was loaded finds annotations that COCO's code survives.
    """

    @property
    def json_file(self) -> str:
        """Path of the COCO annotations."""
        return _LOCATORS[self.name]()[0]

    @property
    def image_root(self) -> str:
        """The folder that the annotations' file names are relative to."""
        return _LOCATORS[self.name]()[1]


def register_located(name: str, locate: Callable[[], tuple[str, str]], **metadata) -> None:
    """Registers a data set in COCO's format whose files are located on first use.

    Args:
        name: under which Detectron2's catalogs will know it.
        locate: returns the paths of the annotation file and of the image folder.
        metadata: what is known before, such as ``thing_classes``.
    """
    _LOCATORS[name] = locate
    DatasetCatalog.register(name, lambda: load_coco_json_checked(*locate(), name))
    MetadataCatalog[name] = LocatedMetadata(name=name, evaluator_type="coco", **metadata)


def register_coco_json(
    name: str, json_file: str | os.PathLike, image_root: str | os.PathLike
) -> None:
    """Registers your own data set with Detectron2, checked and cleaned when it is first used.

    In the place of Detectron2's ``register_coco_instances``: annotations that nothing can be
    learnt from are left out and counted, in training and in evaluation, and missing ``iscrowd``,
    ``area`` and ``bbox`` are filled in, where that call lets pycocotools fail or crash.

    Args:
        name: what ``DATASETS.TRAIN`` and ``DATASETS.TEST`` will call it.
        json_file: annotations in COCO's format for instances: polygons and RLE, also mixed.
            Category ids may be any whole numbers.
        image_root: the folder that the file names in it are relative to.

    Raises:
        DatasetError: the name is taken. What is wrong with the files is raised on first use.
    """
    if name in DatasetCatalog:
        raise DatasetError(f"a data set '{name}' is registered already: choose another name")
    json_file, image_root = str(json_file), str(image_root)
    register_located(name, lambda: (_checked_file(json_file, image_root), image_root))


def load_coco_json_checked(
    json_file: str | os.PathLike, image_root: str | os.PathLike, dataset_name: str | None = None
) -> list[dict]:
    """Detectron2's ``load_coco_json`` after our checks; for its arguments and result see there.

    Raises:
        DatasetError: the file cannot be trusted, or images are missing.
    """
    checked = _checked_file(str(json_file), str(image_root))
    return load_coco_json(checked, str(image_root), dataset_name)


def _checked_file(json_file: str, image_root: str) -> str:
    """The path of ``json_file`` if it is fine, else of a copy without what is not."""
    is_local = os.path.isfile(json_file)
    key = (json_file, image_root, os.stat(json_file).st_mtime_ns if is_local else 0)
    if key not in _CHECKED:
        changes = Changes()
        content = read_coco_json(json_file, changes=changes)
        content = resolve_file_names(content, image_root, changes)
        check_image_files(content, json_file, image_root)
        annotations = clean_annotations(content, json_file, changes)
        categories = distinct_names(content["categories"], changes)
        _CHECKED[key] = json_file
        for line in changes.lines():
            logger.warning("%s: %s", json_file, line)
        if changes:
            content |= {"annotations": annotations, "categories": categories}
            _CHECKED[key] = write_copy(content, json_file)
    return _CHECKED[key]


def temporary_folder() -> Path:
    """A new folder that is deleted when the process ends."""
    _COPIES.append(tempfile.TemporaryDirectory(prefix="isda-annotations-"))
    return Path(_COPIES[-1].name)


def write_copy(content: dict, json_file: str) -> str:
    """Writes annotations to a temporary file of the same name, and returns its path."""
    path = temporary_folder() / os.path.basename(json_file)
    write_text(path, strict_json.dumps(content))
    return str(path)


def is_temporary(json_file: str | os.PathLike) -> bool:
    """Whether a registered annotation file is a copy that ends with this process."""
    return any(Path(json_file).is_relative_to(folder.name) for folder in _COPIES)
