"""``torchrun -m isda train``, as docs/CLI.md has it, with two processes on a CPU."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROJECTS = Path(__file__).resolve().parents[2] / "projects"
SMALL = ("MODEL.ISDA.ENCODER_LAYERS", "1", "MODEL.ISDA.DECODER_LAYERS", "1")
SMALL += ("MODEL.ISDA.NUM_QUERIES", "10", "TEST.DETECTIONS_PER_IMAGE", "5")
STEPS = ("SOLVER.EPOCHS", "0", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2")
STEPS += ("SOLVER.CHECKPOINT_EPOCHS", "0", "TEST.EVAL_EPOCHS", "0", "DATALOADER.NUM_WORKERS", "0")


def torchrun(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """``torchrun --standalone --nproc_per_node 2 -m isda WORDS``, outside the checkout."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "-m", "isda", *words]
    variables = {"OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(folder / "datasets")}
    variables["PYTHONPATH"] = os.pathsep.join([str(PROJECTS), os.environ.get("PYTHONPATH", "")])
    options = {"cwd": folder, "env": os.environ | variables, "timeout": 900}
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    config = ("--config-file", "shapes/isda_overfit8.yaml", "MODEL.DEVICE", "cpu")
    done = torchrun(tmp_path, "train", *config, *SMALL, *STEPS, "OUTPUT_DIR", "out")
    assert done.returncode == 0, done.stderr
    output = tmp_path / "out"
    # Each process has a log, and the first one alone writes the rest.
    assert {path.name for path in output.glob("log.txt*")} == {"log.txt", "log.txt.rank1"}
    assert "Process 0 of 2" in (output / "log.txt").read_text()
    records = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    (losses,) = [r["total_loss"] for r in records if "total_loss" in r]
    assert math.isfinite(losses)
    assert [r for r in records if "segm/AP" in r]
    (session,) = json.loads((output / "environment.json").read_text())["sessions"]
    assert "seconds" in session
    weights = torch.load(output / "model_final.pth", weights_only=False)
    assert weights["iteration"] == 1
