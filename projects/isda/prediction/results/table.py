"""A table of measurements: a row per instance."""

import csv
import io
import os
import warnings
from typing import TYPE_CHECKING

import numpy as np

from isda.files import write_text
from isda.prediction.errors import needed
from isda.prediction.results.outlines import masks_of, window_of

if TYPE_CHECKING:
    from isda.prediction.prediction import Prediction

__all__ = ["TableOfImages", "rows_of", "write"]

_SHAPES = ("area", "axis_major_length", "axis_minor_length", "eccentricity", "perimeter")
_COLOURS = ("red", "green", "blue")


def rows_of(prediction: "Prediction", pixels: np.ndarray | None = None) -> list[dict]:
    """Measurements of each instance by scikit-image's ``regionprops_table``, in pixels.

    An instance is measured by its whole mask, also where it lies below another one. (0, 0) is the
    centre of the first pixel, as in scikit-image. An empty mask has an area of 0 and no more.

    Args:
        pixels: ``(H, W)`` or ``(H, W, 3)``, what mean intensities are of; None: the image as the
            prediction has it.

    Returns:
        Per instance ``label`` (its number in the label image), ``class``, ``score``, ``area``,
        ``centroid_x``, ``centroid_y``, ``axis_major_length``, ``axis_minor_length``,
        ``eccentricity``, ``perimeter`` and ``intensity_mean``, or of colours
        ``intensity_mean_red`` and so on.

    Raises:
        MissingPackageError: scikit-image is not installed.
    """
    measure = needed("skimage.measure", "a table of measurements", "scikit-image")
    pixels = prediction.pixels if pixels is None else pixels
    found = zip(masks_of(prediction), prediction.names, prediction.scores.tolist())
    rows = []
    for number, (mask, name, score) in enumerate(found, 1):
        row = {"label": number, "class": name, "score": score, "area": 0}
        rows.append(row | _measured(measure, mask, pixels))
    return rows


def _measured(measure, mask: np.ndarray, pixels: np.ndarray) -> dict[str, float]:
    window, (top, left) = window_of(mask)
    if not window.size:
        return {}
    height, width = window.shape
    intensities = pixels[top : top + height, left : left + width]
    with warnings.catch_warnings():  # of a single pixel's axes
        warnings.simplefilter("ignore", RuntimeWarning)
        table = measure.regionprops_table(
            window.astype(np.uint8),
            intensity_image=intensities,
            properties=("centroid", *_SHAPES, "intensity_mean"),
        )
    values = {name: float(column[0]) for name, column in table.items()}
    centre = {
        "centroid_x": values.pop("centroid-1") + left,
        "centroid_y": values.pop("centroid-0") + top,
    }
    shapes = {name: values[name] for name in _SHAPES}
    shapes["area"] = int(shapes["area"])
    return {"area": shapes.pop("area")} | centre | shapes | _intensities(values)


def _intensities(values: dict[str, float]) -> dict[str, float]:
    if "intensity_mean" in values:
        return {"intensity_mean": values["intensity_mean"]}
    return {f"intensity_mean_{c}": values[f"intensity_mean-{i}"] for i, c in enumerate(_COLOURS)}


def write(prediction: "Prediction", path: str | os.PathLike, pixels: np.ndarray | None) -> None:
    """
    Raises:
        OSError: it cannot be written.
        MissingPackageError: scikit-image is not installed.
    """
    _write(path, rows_of(prediction, pixels))


def _write(path: str | os.PathLike, rows: list[dict]) -> None:
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns) or ["label"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


class TableOfImages:
    """Measurements of many images, written as one table when the block ends."""

    def __init__(self, path: str | None):
        """
        Args:
            path: of the file; None: nothing is kept.

        Raises:
            MissingPackageError: scikit-image is not installed.
        """
        self.path = path
        self.rows: list[dict] = []
        if path:
            needed("skimage.measure", path, "scikit-image")

    def __enter__(self) -> "TableOfImages":
        return self

    def __exit__(self, *_) -> None:  # also when somebody interrupts: what was found is not lost
        if self.path:
            _write(self.path, self.rows)

    def add(
        self, file_name: str, prediction: "Prediction", pixels: np.ndarray | None, **fields
    ) -> None:
        """Takes the instances of one image; ``fields`` stand beside its name."""
        if self.path:
            start = {"image": file_name} | fields
            self.rows += [start | row for row in rows_of(prediction, pixels)]
