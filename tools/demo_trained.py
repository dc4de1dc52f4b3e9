"""The first stage of the demo: what the models that come with the package see."""

import contextlib
import io
import json
from pathlib import Path

from isda import Predictor, model_zoo  # before Detectron2, whose import it makes silent

# isort: split
from detectron2.data import DatasetCatalog

from demo_pictures import diverse, draw_predictions_of
from demo_progress import Progress
from isda.engine.trainer import Trainer

__all__ = ["NAMES", "available", "show_trained"]

NAMES = {
    "ISDA": "nuclei/isda_mobilenet_v2",
    "ISTR": "nuclei/istr_mobilenet_v2",
    "Mask R-CNN": "nuclei/mask_rcnn_mobilenet_v2",
}
DATA = "nuclei_mini_val"  # a part of the images that were held out
PICTURES = 4


def available() -> dict[str, str]:
    """Those of the models that have weights here, by the name to show."""
    with_weights = model_zoo.entries()
    return {shown: name for shown, name in NAMES.items() if name in with_weights}


def show_trained(models: dict[str, str], output: Path, progress: Progress) -> None:
    """Draws what they predict and evaluates them, on images that none was trained on."""
    predictors = {shown: Predictor(name, threshold=0.0) for shown, name in models.items()}
    records = diverse(DatasetCatalog.get(DATA), PICTURES)
    draw_predictions_of(predictors, records, output, "trained")
    picture = output / "trained.png"
    inside = picture.is_relative_to(Path.cwd())
    progress.say(f"      pictures: {picture.relative_to(Path.cwd()) if inside else picture}")
    for i, (shown, predictor) in enumerate(predictors.items()):
        progress.update(f"evaluating {shown}", 15.0 * (len(predictors) - i))
        results = evaluate(models[shown], predictor, output)
        entry = model_zoo.entries()[models[shown]]
        progress.say(line_of(shown, results, entry.metrics))


def evaluate(name: str, predictor: Predictor, output: Path) -> dict[str, dict[str, float]]:
    """COCO's metrics on ``nuclei_mini_val``; the evaluator's own tables go to a file."""
    folder = output / "trained" / Path(name).name
    folder.mkdir(parents=True, exist_ok=True)
    overrides = ["DATASETS.TEST", f"('{DATA}',)", "OUTPUT_DIR", str(folder)]
    cfg = model_zoo.get_config(name, overrides=overrides)
    with contextlib.redirect_stdout(io.StringIO()) as console:
        results = Trainer.test(cfg, predictor.model)
    (folder / "console.log").write_text(console.getvalue())
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    return results


def line_of(shown: str, results: dict, published: dict[str, float]) -> str:
    """AP here, and as the table of models has it, on all images that were held out."""
    masks, boxes = results["segm"], results["bbox"]
    here = f"mask AP {masks['AP']:.1f}, AP50 {masks['AP50']:.1f}, box AP {boxes['AP']:.1f}"
    there = f"; in docs/MODEL_ZOO.md, on more images: mask AP {published['segm/AP']:.1f}"
    return f"      {shown}: {here} on {DATA}{there if published else ''}"
