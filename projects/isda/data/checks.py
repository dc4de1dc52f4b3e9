"""Checks of the annotations of COCO data sets before hours of training are spent on them.

Nothing here hands a segmentation to pycocotools before it was looked at: it crashes on some
malformed ones.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable

from detectron2.data.catalog import Metadata

from isda.data.classes import check_categories, registered_metadata
from isda.data.cleaning import MALFORMED, has_short_part, is_box, named, with_reasons
from isda.data.coco_json import check_image_files, read_coco_json
from isda.data.crowds import crowds_instead
from isda.data.errors import DatasetError

__all__ = ["check_coco_json", "check_datasets"]

logger = logging.getLogger(__name__)

# pycocotools reads these of every annotation that it evaluates.
_EVALUATED = ("bbox", "area", "iscrowd")


def check_coco_json(
    json_file: str | os.PathLike, image_root: str | os.PathLike, evaluated: bool = False
) -> None:
    """Checks a COCO data set that Detectron2 itself will read, and COCO's evaluation.

    Those take the file as it is. So what would kill or stop them is fatal here, and other
    degenerate annotations, which training leaves out, are counted in a warning.

    Args:
        json_file: annotation file in COCO's format for instances.
        image_root: the folder that the file names in it are relative to.
        evaluated: whether the data set is evaluated on; else it is trained on.

    Raises:
        DatasetError: the first reason not to use it.
    """
    content = read_coco_json(json_file, needs_annotations=not evaluated)
    check_image_files(content, json_file, image_root)
    _check_annotations(content, json_file, evaluated)


def _check_annotations(content: dict, json_file, evaluated: bool) -> None:
    if not evaluated and all(a.get("iscrowd", 0) for a in content["annotations"]):
        raise DatasetError(
            f"{json_file}: has no annotation to train on (crowds do not count)"
            f"{crowds_instead(content) or ': is it a test set?'}"
        )
    counts: Counter[str] = Counter()
    for annotation, image, reason, _ in with_reasons(content, json_file):
        counts[reason] += 1
        culprit = f"is {reason}" if reason == MALFORMED else ""
        if evaluated:
            culprit = culprit or _breaks_evaluation(annotation)
        if culprit:
            raise DatasetError(
                f"{json_file}: {named(annotation, image)} {culprit}, which COCO's own code does "
                "not survive: correct it, or register the data set by "
                "isda.data.register_coco_json, which leaves out or repairs such annotations"
            )
    if evaluated and any(annotation["id"] == 0 for annotation in content["annotations"]):
        logger.warning(
            f"{json_file}: has an annotation with id 0, which COCO's evaluation takes for missed, "
            "whatever is predicted: count ids from 1"
        )
    del counts[""]
    if counts:
        listed = ", ".join(f"{number} {reason}" for reason, number in counts.items())
        logger.warning("%s: annotations that nothing can be learnt from: %s", json_file, listed)


def _breaks_evaluation(annotation: dict) -> str:
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return "is without segmentation"
    if isinstance(segmentation, list) and has_short_part(segmentation):
        return "has a polygon of fewer than 6 numbers"
    missing = [key for key in _EVALUATED if key not in annotation]
    if missing:
        return f"is without {' and '.join(missing)}"
    return "" if is_box(annotation["bbox"]) else "has a bbox that is not [x, y, width, height]"


def check_datasets(train_names: Iterable[str], test_names: Iterable[str]) -> None:
    """Checks the data sets of a configuration that have COCO annotations.

    Others (LVIS, Cityscapes) are left to Detectron2. Generates what is generated on first use.

    Args:
        train_names, test_names: as in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

    Raises:
        DatasetError: a name is not registered, or what :func:`check_coco_json` finds.
    """
    checked = set()
    for names, evaluated in ((train_names, False), (test_names, True)):
        for name in names:
            metadata = registered_metadata(name)
            if metadata.get("evaluator_type") == "coco" and (name, evaluated) not in checked:
                checked.add((name, evaluated))
                _check_dataset(name, metadata, evaluated)


def _check_dataset(name: str, metadata: Metadata, evaluated: bool) -> None:
    json_file = metadata.get("json_file")
    if json_file is None:
        return
    content = read_coco_json(json_file, needs_annotations=not evaluated)
    check_categories(name, content["categories"])
    check_image_files(content, json_file, metadata.image_root)
    _check_annotations(content, json_file, evaluated)
