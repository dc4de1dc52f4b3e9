"""The demo's pictures: photographs beside ground truth and predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from isda.data.images import read_image
from isda.prediction.predictor import Predictor, confident
from isda.visualization import (
    brighten,
    contact_sheet,
    draw_annotations,
    draw_predictions,
    side_by_side,
    write_image,
)

import numpy as np

__all__ = ["diverse", "draw_predictions_of", "load_example"]

PICTURE_HEIGHT = 384  # pixels of each panel
SCORE_THRESHOLD = 0.5  # of the masks in the pictures; AP counts all masks, whatever their score


def load_example(record: dict) -> tuple[np.ndarray, list[dict], float]:
    """An image for showing, its annotations, and the scale that gives it the common height."""
    image = brighten(read_image(record["file_name"], "RGB"))
    return image, record["annotations"], PICTURE_HEIGHT / image.shape[0]


def diverse(records: Sequence[dict], count: int) -> list[dict]:
    """At most ``count`` records, spread evenly over the brightness of their images.

    So every kind of photograph is among them, and nobody chose those that look well.
    """
    brightness = [read_image(record["file_name"], "RGB").mean() for record in records]
    order = sorted(range(len(records)), key=brightness.__getitem__)
    count = min(count, len(records))
    return [records[order[(2 * i + 1) * len(records) // (2 * count)]] for i in range(count)]


def draw_predictions_of(
    predictors: Mapping[str, Predictor], records: Sequence[dict], output: Path, name: str
) -> None:
    """Photograph, ground truth, and what each model predicts.

    Args:
        output: gets ``NAME.png`` with all records, and the folder ``NAME`` with one picture each.
    """
    sheet = []
    for record in records:
        image, annotations, scale = load_example(record)
        original = read_image(record["file_name"], "RGB")  # what the models see
        title = "photograph" if np.array_equal(image, original) else "photograph, brightened"
        paint = {"with_labels": False, "scale": scale}
        panels = {
            title: draw_annotations(image, [], **paint),
            f"ground truth: {len(annotations)}": draw_annotations(image, annotations, **paint),
        }
        for model, predictor in predictors.items():
            instances = confident(predictor(original), SCORE_THRESHOLD)
            title = f"{model}: {len(instances)} of score >= {SCORE_THRESHOLD}"
            panels[title] = draw_predictions(image, instances, **paint)
        sheet.append(side_by_side(panels))
        write_image(output / name / f"{Path(record['file_name']).stem}.png", sheet[-1])
    write_image(output / f"{name}.png", contact_sheet(sheet, 1))
