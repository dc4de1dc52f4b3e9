"""What a trained model looked at: the command line around isda.inspection."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from toys import BOXES, ISTR, toy_config, toy_data

from isda import cli
from isda.inspection.pictures import weights_of
from isda.prediction.predictor import Predictor


@pytest.fixture
def run(tmp_path):
    """``run(*overrides)``: the folder of a training, with data of its own."""

    def make(*overrides):
        toy_data(tmp_path)
        folder = tmp_path / "run"
        folder.mkdir()
        cfg = toy_config(folder, *overrides)
        torch.manual_seed(0)
        (folder / "config.yaml").write_text(cfg.dump())
        torch.save({"model": build_model(cfg).state_dict()}, folder / "model_0000005.pth")
        (folder / "last_checkpoint").write_text("model_0000005.pth")
        return folder

    return make


def drawn(tmp_path, capsys, *arguments):
    """Names of the pictures, which must be there and be told."""
    folder = tmp_path / "out"
    shutil.rmtree(folder, ignore_errors=True)
    assert cli.main(["show", "model", *map(str, arguments), "--output", str(folder)]) == 0
    told = sorted(capsys.readouterr().out.split())
    assert told == sorted(str(path) for path in folder.iterdir())
    assert all(cv2.imread(file).std() > 5 for file in told)
    return {Path(file).name for file in told}


def test_all_of_isda(tmp_path, run, capsys):
    names = drawn(tmp_path, capsys, "all", "--run", run(), "--limit", "1", "--query", "3")
    kinds = ("predictions", "query3_sampling", "query3_attention", "query3_features")
    assert names == {f"image_0_{kind}.png" for kind in kinds}


def test_all_of_isda_with_boxes(tmp_path, run, capsys):
    arguments = ["--run", run(*BOXES), "--limit", "1", "--query", "3"]
    kinds = ("sampling", "attention", "features", "ellipse", "steps")
    assert drawn(tmp_path, capsys, "all", *arguments) == {
        "image_0_predictions.png",
        *(f"image_0_query3_{kind}.png" for kind in kinds),
    }
    names = drawn(tmp_path, capsys, "steps", *arguments[:-2], "--confidence-threshold", "0")
    assert names == {"image_0_steps.png"}


def test_a_query_is_chosen_by_a_pixel_of_its_mask(tmp_path, run, capsys):
    folder, image = run(), tmp_path / "image_1.png"
    found = Predictor(folder / "model_0000005.pth", threshold=0)(image)
    y, x = found.pred_masks[0].nonzero()[0].tolist()
    first = next(q for q, mask in zip(found.queries.tolist(), found.pred_masks) if mask[y, x])
    arguments = ["attention", "--run", folder, "--image", image, "--query", f"{x},{y}"]
    assert drawn(tmp_path, capsys, *arguments) == {f"image_1_query{first}_attention.png"}
    arguments[-1] = "64,3"
    message = "no mask covers the pixel 64,3 of this image of 48x64"
    assert message in error_of(capsys, *arguments, "--output", tmp_path / "out")


def test_all_of_istr(tmp_path, run, capsys):
    folder = run(*ISTR)
    arguments = ["--run", folder, "--limit", "1", "--confidence-threshold", "0"]
    assert drawn(tmp_path, capsys, "all", *arguments) == {
        "image_0_predictions.png",
        "image_0_steps.png",
    }
    (name,) = drawn(tmp_path, capsys, "steps", *arguments, "--query", "best")
    assert re.fullmatch(r"image_0_query\d_steps\.png", name)


def test_predictions_stand_beside_ground_truth_where_it_is_known(tmp_path, run, capsys):
    folder, file = run(), tmp_path / "image_3.png"
    arguments = ["predictions", "--run", folder, "--image", file, "--no-labels"]
    arguments += ["--confidence-threshold", "1"]
    picture = tmp_path / "out" / "image_3_predictions.png"
    drawn(tmp_path, capsys, *arguments)
    two = cv2.imread(str(picture))
    drawn(tmp_path, capsys, *arguments, "--dataset", "toy")
    three = cv2.imread(str(picture))
    panel = two.shape[1] // 2
    assert three.shape[1] > two.shape[1]
    # The photograph, and ground truth that colors what was grey noise.
    np.testing.assert_array_equal(three[30:, : panel - 9], two[30:, : panel - 9])
    middle = three[30:, panel + 9 : 2 * panel - 18].astype(int)
    assert (np.ptp(middle, axis=2) > 150).sum() > 1000


def test_ground_truth_of_a_folder_of_ones_own(tmp_path, run, capsys):
    folder = run()  # whose data become a data set as Roboflow lays it out
    for split in ("train", "valid"):
        (tmp_path / "own" / split).mkdir(parents=True)
        for file in tmp_path.glob("image_*.png"):
            shutil.copy(file, tmp_path / "own" / split)
        shutil.copy(tmp_path / "toy.json", tmp_path / "own" / split / "_annotations.coco.json")
    arguments = ["predictions", "--run", folder, "--dataset", tmp_path / "own"]
    names = drawn(tmp_path, capsys, *arguments, "--limit", "2")
    assert names == {"image_0_predictions.png", "image_1_predictions.png"}
    known = cv2.imread(str(tmp_path / "out" / "image_1_predictions.png"))
    drawn(tmp_path, capsys, *arguments[:3], "--image", tmp_path / "image_1.png")
    unknown = cv2.imread(str(tmp_path / "out" / "image_1_predictions.png"))
    assert known.shape[1] == pytest.approx(1.5 * unknown.shape[1], abs=9)  # three panels and two


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path, run, capsys):
    folder = run()
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "image_1.png"
    other.write_bytes((tmp_path / "image_2.png").read_bytes())
    arguments = ["attention", "--run", folder, "--query", "0"]
    names = drawn(tmp_path, capsys, *arguments, "--image", tmp_path / "image_1.png", other)
    assert names == {"image_1_query0_attention.png", "image_1_2_query0_attention.png"}


def error_of(capsys, *arguments):
    assert cli.main(["show", "model", *map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_mistakes_are_told_in_one_line(tmp_path, run, capsys):
    folder = run()
    image = ("--image", tmp_path / "image_1.png", "--output", tmp_path / "out")
    assert "this ISDA predicts no boxes" in error_of(capsys, "steps", "--run", folder, *image)
    assert "draw no ellipses" in error_of(capsys, "ellipse", "--run", folder, *image)
    wrong_query = error_of(capsys, "sampling", "--run", folder, "--query", "6", *image)
    assert "numbered from 0 to 5" in wrong_query
    wrong_data = error_of(capsys, "all", "--run", folder, "--dataset", "toi", *image)
    assert "--dataset toi is neither registered (--import does it) nor a folder" in wrong_data
    opts = ("--opts", "DATASETS.TEST", "('toi',)", "MODEL.ISDA.NUM_CLASSES", "2")
    assert "is registered: give --image" in error_of(capsys, "all", "--run", folder, *opts)
    assert "no such image" in error_of(capsys, "all", "--run", folder, "--image", "none.png")
    (folder / "last_checkpoint").unlink()
    assert "no weights there (model_best.pth, model_final.pth)" in error_of(
        capsys, "all", "--run", folder
    )
    with pytest.raises(SystemExit):
        cli.parser_of("show model").parse_args(["all", "--run", "x", "--query", "worst"])
    assert "'worst' is neither a number nor best nor a pixel" in capsys.readouterr().err


def test_the_best_weights_are_taken(tmp_path):
    for name in ("model_0000005.pth", "model_final.pth", "model_best.pth"):
        (tmp_path / name).touch()
        (tmp_path / "last_checkpoint").write_text("model_0000005.pth\n")
        assert weights_of(tmp_path).name == name
