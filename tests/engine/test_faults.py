"""Trainings, evaluations and predictions that are killed, or run out of disk, many times over.

Minutes each, so only on demand: ``make faults-check``. ISDA_FAULTS_SEED chooses the moments.
"""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from toys import same_weights, toy_config, write_toy_data

from isda.checkpoint import open_last_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("ISDA_FAULTS_CHECK") != "1", reason="ISDA_FAULTS_CHECK is 1"),
    pytest.mark.skipif(sys.platform == "win32", reason="signals and file systems of POSIX"),
]

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parents[1] / "helpers/toy_program.py"
KILLS = 20
STARTED = "Starting training from iteration"
TRAINING = (
    *("SOLVER.EPOCHS", 120.0, "SOLVER.CHECKPOINT_EPOCHS", 3.0, "TEST.EVAL_EPOCHS", 12.0),
    *("SOLVER.STEP_EPOCHS", (90.0,), "SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.9),
    *("SOLVER.ACCUMULATION", 2, "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 1),
    *("MODEL.ISDA.HIDDEN_DIM", 128, "MODEL.ISDA.MASK_DIM", 128, "SOLVER.BASE_LR", 2e-3),
)


class Program(subprocess.Popen):
    """A program in a group of its own, so that its workers die with it; its words go to a file."""

    def __init__(self, command: list, log: Path):
        self.log = log
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        env["PYTHONPATH"] = os.pathsep.join(sys.path)
        with log.open("w") as file:
            super().__init__(
                list(map(str, command)),
                env=env,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self) -> None:
        assert self.wait() == 0, self.said()[-3000:]

    def wait_for(self, sign: str) -> None:
        while self.poll() is None and sign not in self.said():
            time.sleep(0.02)

    def kill_after(self, seconds: float) -> bool:
        """Kill -9; False: it had ended before."""
        try:
            self.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()
            return True
        self.end()
        return False


class Place:
    """A folder with the toy data, and the program that trains and evaluates on them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seconds = 0.0  # of the steps of an uninterrupted training
        write_toy_data(folder, "toy")

    def start(self, output: Path, *words) -> Program:
        file = self.folder / "toy.yaml"
        file.write_text(toy_config(output, *TRAINING).dump())
        command = [sys.executable, PROGRAM, self.folder, "--config-file", file, "--num-gpus", 0]
        return Program([*command, *words], self.folder / "words.txt")


@pytest.fixture(scope="module")
def moments():
    seed = int(os.environ.get("ISDA_FAULTS_SEED", time.time()))
    logger.warning("ISDA_FAULTS_SEED=%d", seed)
    return random.Random(seed)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted training, and the seconds of its steps."""
    place = Place(tmp_path_factory.mktemp("faults"))
    program = place.start(place.folder / "straight")
    program.wait_for(STARTED)
    began = time.monotonic()
    program.end()
    place.seconds = time.monotonic() - began
    logger.warning("an uninterrupted training takes %.0f s", place.seconds)
    return place


def assert_same_training(expected: Path, found: Path) -> None:
    """To the last bit: weights, averages, moments, the best model, and the best predictions."""
    first, second = (torch.load(folder / "model_final.pth") for folder in (expected, found))
    assert same_weights(first["model"], second["model"])
    assert same_weights(first["training_model"], second["training_model"])
    first, second = (x["trainer"]["_trainer"]["optimizer"]["state"] for x in (first, second))
    assert first.keys() == second.keys()
    assert all(same_weights(first[k], second[k]) for k in first)
    best, again = (torch.load(folder / "model_best.pth") for folder in (expected, found))
    assert (best["value"], best["iteration"]) == (again["value"], again["iteration"])
    assert same_weights(best["model"], again["model"])
    for name in ("coco_instances_results.json", "best_coco_instances_results.json"):
        files = [folder / "inference" / name for folder in (expected, found)]
        assert files[0].read_bytes() == files[1].read_bytes()
    numbers = [iterations(folder / "metrics.json") for folder in (expected, found)]
    assert numbers[0] == numbers[1]
    assert list(found.rglob("*.partial")) == []


def iterations(path: Path) -> list[int]:
    return sorted({json.loads(line)["iteration"] for line in path.read_text().splitlines()})


def assert_whole(folder: Path) -> None:
    """Whatever does not call itself partial can be read to its end."""
    for path in folder.rglob("*"):
        if path.suffix == ".json" and path.name != "metrics.json":
            json.loads(path.read_text())
        elif path.suffix == ".pth":
            torch.load(path)
        elif path.suffix in (".png", ".jpg"):
            Image.open(path).load()
        elif path.name == "config.yaml":
            assert "VERSION" in path.read_text()


def test_a_training_killed_twenty_times_ends_in_the_same_weights(straight, moments):
    output = straight.folder / "killed"
    kills, partial, resumed = 0, 0, []
    while kills < KILLS:
        # Most in the training itself, so that it gets on; some wherever the program is.
        anywhere = kills % 5 == 4
        seconds = moments.uniform(0, 12 if anywhere else straight.seconds / 10)
        program = straight.start(output, "--resume")
        if not anywhere:
            program.wait_for(STARTED)
        if not program.kill_after(seconds):
            break
        kills += 1
        if output.exists():
            partial += bool(list(output.rglob("*.partial")))
            assert_whole(output)
            last = open_last_checkpoint(str(output))
            resumed.append(last[1]["iteration"] + 1 if last else 0)
    straight.start(output, "--resume").end()
    logger.warning("%d kills, %d left a .partial; done at each: %s", kills, partial, resumed)
    assert kills == KILLS, "it ended before: give it more epochs"
    assert_same_training(straight.folder / "straight", output)


def test_a_killed_evaluation_leaves_whole_files_and_ends_the_same(straight, moments):
    output = straight.folder / "evaluation"
    weights = straight.folder / "straight" / "model_final.pth"
    words = ("--eval-only", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", output)
    began = time.monotonic()
    straight.start(output, *words).end()
    seconds = time.monotonic() - began
    expected = (output / "inference" / "coco_instances_results.json").read_bytes()
    killed = 0
    for _ in range(8):
        killed += straight.start(output, *words).kill_after(moments.uniform(0.5, 1) * seconds)
        assert_whole(output)
    straight.start(output, *words).end()
    logger.warning("%d of 8 evaluations killed", killed)
    assert (output / "inference" / "coco_instances_results.json").read_bytes() == expected
    assert list(output.rglob("*.partial")) == []


def test_a_killed_prediction_over_a_folder_leaves_whole_files(tmp_path, moments):
    photos, masks, words = tmp_path / "photos", tmp_path / "masks", tmp_path / "words.txt"
    photos.mkdir()
    for path in sorted((ROOT / "datasets" / "nuclei_mini" / "images").glob("*.png"))[:24]:
        shutil.copy(path, photos)
    command = [
        sys.executable,
        ROOT / "demo" / "demo.py",
        "--model",
        "nuclei/isda_boxes_mobilenet_v2",
    ]
    command += ["--input", photos, "--output", masks, tmp_path / "found.json"]
    command += ["--opts", "MODEL.DEVICE", "cpu"]

    def contents():
        files = [*masks.iterdir(), tmp_path / "found.json"]
        return {path.name: path.read_bytes() for path in files}

    began = time.monotonic()
    Program(command, words).end()
    seconds, expected = time.monotonic() - began, contents()
    assert len(expected) == 25
    shutil.rmtree(masks)
    (tmp_path / "found.json").unlink()
    left = []
    for _ in range(6):
        Program(command, words).kill_after(moments.uniform(0.3, 1) * seconds)
        assert_whole(tmp_path)
        left.append(len(list(masks.glob("*.png"))) if masks.exists() else 0)
    Program(command, words).end()
    logger.warning("pictures that there were after each of 6 kills: %s", left)
    assert contents() == expected


def mount(folder: Path, megabytes: float, *options: str) -> bool:
    options = ("-o", ",".join([f"size={int(megabytes * 1024)}k", *options]))
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", folder]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_a_disk_that_fills_up_stops_a_training_in_a_sentence(straight, tmp_path, moments):
    """Again and again with a little more room, until it is enough."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mount(disk, 0.02):
        pytest.skip("only the administrator can mount a small disk")
    output, messages, room = disk / "out", [], 0.02
    try:
        for _ in range(40):
            program = straight.start(output, "--resume")
            if program.wait() == 0:
                break
            log = program.said()
            last = log.strip().splitlines()[-1]
            messages.append(last)
            assert last.startswith("error: "), log[-3000:]
            assert "No space left on device" in last
            assert "Traceback" not in log, log[-5000:]
            assert list(disk.rglob("*.partial")) == []
            assert_whole(output)
            # First in small steps, where the small files are, later in those of checkpoints.
            room = 0.02 + moments.uniform(1, 2) * room
            assert mount(disk, room, "remount")
        logger.warning("%d times full, %.1f MB in the end: %s", len(messages), room, messages)
        assert program.returncode == 0
        assert len(messages) >= 3
        assert_same_training(straight.folder / "straight", output)
    finally:
        subprocess.run(["umount", disk], check=True)
