"""The demo's first stage, on the models that come with the package."""

import io
import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

import demo_trained
from isda import model_zoo
from isda.data import register_coco_json
from training_progress import Progress

NUCLEI = Path(__file__).parents[1] / "datasets" / "nuclei_mini"
FEW = "nuclei_few_for_the_demo"


@pytest.fixture
def few_nuclei(tmp_path, monkeypatch):
    """Six of the 39 held-out images."""
    content = json.loads((NUCLEI / "instances_val.json").read_text())
    content["images"] = content["images"][::7]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    (tmp_path / "few.json").write_text(json.dumps(content))
    register_coco_json(FEW, str(tmp_path / "few.json"), str(NUCLEI / "images"))
    monkeypatch.setattr(demo_trained, "DATA", FEW)
    yield
    DatasetCatalog.remove(FEW)
    MetadataCatalog.remove(FEW)


def test_shipped_models_are_drawn_and_evaluated(few_nuclei, tmp_path, monkeypatch):
    models = demo_trained.available()
    assert {"ISDA", "Mask R-CNN"} <= models.keys()
    stream = io.StringIO()
    progress = Progress({"trained": 20.0}, stream=stream)
    progress.start("trained", "What the shipped models see")
    demo_trained.show_trained(models, tmp_path, progress)
    for shown, name in models.items():
        folder = tmp_path / "trained" / Path(name).name
        results = json.loads((folder / "results.json").read_text())["results"]
        published = model_zoo.entries()[name].metrics["segm/AP"]
        # Six images say little; but weights that do not belong to the model find next to nothing.
        assert results["segm"]["AP"] > published / 2
        assert f"{shown}: mask AP {results['segm']['AP']:.1f}, AP50" in stream.getvalue()
        assert f"mask AP {published:.1f}" in stream.getvalue()
        assert "Average Precision" in (folder / "console.log").read_text()
    assert (tmp_path / "trained.png").stat().st_size > 10_000
    pictures = [path for path in (tmp_path / "trained").iterdir() if path.suffix == ".png"]
    assert len(pictures) == demo_trained.PICTURES

    # On a slow machine either may tell the time that is left.
    said = [line for line in stream.getvalue().splitlines() if "left" not in line]
    monkeypatch.setattr(demo_trained, "Predictor", None)  # nothing is computed twice
    demo_trained.show_trained(models, tmp_path, progress)
    again = [line for line in stream.getvalue().splitlines() if "left" not in line]
    assert again[len(said) :] == said[1:]

    changed = model_zoo.get_config(
        models["ISDA"], overrides=["MODEL.ISDA.KEEP_LARGEST_COMPONENT", True]
    )
    monkeypatch.setattr(demo_trained.model_zoo, "get_config", lambda name: changed)
    assert demo_trained.recall(tmp_path, model_zoo.entries()[models["ISDA"]]) is None


def test_models_without_weights_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(model_zoo, "entries", lambda: {"nuclei/mask_rcnn_mobilenet_v2": None})
    assert demo_trained.available() == {"Mask R-CNN": "nuclei/mask_rcnn_mobilenet_v2"}
