"""The first stage of the demo: what the models that come with the package see."""

import contextlib
import io
import json
from pathlib import Path

from isda import Predictor, model_zoo, strict_json
from isda.engine.trainer import Trainer
from isda.files import write_text
from isda.model_zoo import ModelEntry

from detectron2.data import DatasetCatalog

from demo_pictures import diverse, draw_predictions_of
from training_progress import Progress, shown_path

__all__ = ["NAMES", "available", "show_trained"]

NAMES = {
    "ISDA": "nuclei/isda_boxes_mobilenet_v2",
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
    """Draws what they predict and evaluates them, on images that none was trained on.

    What an earlier demo found out about the same weights and config is shown again.
    """
    entries = {shown: model_zoo.entries()[name] for shown, name in models.items()}
    known = {shown: recall(output, entry) for shown, entry in entries.items()}
    picture = output / "trained.png"
    if not (all(known.values()) and picture.is_file()):
        predictors = {shown: Predictor(name, threshold=0.0) for shown, name in models.items()}
        records = diverse(DatasetCatalog.get(DATA), PICTURES)
        draw_predictions_of(predictors, records, output, "trained")
    progress.say(f"      pictures: {shown_path(picture)}")
    for i, (shown, entry) in enumerate(entries.items()):
        progress.update(f"evaluating {shown}", 35.0 * (len(entries) - i))
        results = known[shown] or evaluate(entry, predictors[shown], output)
        progress.say(line_of(shown, results, entry.metrics))


def results_file(output: Path, entry: ModelEntry) -> Path:
    return output / "trained" / Path(entry.name).name / "results.json"


def recall(output: Path, entry: ModelEntry) -> dict[str, dict[str, float]] | None:
    """What :func:`evaluate` found for these weights and this config, if it did."""
    path = results_file(output, entry)
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found["results"] if found.get("of") == evaluated(entry) else None


def evaluated(entry: ModelEntry) -> list[str | None]:
    """What the results depend on: the weights' sha256 and the config."""
    return [entry.sha256, model_zoo.get_config(entry.name).dump()]


def evaluate(entry: ModelEntry, predictor: Predictor, output: Path) -> dict[str, dict[str, float]]:
    """COCO's metrics on ``nuclei_mini_val``; the evaluator's own tables go to a file."""
    path = results_file(output, entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    overrides = ["DATASETS.TEST", f"('{DATA}',)", "OUTPUT_DIR", str(path.parent)]
    cfg = model_zoo.get_config(entry.name, overrides=overrides)
    with contextlib.redirect_stdout(io.StringIO()) as console:
        results = Trainer.test(cfg, predictor.model)
    write_text(path.parent / "console.log", console.getvalue())
    write_text(path, strict_json.dumps({"of": evaluated(entry), "results": results}, indent=1))
    return results


def line_of(shown: str, results: dict, published: dict[str, float]) -> str:
    """AP here, and as the table of models has it, on all images that were held out."""
    masks, boxes = results["segm"], results["bbox"]
    here = f"mask AP {masks['AP']:.1f}, AP50 {masks['AP50']:.1f}, box AP {boxes['AP']:.1f}"
    there = f"; in docs/MODEL_ZOO.md, on more images: mask AP {published['segm/AP']:.1f}"
    return f"      {shown}: {here} on {DATA}{there if published else ''}"
