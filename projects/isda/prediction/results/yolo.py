"""Polygons as YOLO's segmentation labels have them: a line per instance."""

import os
from typing import TYPE_CHECKING

import numpy as np

from isda.files import write_text
from isda.prediction.results.outlines import Polygon, masks_of, polygons_of

if TYPE_CHECKING:
    from isda.prediction.prediction import Prediction

__all__ = ["lines_of", "write"]


def lines_of(prediction: "Prediction") -> list[str]:
    """``class x1 y1 x2 y2 ...`` of each instance, relative to the image's width and height.

    The form knows one polygon per instance, so holes and further parts are joined to the first by
    a line there and back, which encloses nothing. Scores have no place in it, and an empty mask no
    line.
    """
    height, width = prediction.image_size
    lines = []
    for mask, number in zip(masks_of(prediction), prediction.pred_classes.tolist()):
        polygons = polygons_of(mask)
        if polygons:
            points = (_joined(polygons) / (width, height)).ravel()
            lines.append(" ".join([str(number), *(f"{value:.9g}" for value in points)]))
    return lines


def _joined(polygons: list[Polygon]) -> np.ndarray:
    first, *others = [ring for p in polygons for ring in (p.outline, *p.holes)]
    start = first[:1]
    # Each further ring begins and ends at its own first point, to which one comes from the start.
    detours = [part for ring in others for part in (ring, ring[:1], start)]
    return np.concatenate([first, *([start, *detours] if others else [])])


def write(prediction: "Prediction", path: str | os.PathLike, _) -> None:
    """
    Raises:
        OSError: it cannot be written.
    """
    write_text(path, "".join(f"{line}\n" for line in lines_of(prediction)))
