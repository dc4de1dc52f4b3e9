"""The same photographs as every trained method sees them."""

from collections.abc import Sequence
from pathlib import Path

from isda.prediction.predictor import Predictor

from detectron2.data import DatasetCatalog

from comparison.runs import Run
from demo_pictures import diverse, draw_predictions_of

__all__ = ["NUM_PICTURES", "draw_methods"]

NUM_PICTURES = 4


def draw_methods(runs: Sequence[Run], output: Path) -> None:
    """Photograph, ground truth, and the predictions of each finished training's last weights.

    Args:
        output: gets ``predictions.png``, and the folder ``predictions`` with one picture each.
    """
    predictors = {}
    for run in runs:
        cfg = run.cfg.clone()
        cfg.MODEL.WEIGHTS = str(run.folder / "model_final.pth")
        predictors[run.method.title] = Predictor(cfg)
    records = DatasetCatalog.get(runs[0].cfg.DATASETS.TEST[0])
    draw_predictions_of(predictors, diverse(records, NUM_PICTURES), output, "predictions")
