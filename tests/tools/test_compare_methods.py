"""The comparison: its plans, trainings that are killed and resumed, refusals, and the table."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import torch
from matplotlib.figure import Figure

import compare_methods
import training_process
import training_progress
from comparison import plan as planning
from comparison import report
from comparison.runs import RunError, evaluations, new_run, recall
from comparison.speed import read_speed
from isda.data import builtin
from isda.engine.setup import load_config, resolve_schedule

ROOT = Path(__file__).resolve().parents[2]
NUCLEI, SHAPES = compare_methods.DATA
METHODS = {method.name: method for method in compare_methods.METHODS}
EIGHT_IMAGES = [
    *("DATASETS.TRAIN", "('shapes_tiny8_train',)", "DATASETS.TEST", "('shapes_tiny8_train',)"),
]


# --- plans


def test_as_many_steps_are_planned_as_fit():
    iterations, mean, error = planning.planned_iterations(0.5, [1.0, 2.0, 4.0, 1.0])
    assert (iterations, mean) == (15, 2.0)
    assert error == pytest.approx(math.sqrt(2.0) / 2)  # variance 2, four steps
    with pytest.raises(planning.PlanError, match="a step takes 2 s: 0.02 minutes are too few"):
        planning.planned_iterations(0.02, [2.0, 2.0])


@pytest.mark.parametrize("iterations", [1, 5, 12, 1080])
def test_a_training_is_evaluated_six_times(iterations):
    period = planning.evaluation_period(iterations)
    moments = {*range(period, iterations, period), iterations}
    assert len(moments) <= planning.EVALUATIONS
    assert len(moments) >= min(iterations, planning.EVALUATIONS - 1)


def test_the_schedule_of_a_config_is_stretched():
    """Four epochs of 540 images in steps of 1, which begin with 150 steps of warm-up, halved.

    The warm-up is not shortened before it would be more than half.
    """
    path = str(ROOT / "configs/nuclei/isda_boxes_mobilenet_v2.yaml")
    steps = ["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEP_EPOCHS", "(1, 3)"]
    cfg = load_config(
        path, [*steps, *planning.schedule_overrides(load_config(path, steps), 540, 1080)]
    )
    resolve_schedule(cfg, 540)
    solver = cfg.SOLVER
    assert (solver.MAX_ITER, solver.WARMUP_ITERS, solver.STEPS) == (1080, 150, (270, 810))
    assert (cfg.TEST.EVAL_PERIOD, solver.CHECKPOINT_PERIOD) == (180, 180)
    assert (solver.BASE_LR, solver.IMS_PER_BATCH) == (0.0005, 1)
    short = planning.schedule_overrides(load_config(path, steps), 540, 60)
    assert short[short.index("SOLVER.WARMUP_ITERS") + 1] == "30"


@pytest.mark.parametrize("data", compare_methods.DATA, ids=lambda data: data.name)
@pytest.mark.parametrize("method", compare_methods.METHODS, ids=lambda method: method.name)
def test_every_method_has_a_config_of_the_same_data(method, data):
    assert (ROOT / method.config_file(data)).is_file()
    cfg = load_config(str(ROOT / method.config_file(data)))
    assert (f"{data.name}_train",) == cfg.DATASETS.TRAIN
    assert (f"{data.name}_val",) == cfg.DATASETS.TEST


def test_evaluations_have_images_and_the_processors_minutes():
    records = [
        {"iteration": 9, "processor_seconds": 60.0, "segm/AP": 1.0, "bbox/AP": 2.0},
        {"iteration": 14, "segm/AP": 3.0},  # made up for: between two records of steps
        {"iteration": 19, "processor_seconds": 180.0},
        {"iteration": 24, "segm/AP": 4.0, "segm/AP50": 5.0},  # of all 24 steps: beyond the last
    ]
    found = evaluations(records, 24, 2)
    assert [row["iteration"] for row in found] == [10, 15, 24]
    assert [row["images"] for row in found] == [20, 30, 48]
    assert [row["minutes"] for row in found] == pytest.approx([1.0, 2.0, 3.0 + 4 * 9 / 60])
    assert [row["AP"] for row in found] == [1.0, 3.0, 4.0]
    assert (found[0]["box AP"], found[2]["AP50"], found[2]["AP75"]) == (2.0, 5.0, None)


# --- trainings, by a train_net.py that only writes what the real one would

FAKE = """
import json, os, pathlib, signal, sys

words = sys.argv[1:]
value = lambda key: words[words.index(key) + 1]
folder, iterations = pathlib.Path(value("OUTPUT_DIR")), int(value("SOLVER.MAX_ITER"))
period, resumed = int(value("TEST.EVAL_PERIOD")), "--resume" in words
calls = pathlib.Path("calls.json")
known = json.loads(calls.read_text()) if calls.is_file() else []
calls.write_text(json.dumps([*known, words]))
threads = os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]
assert threads == ("1", "1") and words[:1] == ["--config-file"]
start = int((folder / "last_checkpoint").read_text()) if resumed else 0
is_probe = folder.name.endswith("_probe")
with (folder / "metrics.json").open("a") as file:
    write = lambda **content: print(json.dumps(content), file=file, flush=True)
    for step in range(start, iterations):
        # The first steps of a process take longer.
        seconds = 2.0 * (step + 1) + 8.0 * min(step + 1, 5)
        record = {"iteration": step, "total_loss": 1.0, "processor_seconds": seconds}
        done = step + 1
        if done % period == 0:
            (folder / "last_checkpoint").write_text(str(done))
            (folder / f"model_{step:07}.pth").touch()
            if done < iterations and not is_probe:
                record |= {"segm/AP": float(done), "bbox/AP": 1.0}
        write(**record)
        if pathlib.Path("kill").exists() and not is_probe and done == iterations // 2:
            os.remove("kill")
            os.kill(os.getpid(), signal.SIGKILL)
    if not is_probe:
        write(**{"iteration": iterations, "segm/AP": 50.0, "segm/AP50": 60.0, "bbox/AP": 40.0})
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout whose train_net.py takes 2 s of the processor per step, without the time."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.chdir(ROOT)
    (tmp_path / "train_net.py").write_text(FAKE)
    for module in (training_process, training_progress):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(compare_methods, "draw_methods", lambda *_: None)  # there are no weights
    return tmp_path


def compare(folder, *words, opts=(), speed=("--skip-speed",)):
    words = ["--data", "shapes", "--minutes", "0.5", *speed, *words]
    words += ["--output", str(folder / "output"), "--opts", *EIGHT_IMAGES, *opts]
    return compare_methods.main(words)


def calls(folder):
    return json.loads((folder / "calls.json").read_text())


def test_a_training_is_planned_once_and_resumed_after_a_kill(checkout, capsys):
    (checkout / "kill").touch()
    assert compare(checkout, "--methods", "isda") == 1
    said = capsys.readouterr()
    assert "2 ± 0 s of the processor per step of 16 images: 15 steps" in said.out
    assert "training ISDA was killed by signal 9" in said.err
    run = checkout / "output" / "shapes_0.5min" / "isda"
    plan = json.loads((run / "plan.json").read_text())
    assert (plan["iterations"], plan["seconds_per_step"], plan["minutes"]) == (15, 2.0, 0.5)
    assert set(plan["annotations"]) == {"shapes_tiny8_train"}
    assert not (run.parent / "table.md").exists()

    assert compare(checkout, "--methods", "isda") == 0
    probe, first, second = calls(checkout)
    assert probe[probe.index("SOLVER.MAX_ITER") + 1] == "30"
    assert "--resume" not in first and "--resume" in second
    assert [word for word in second if word != "--resume"] == first
    assert first[:2] == ["--config-file", "configs/shapes/isda_tiny.yaml"]
    assert first[-2:] == ["OUTPUT_DIR", "output/shapes_0.5min/isda"]
    (row,) = json.loads((run.parent / "results.json").read_text())
    assert (row["name"], row["evaluations"][-1]["AP"]) == ("isda", 50.0)
    assert row["evaluations"][-1]["minutes"] == pytest.approx((15 * 2 + 5 * 8) / 60)
    assert (run.parent / "ap_over_time.png").stat().st_size > 1000
    assert list(run.glob("model_0*.pth")) == []

    assert compare(checkout, "--methods", "isda") == 0
    assert "ISDA: trained before" in capsys.readouterr().out
    assert len(calls(checkout)) == 3


def test_one_that_fails_does_not_keep_the_others_from_being_trained(checkout, capsys):
    (checkout / "kill").touch()
    assert compare(checkout, "--methods", "isda", "solo") == 1
    text = (checkout / "output/shapes_0.5min/table.md").read_text()
    assert "\n|SOLO|50.0|60.0|" in text
    assert (
        "Not trained to the end with this configuration: Mask R-CNN, ISDA with boxes, ISDA," in text
    )
    assert "error: ISDA: training ISDA was killed by signal 9" in capsys.readouterr().err


def test_rows_of_earlier_calls_stay(checkout):
    assert compare(checkout, "--methods", "isda") == 0
    assert compare(checkout, "--methods", "solov2") == 0
    text = (checkout / "output/shapes_0.5min/table.md").read_text()
    assert "\n|ISDA|" in text and "\n|SOLOv2|" in text


def test_another_configuration_is_refused_before_anything_is_trained(checkout, capsys):
    assert compare(checkout, "--methods", "isda") == 0
    number = len(calls(checkout))
    rate = ["SOLVER.BASE_LR", "0.5"]
    assert compare(checkout, "--methods", "solo", "isda", opts=rate) == 1
    message = capsys.readouterr().err
    assert "output/shapes_0.5min/isda was planned with another configuration" in message
    assert "SOLVER.BASE_LR 0.5 instead of 0.001" in message and "isda --fresh" in message
    assert len(calls(checkout)) == number
    assert compare(checkout, "--methods", "isda", "--fresh", opts=rate) == 0
    assert len(calls(checkout)) == number + 2  # a probe, and a training


def test_other_annotations_and_other_files_are_refused(checkout):
    assert compare(checkout, "--methods", "isda") == 0
    output = checkout / "output" / "shapes_0.5min"
    run = new_run(METHODS["isda"], SHAPES, output, EIGHT_IMAGES)
    recall(run)
    assert run.finished
    plan = json.loads((run.folder / "plan.json").read_text())
    plan["annotations"]["shapes_tiny8_train"] = "0" * 64
    (run.folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(RunError, match="other annotations of shapes_tiny8_train"):
        recall(run)
    (run.folder / "plan.json").unlink()
    with pytest.raises(RunError, match=r"isda holds no plan\.json"):
        recall(run, fresh=True)
    assert (run.folder / "metrics.json").is_file()


def test_keys_that_a_later_version_adds_change_no_plan():
    cfg = load_config(str(ROOT / METHODS["isda"].config_file(SHAPES)))
    lines = [line for line in cfg.dump().splitlines() if "MASK_STRIDE" not in line]
    plan = planning.Plan(1.0, 1.0, 0.1, 60, "", None, "\n".join(lines), {"a": "1"})
    assert planning.changes(plan, cfg, {"a": "1"}) == []
    cfg.SOLVER.EPOCHS = 3.0
    assert planning.changes(plan, cfg, {"a": "1"}) == ["SOLVER.EPOCHS 3 instead of 20"]


BENCHMARK = """
import json, pathlib, sys

words = sys.argv[1:]
names = words[words.index("--names") + 1 : words.index("--output")]
with open("measured.txt", "a") as file:
    print(*names, words[words.index("--opts") :], file=file)
rows = []
for number, name in enumerate(names, start=1):
    ratio = {"median": number, "low": number, "high": number}
    row = {"name": name, "parameters": {"total": number * 1e6}, "flops": {"total": number * 1e9}}
    rows.append(row | {"latency": {"ratio": ratio}, "training": {"ratio": ratio}})
folder = pathlib.Path(words[words.index("--output") + 1])
(folder / "benchmark.json").write_text(json.dumps({"environment": {}, "rows": rows}))
"""


def test_speed_is_measured_once_beside_mask_rcnn(checkout):
    (checkout / "tools").mkdir()
    (checkout / "tools" / "benchmark.py").write_text(BENCHMARK)
    table = checkout / "output/shapes_0.5min/table.md"
    for _ in range(2):
        assert compare(checkout, "--methods", "mask_rcnn", "isda", speed=()) == 0
        lines = table.read_text().splitlines()
        assert "|1 M|1 G|1.00 (1.00–1.00)|1.00 (1.00–1.00)|15 × 16|" in lines[2]
        assert "|2 M|2 G|2.00 (2.00–2.00)|2.00 (2.00–2.00)|15 × 16|" in lines[3]
    first, second = (checkout / "measured.txt").read_text().splitlines()
    assert first.startswith("mask_rcnn ['--opts', ") and second.startswith("mask_rcnn isda [")
    assert "'SOLVER.AMP.ENABLED', 'False', 'MODEL.ROI_HEADS.NUM_CLASSES', '3', 'DATAS" in first
    assert "'MODEL.ISDA.NUM_CLASSES', '3', 'MODEL.ROI_HEADS.NUM_CLASSES', '3', 'DATAS" in second
    run, reference = (
        new_run(METHODS[name], SHAPES, table.parent, EIGHT_IMAGES) for name in ("isda", "mask_rcnn")
    )
    assert read_speed(run, reference)["name"] == "isda"
    reference.cfg.MODEL.FPN.OUT_CHANNELS = 8
    assert read_speed(run, reference) is None


def test_missing_data_are_named_with_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtin, "_CHECKOUT", tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert compare_methods.main(["--data", "nuclei", "--output", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert "data set 'nuclei_train' is neither in" in message
    assert "tools/make_nuclei.py makes it" in message
    assert not (tmp_path / "out").exists()


# --- the table


def result(**changes):
    final = {"iteration": 1080, "images": 2160, "minutes": 30.24, "box AP": 29.94}
    final |= {"AP": 31.26, "AP50": 60.0, "AP75": 30.0, "APs": 7.04, "APm": None, "APl": math.nan}
    early = final | {"iteration": 540, "images": 1080, "minutes": 15.0, "AP": 10.0}
    ratio = {"median": 0.8, "low": 0.75, "high": 0.9}
    speed = {"parameters": {"total": 5_440_000}, "flops": {"total": 1.234e9}}
    speed |= {"latency": {"ratio": ratio}, "training": {"ratio": ratio | {"median": 1.5}}}
    session = {"machine": {"cpu": "A processor"}, "versions": {"torch": "2.14.1"}}
    session |= {"commit": "abc1234", "started": "2026-11-29T18:00:00+00:00"}
    values = {"title": "ISDA", "batch": 2, "detections": 400, "plan": {"minutes": 30.0}}
    values |= {"evaluations": [early, final], "speed": speed, "sessions": [session]}
    return values | changes


def test_the_table_of_known_numbers():
    lines = report.table([result(), result(title="SOLO", speed=None)]).splitlines()
    cells = [line.strip("|").split("|") for line in lines]
    assert len({len(line.split("|")) for line in lines}) == 1
    expected = ["ISDA", "31.3", "60.0", "30.0", "7.0", "", "29.9", "5.44 M", "1.23 G"]
    expected += ["0.80 (0.75–0.90)", "1.50 (0.75–0.90)", "1,080 × 2", "2,160", "30.2"]
    assert cells[2] == expected
    assert dict(zip(cells[0], cells[2]))["Training step"] == "1.50 (0.75–0.90)"
    assert lines[3] == "|SOLO|31.3|60.0|30.0|7.0||29.9|||||1,080 × 2|2,160|30.2|"


def test_the_caption_says_what_the_numbers_are(checkout):
    reference = new_run(METHODS["mask_rcnn"], SHAPES, checkout, EIGHT_IMAGES)
    results = [result(), result(title="SOLO"), result(title="ISTR", detections=200)]
    text = report.caption(results, ["SOLOv2", "BlendMask"], reference)
    assert "shapes_tiny8_train (8 images) for 30 minutes of one core's processor time" in text
    assert "at most 400 (ISTR: 200) detections" in text
    assert "A processor, PyTorch 2.14.1, commit `abc1234`, started on 2026-11-29." in text
    assert "16 images for every method" in text and "ratios to Mask R-CNN" in text
    assert text.endswith("Not trained to the end with this configuration: SOLOv2, BlendMask.")
    assert "Latency" not in report.caption([result(speed=None)], [], reference)


def test_ap_is_drawn_over_minutes_and_images(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    report.plot([result(), result(title="SOLO")], tmp_path / "picture.png")
    left, right = drawn[0].axes
    assert left.lines[0].get_xdata().tolist() == pytest.approx([15.0, 30.24])
    assert right.lines[1].get_xdata().tolist() == [1080, 2160]
    assert left.lines[0].get_ydata().tolist() == [10.0, 31.26]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["ISDA", "SOLO"]


# --- with a real training

SMALL = [
    *("SOLVER.IMS_PER_BATCH", "4", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("MODEL.ISDA.NUM_QUERIES", "10", "MODEL.ISDA.ENCODER_LAYERS", "1"),
    *("MODEL.ISDA.DECODER_LAYERS", "1", "MODEL.RPN.POST_NMS_TOPK_TEST", "10"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "10", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "4"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "64", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "TEST.DETECTIONS_PER_IMAGE", "5"),
]


def wait_for(path, process, seconds=300):
    end = time.monotonic() + seconds
    while not path.is_file():
        assert process.poll() is None and time.monotonic() < end, process.stdout.read()
        time.sleep(0.1)


@pytest.mark.slow
def test_from_nothing_to_the_table_with_a_kill_between(tmp_path):
    words = ["tools/compare_methods.py", "--data", "shapes", "--minutes", "0.1"]
    words += ["--methods", "isda", "--output", str(tmp_path / "output"), "--opts"]
    words = [sys.executable, str(ROOT / words[0]), *words[1:], *EIGHT_IMAGES, *SMALL]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "datasets")}
    environment["PYTHONPATH"] = str(ROOT / "projects")
    options = {"env": environment, "text": True, "cwd": tmp_path}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    folder = tmp_path / "output" / "shapes_0.1min"
    with subprocess.Popen(words, **options) as first:
        wait_for(folder / "isda" / "last_checkpoint", first)
        first.kill()
    assert first.returncode == -signal.SIGKILL
    plan = (folder / "isda" / "plan.json").read_text()
    again = subprocess.run(words, check=False, **options)
    assert again.returncode == 0, again.stdout
    assert (folder / "isda" / "plan.json").read_text() == plan
    assert "--resume" in again.stdout
    (row,) = json.loads((folder / "results.json").read_text())
    iterations = json.loads(plan)["iterations"]
    points = row["evaluations"]
    assert points[-1]["iteration"] == iterations
    assert 5 <= len(points) <= 6
    assert sorted(point["minutes"] for point in points) == [point["minutes"] for point in points]
    # As planned, give or take what other programs do to the caches.
    assert 0.2 < points[-1]["minutes"] / 0.1 < 5
    state = torch.load(folder / "isda" / "model_final.pth")["trainer"]
    assert state["iteration"] + 1 == iterations
    assert state["hooks"]["ProcessorTimer"]["seconds"] == pytest.approx(60 * points[-1]["minutes"])
    assert 0 < row["speed"]["latency"]["ratio"]["median"] < 10
    assert (folder / "table.md").read_text() in again.stdout
    assert len(list((folder / "predictions").glob("*.png"))) == 4
    assert cv2.imread(str(folder / "predictions.png")).std() > 10
    assert [session["first_iteration"] > 0 for session in row["sessions"]] == [False, True]
