import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from detectron2.utils.visualizer import GenericMask
from torch import nn

import run_demo
import training_process
import training_progress
from isda import cli
from isda.engine.setup import load_config
from isda.inspection import results
from isda.prediction.predictor import Predictor

ROOT = Path(__file__).resolve().parents[1]


@META_ARCH_REGISTRY.register()
class PredictorProbe(nn.Module):
    """Scores are the means of the three channels that arrive, over 255."""

    config_node = "ISDA"

    def __init__(self, cfg):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.other = nn.Parameter(torch.zeros(1))

    def forward(self, batched_inputs):
        (inputs,) = batched_inputs
        self.shape = tuple(inputs["image"].shape)
        instances = Instances((inputs["height"], inputs["width"]))
        instances.scores = inputs["image"].mean(dim=(1, 2)) / 255 + self.weight
        return [{"instances": instances}]


def probe_config(tmp_path, image_format="RGB", weights=None):
    path = tmp_path / "weights.pth"
    torch.save({"model": weights or {"weight": torch.ones(3), "other": torch.ones(1)}}, path)
    cfg = load_config("", ["MODEL.META_ARCHITECTURE", "PredictorProbe", "MODEL.WEIGHTS", str(path)])
    cfg.MODEL.ISDA.NUM_CLASSES = 1
    cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST, cfg.MODEL.DEVICE = image_format, 30, "cpu"
    return cfg


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_predictor_gives_the_model_what_it_was_trained_on(tmp_path, image_format):
    predictor = Predictor(probe_config(tmp_path, image_format))
    image = np.zeros((60, 90, 3), np.uint8) + np.array([255, 51, 0], np.uint8)  # RGB
    instances = predictor(image)
    means = [1.0, 0.2, 0.0]
    expected = 1 + torch.tensor(means if image_format == "RGB" else means[::-1])
    torch.testing.assert_close(instances.scores, expected)
    assert predictor.model.shape == (3, 30, 45)
    assert instances.image_size == (60, 90)
    assert not predictor.model.training


def test_predictor_refuses_weights_that_leave_a_part_untrained(tmp_path):
    cfg = probe_config(tmp_path, weights={"weight": torch.ones(3)})
    with pytest.raises(ValueError, match=r"lacks 1 tensors, such as other; .*MIN_MATCHED to 0"):
        Predictor(cfg)
    cfg.MODEL.WEIGHTS_MIN_MATCHED = 0.0
    Predictor(cfg)
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        Predictor(cfg)


def test_predictor_without_known_classes_says_what_to_do(tmp_path):
    cfg = probe_config(tmp_path)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ISDA.NUM_CLASSES = "ISDA", 0
    cfg.DATASETS.TEST = ("mine_val",)
    with pytest.raises(ValueError, match=r"\(mine_val\) is registered here; give the config.yaml"):
        Predictor(cfg)


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def test_estimate_follows_what_was_measured():
    now, stream = Clock(), io.StringIO()
    planned = {"data": 10.0, "isda": 100.0, "mask_rcnn": 50.0, "report": 20.0}
    progress = training_progress.Progress(planned, stream, now, interval=0)
    progress.start("data", "Preparing")
    assert progress.remaining() == 180
    now.seconds = 4
    assert progress.remaining() == 176
    progress.finish()
    progress.start("isda", "Training")
    assert progress.remaining() == 170  # four seconds of start-up tell nothing
    now.seconds += 100
    # Half done after 100 s instead of 50: this machine needs (4 + 200) / 110 of every plan.
    assert progress.remaining(100) == pytest.approx(100 + 204 / 110 * 70)
    progress.update("iteration 5/10", 100)
    assert "1:40 left, 3:49 until the end" in stream.getvalue()
    now.seconds += 100
    progress.finish()
    assert "took 3:20, planned 1:40" in stream.getvalue()
    progress.start("mask_rcnn", "Training")
    assert progress.remaining() == pytest.approx(204 / 110 * 70)


def test_finished_stages_cost_nothing():
    stream = io.StringIO()
    progress = training_progress.Progress({"isda": 0.0, "report": 20.0}, stream, Clock())
    progress.start("isda", "Training ISDA: finished before")
    progress.start("report", "Drawing")
    assert stream.getvalue().splitlines() == [
        "[1/2] Training ISDA: finished before",
        "[2/2] Drawing (about 0:20 until the end)",
    ]


PREFIX = "[11/21 08:54:31 d2.utils.events]: "


def training_line(iteration, loss, seconds):
    return (
        f"{PREFIX} eta: 0:00:40  iter: {iteration}  total_loss: {loss}  loss_cls: 1.1  loss_mask: 2"
        f"    time: {seconds}  last_time: 9.9  data_time: 0.1  last_data_time: 0.1   lr: 0.0004  \n"
    )


def test_paths_are_shown_as_they_are_typed_in_the_checkout(tmp_path):
    assert training_progress.shown_path(ROOT / "output" / "demo") == str(Path("output/demo"))
    assert training_progress.shown_path(tmp_path / "demo") == str(tmp_path / "demo")


def test_watch_reads_iterations_losses_and_ap():
    now = Clock()
    watch = training_progress.TrainingWatch(100, 40, now)
    assert not watch.read("[11/21 08:54:30 d2.engine]: Starting training from iteration 0\n")
    assert watch.remaining() is None
    assert watch.read(training_line(19, 7.5, 0.5))
    planned = training_progress.PLANNED_EVALUATION
    assert watch.remaining() == pytest.approx(80 * 0.5 + 3 * planned)  # after 40, 80 and 100
    watch.read("[d2.evaluation.evaluator]: Start inference on 39 batches\n")
    now.seconds = 5.0
    for line in ("copypaste: Task: bbox", "copypaste: AP,AP50,AP75", "copypaste: 11.1,2.2,3.3"):
        assert not watch.read(f"[d2.evaluation.testing]: {line}\n")
    assert not watch.read("copypaste: Task: segm\n")
    now.seconds = 6.0
    assert watch.read("copypaste: 12.34,nan,3.3\n")
    assert watch.read(training_line(39, 6.25, 0.4))
    assert watch.remaining() == pytest.approx(60 * 0.4 + 2 * 6.0)  # after 80 and 100
    assert str(watch) == "iteration 40/100, loss 6.25, mask AP 12.3"
    watch.read(training_line(99, 5, 0.4))
    assert watch.remaining() == pytest.approx(6.0)
    watch.read("copypaste: 20.0,30.0\n")
    assert watch.remaining() == 0


def test_watch_understands_a_loss_that_is_not_finite():
    watch = training_progress.TrainingWatch(100, 0)
    assert watch.read(training_line(19, "nan", 0.5))
    assert str(watch) == "iteration 20/100, loss nan"


def result(**changes):
    values = {
        "name": "ISDA",
        "mask_ap": 31.26,
        "mask_ap50": 60.0,
        "mask_ap75": 30.0,
        "box_ap": 29.94,
        "minutes": 4.04,
        "epochs": 30.06,
        "iterations": 469,
        "parameters": 5_440_000,
    }
    return run_demo.Result(**values | changes)


def test_table_has_a_row_per_model():
    rows = run_demo.table([result(), result(name="Mask R-CNN", mask_ap=8.0)]).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0][:2] == ["model", "mask AP"]
    assert cells[2] == ["ISDA", "31.3", "60.0", "30.0", "29.9", "4.0", "30.06", "5.44 M"]
    assert cells[3][:2] == ["Mask R-CNN", "8.0"]
    assert len({len(row) for row in rows}) == 1


def open_run(folder, opts=(), fresh=False):
    return run_demo.open_run(run_demo.ISDA, folder, list(opts), fresh)


def test_comparison_states_whether_training_was_equal(tmp_path):
    runs = [open_run(tmp_path)]
    equal = run_demo.comparison(runs, [result(), result()])
    assert "the same number of epochs: 30.06 epochs (469 steps) of nuclei_mini_train" in equal
    assert "nuclei_mini_val, which training did not see" in equal
    similar = result(epochs=12.0, iterations=188, minutes=4.9)
    text = run_demo.comparison(runs, [result(), similar])
    assert "about the same time: 30.06 epochs (469 steps) and 12 epochs (188 steps)" in text
    unequal = run_demo.comparison(runs, [result(), dataclasses.replace(similar, minutes=5.1)])
    assert "NOT" in unequal
    assert "12 epochs (188 steps)" in unequal


def test_a_finished_run_is_kept_until_its_configuration_changes(tmp_path, capsys):
    run = open_run(tmp_path)
    assert not run.finished
    assert run.planned_seconds == run_demo.ISDA.planned_seconds
    run.seconds, run.finished = 12.0, True
    run.save()
    run.weights.touch()
    again = open_run(tmp_path)
    assert again.finished
    assert (again.seconds, again.planned_seconds) == (12.0, 0.0)
    changed = open_run(tmp_path, ["SOLVER.BASE_LR", "0.1"])
    assert not changed.finished
    assert not changed.weights.exists()
    assert "anew: its configuration or data changed" in capsys.readouterr().out


def names_of_runs(output, *flags):
    args = run_demo.parse_arguments(list(flags))
    return [run.model.name for run in run_demo.open_runs(args, output)]


def test_istr_is_trained_on_request_and_shown_once_it_is_there(tmp_path):
    assert names_of_runs(tmp_path) == ["ISDA", "Mask R-CNN"]
    assert names_of_runs(tmp_path, "--skip-mask-rcnn", "--istr") == ["ISDA", "ISTR"]
    assert names_of_runs(tmp_path) == ["ISDA", "Mask R-CNN"]  # begun, but without results
    run = run_demo.open_run(run_demo.ISTR, tmp_path, [], False)
    run.finished = True
    run.save()
    run.weights.touch()
    assert names_of_runs(tmp_path) == ["ISDA", "Mask R-CNN", "ISTR"]
    assert names_of_runs(tmp_path, "SOLVER.BASE_LR", "0.1") == ["ISDA", "Mask R-CNN"]
    assert run.weights.exists()  # the results of another configuration are none of its business
    assert names_of_runs(tmp_path, "--fresh") == ["ISDA", "Mask R-CNN"]


def test_fresh_forgets_and_foreign_folders_are_left_alone(tmp_path):
    run = open_run(tmp_path)
    run.finished = True
    run.save()
    run.weights.touch()
    assert not open_run(tmp_path, fresh=True).finished
    (run.folder / run_demo.STATE_FILE).unlink()
    (run.folder / "thesis.tex").touch()
    with pytest.raises(run_demo.DemoError, match="files that this demo did not write"):
        open_run(tmp_path, fresh=True)
    assert (run.folder / "thesis.tex").exists()


TRAINING = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[-1])
(folder / "arguments.json").write_text(json.dumps(sys.argv[1:]))
print("reading data", flush=True)
print({line!r}, flush=True)
{ending}
"""


def fake_training(tmp_path, monkeypatch, ending):
    """A checkout whose train_net.py says a line and ends as told."""
    text = TRAINING.format(line=training_line(19, 7.5, 0.5).strip(), ending=ending)
    (tmp_path / "train_net.py").write_text(text)
    run = open_run(tmp_path / "output")
    for module in (training_process, training_progress):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    stream = io.StringIO()
    progress = training_progress.Progress({"isda": 100.0}, stream, interval=0)
    return run, progress, stream


def test_training_is_started_as_a_user_would(tmp_path, monkeypatch):
    ending = '(folder / "model_final.pth").touch()'
    run, progress, stream = fake_training(tmp_path, monkeypatch, ending)
    run_demo.train(run, progress)
    expected = ["--config-file", "configs/nuclei/isda_boxes_tiny.yaml", "OUTPUT_DIR", "output/isda"]
    assert json.loads((run.folder / "arguments.json").read_text()) == expected
    assert f"train_net.py {' '.join(expected)}" in stream.getvalue()
    assert "iteration 20/" in stream.getvalue()
    assert "reading data" not in stream.getvalue()
    assert "reading data" in (run.folder / training_process.CONSOLE_FILE).read_text()
    assert open_run(tmp_path / "output").finished


def test_an_interrupted_training_is_resumed(tmp_path, monkeypatch):
    ending = '(folder / "model_final.pth").touch()'
    run, progress, _ = fake_training(tmp_path, monkeypatch, ending)
    (run.folder / "last_checkpoint").touch()
    run.seconds = 1000.0
    run_demo.train(run, progress)
    assert "--resume" in json.loads((run.folder / "arguments.json").read_text())
    assert run.seconds > 1000


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ('sys.exit("disk full")', "ended with exit code 1"),
        (
            "import os; os.kill(os.getpid(), 9)",
            "was killed by signal 9 (the system may have run",
        ),
        ('(folder / "model_final.pth").touch(); sys.exit(3)', "ended with exit code 3"),
        ("pass", "ended without writing model_final.pth"),
    ],
)
def test_a_failed_training_is_told_with_the_end_of_its_console(
    tmp_path, monkeypatch, ending, reason
):
    run, progress, _ = fake_training(tmp_path, monkeypatch, ending)
    with pytest.raises(run_demo.DemoError) as error:
        run_demo.train(run, progress)
    message = str(error.value)
    assert f"training ISDA {reason}" in message
    assert "    reading data" in message
    assert "output/isda/console.log" in message
    assert "--fresh" in message
    assert not open_run(tmp_path / "output").finished


def test_results_come_from_the_final_evaluation(tmp_path):
    run = open_run(tmp_path)
    iterations, period = run_demo.schedule(run.cfg)
    aps = {"segm/AP50": 2.0, "segm/AP75": 3.0, "bbox/AP": 4.0}
    early = json.dumps({"iteration": period, "segm/AP": 1.0, **aps}) + "\n"
    final = json.dumps({"iteration": iterations, "segm/AP": 5.0, **aps}) + "\n"
    (run.folder / "metrics.json").write_text(early + final)
    run.seconds = 90.0
    row = run_demo.result_of(run, 1000)
    assert (row.mask_ap, row.box_ap, row.minutes, row.parameters) == (5.0, 4.0, 1.5, 1000)
    assert row.epochs == pytest.approx(run.cfg.SOLVER.EPOCHS, abs=0.1)
    (run.folder / "metrics.json").write_text(early)
    with pytest.raises(run_demo.DemoError, match="lacks the final mask AP"):
        run_demo.result_of(run, 1000)


def test_pictures_are_spread_over_the_brightness(tmp_path):
    records = []
    for value in (200, 10, 150, 60, 100, 250):
        path = tmp_path / f"{value}.png"
        cv2.imwrite(str(path), np.full((4, 4, 3), value, np.uint8))
        records.append({"file_name": str(path), "value": value})
    assert [record["value"] for record in run_demo.diverse(records, 3)] == [60, 150, 250]
    assert len(run_demo.diverse(records, 50)) == 6


OVERFIT = ROOT / "configs" / "shapes" / "isda_overfit8.yaml"


@pytest.mark.parametrize("source", ["annotation", "dataloader"])
def test_visualize_data_draws_the_instances(tmp_path, monkeypatch, source):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    arguments = ["--source", source, "--config-file", str(OVERFIT), "--limit", "5", "--no-labels"]
    arguments += ["--output-dir", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", "0"]
    assert cli.main(["show", "data", *arguments]) == 0
    pictures = sorted((tmp_path / "out").iterdir())
    assert len(pictures) == 5
    for path in pictures:
        number = path.stem.split("_")[1]
        original = cv2.imread(
            str(tmp_path / "shapes" / "shapes_tiny8_train/images" / f"{number}.png")
        )
        drawn = cv2.imread(str(path))
        assert drawn.shape == original.shape
        changed = (drawn != original).any(axis=2).mean()
        assert 0.02 < changed < 0.9  # the instances, and nothing else


def test_json_results_are_drawn_above_the_threshold(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    records = DatasetCatalog.get("shapes_tiny8_train")
    annotation = records[0]["annotations"][0]
    prediction = {"image_id": records[0]["image_id"], "category_id": 1, "score": 0.6}
    prediction["segmentation"] = annotation["segmentation"]
    file = tmp_path / "results.json"
    file.write_text(json.dumps([prediction, prediction | {"score": 0.2}]))
    arguments = ["--input", str(file), "--output", str(tmp_path / "out")]
    arguments += ["--dataset", "shapes_tiny8_train", "--no-labels"]
    assert cli.main(["show", "results", *arguments]) == 0
    drawn = cv2.imread(str(tmp_path / "out" / f"{Path(records[0]['file_name']).stem}.png"))
    original = cv2.imread(records[0]["file_name"])
    panel = drawn[30 : 30 + 128, 6 : 6 + 128]
    mask = GenericMask(annotation["segmentation"], 128, 128).mask.astype(bool)
    assert (panel != original).any(axis=2)[mask].mean() > 0.9
    assert len(results.read_predictions(str(file), 0.5)[prediction["image_id"]]) == 1
    file.write_text(json.dumps([prediction | {"category_id": 77}]))
    assert cli.main(["show", "results", *arguments[:-1]]) == 1
    assert "category ids that shapes_tiny8_train lacks, such as 77" in capsys.readouterr().err
    file.write_text('{"images": []}')
    assert cli.main(["show", "results", *arguments]) == 1
    assert "not a list of predictions in COCO's format" in capsys.readouterr().err


SMALL = [
    *("DATASETS.TRAIN", "('shapes_tiny8_train',)", "DATASETS.TEST", "('shapes_tiny8_train',)"),
    *("SOLVER.EPOCHS", "1", "SOLVER.STEP_EPOCHS", "()", "SOLVER.IMS_PER_BATCH", "4"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "TEST.EVAL_EPOCHS", "0"),
    *("DATALOADER.NUM_WORKERS", "0", "MODEL.ISDA.NUM_QUERIES", "10"),
]


@pytest.mark.slow
def test_the_demo_from_end_to_end_and_again(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "run_demo.py"), "--skip-mask-rcnn"]
    command += ["--output", str(tmp_path / "demo"), *SMALL]
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(tmp_path / "datasets"),
        "PYTHONPATH": str(ROOT / "projects"),
    }
    first = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stderr == ""  # nothing that a newcomer cannot act on
    assert "train_net.py --config-file configs/nuclei/isda_boxes_tiny.yaml" in first.stdout
    assert "| ISDA " in first.stdout
    for name in ("data_nuclei_mini_train.png", "predictions.png", "curves.png", "results.md"):
        assert (tmp_path / "demo" / name).stat().st_size > 100
    assert len(list((tmp_path / "demo" / "predictions").iterdir())) == run_demo.NUM_PICTURES
    again = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert "Training ISDA: finished before" in again.stdout
    assert again.stdout.splitlines()[-5:] == first.stdout.splitlines()[-5:]
