"""What a training leaves: which images are drawn, and that nothing of it is needed."""

import json
import logging

import cv2
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog
from toys import toy_config, toy_data

from isda.report import summary


@pytest.fixture
def run(tmp_path):
    """The config of a training of the toy data, whose folder has metrics alone."""
    toy_data(tmp_path)
    cfg = toy_config(tmp_path / "out")
    (tmp_path / "out" / "inference").mkdir(parents=True)
    DatasetCatalog.get("toy")  # as its evaluation did, which names the classes
    metrics = {"iteration": 1, "total_loss": 2.0, "segm/AP": 3.0}
    (tmp_path / "out" / "metrics.json").write_text(json.dumps(metrics) + "\n")
    return cfg


def predict(run, shares: dict[int, float], name="coco_instances_results.json") -> None:
    """Masks as annotated, of which the given share of each image's instances is found."""
    folder = run.OUTPUT_DIR
    records, predictions = DatasetCatalog.get("toy"), []
    for record in records:
        annotations = record["annotations"]
        found = round(shares.get(record["image_id"], 0) * len(annotations))
        for annotation in annotations[:found]:
            x, y, w, h = annotation["bbox"]
            predictions.append(
                {
                    "image_id": record["image_id"],
                    "category_id": annotation["category_id"] + 1,
                    "score": 0.9,
                    "bbox": [x, y, w, h],
                    "segmentation": rle(annotation, record),
                }
            )
    with open(f"{folder}/inference/{name}", "w") as file:
        json.dump(predictions, file)


def rle(annotation: dict, record: dict) -> dict:
    (encoded,) = mask_util.frPyObjects(
        annotation["segmentation"], record["height"], record["width"]
    )
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


@pytest.fixture
def titles(monkeypatch):
    """Of all panels that are drawn."""
    drawn = []
    original = summary.side_by_side
    monkeypatch.setattr(
        summary, "side_by_side", lambda panels: drawn.append(list(panels)) or original(panels)
    )
    return drawn


def test_the_best_and_the_worst_images(run, titles, tmp_path):
    """Images 1 to 4 have 2 to 5 instances, image 0 has none and is in neither picture."""
    predict(run, {1: 1, 2: 1 / 3, 3: 0, 4: 4 / 5})
    summary.write_summary(run)
    assert titles == [
        ["image_1.png: ground truth, 2 instances", "prediction, 2 instances, quality 1.00"],
        ["image_4.png: ground truth, 5 instances", "prediction, 4 instances, quality 0.89"],
        ["image_3.png: ground truth, 4 instances", "prediction, 0 instances, quality 0.00"],
        ["image_2.png: ground truth, 3 instances", "prediction, 1 instances, quality 0.50"],
    ]
    for kind in ("best", "worst"):
        picture = cv2.imread(str(tmp_path / "out" / f"{kind}_images.jpg"))
        assert picture.shape[0] > 2 * 400
        assert picture.std() > 10
    assert (tmp_path / "out" / "curves.png").is_file()
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_best_evaluation_goes_before_the_last(run, titles):
    predict(run, {1: 1})
    predict(run, {2: 1}, "best_coco_instances_results.json")
    summary.write_summary(run)
    assert titles[0][0].startswith("image_2.png")


def test_a_training_without_evaluation(run, tmp_path):
    run.DATASETS.TEST = ()
    summary.write_summary(run)
    assert (tmp_path / "out" / "curves.png").is_file()
    assert not (tmp_path / "out" / "best_images.jpg").exists()


def test_what_cannot_be_drawn_does_not_stop_the_rest(run, tmp_path, caplog):
    predict(run, {1: 1})
    (tmp_path / "out" / "metrics.json").unlink()
    with caplog.at_level(logging.WARNING):
        summary.write_summary(run)
    assert "not all pictures of the training: no metrics at" in caplog.text
    assert (tmp_path / "out" / "best_images.jpg").is_file()
