"""Results of an image as other programs read them; the suffix of a file chooses the form."""

import importlib
import os
from typing import TYPE_CHECKING

import numpy as np

from isda.prediction.files import format_of

if TYPE_CHECKING:
    from isda.prediction.prediction import Prediction

__all__ = ["write_result"]

# Modules that are imported when one of their files is written, each with a function write.
_MODULES = {
    "labels": "label_image",
    "rois": "rois",
    "geojson": "geojson",
    "yolo": "yolo",
    "table": "table",
}


def write_result(
    prediction: "Prediction",
    path: str | os.PathLike,
    pixels: np.ndarray | None = None,
    *,
    with_labels: bool | None = None,
) -> None:
    """Write what was found in one image into a file, whole or not at all.

    Args:
        path: its suffix says how, see :func:`isda.prediction.files.format_of`.
        pixels: what intensities are measured in, of the image's size; None: the image's own.
        with_labels: names and scores in a picture, as of ``Prediction.draw``.

    Raises:
        OSError: the file cannot be written, or holds no such result.
        MissingPackageError: a package is missing that writes it.
    """
    form = format_of(path)
    if form == "picture":
        from isda.visualization import write_image

        write_image(path, prediction.draw(with_labels=with_labels))
    elif form == "coco":
        from isda import strict_json
        from isda.files import write_text

        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        write_text(path, strict_json.dumps(prediction.to_coco()))
    else:
        module = importlib.import_module(f"isda.prediction.results.{_MODULES[form]}")
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        module.write(prediction, path, pixels)
