"""Two processes on CPUs, one image each, against one process with both images."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.utils.env import seed_all_rng
from toys import (
    BLENDMASK,
    BOXES,
    CONDINST,
    ISTR,
    SOLOV2,
    same_size_config,
    same_weights,
    toy_data,
)

from isda.engine.trainer import Trainer

SECONDS = 600  # machines that do much else start processes slowly


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def environment(rank, port):
    return {
        **os.environ,
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
        "PYTHONPATH": os.pathsep.join(sys.path),
    }


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The results of both processes; a hang fails instead of waiting for ever."""
    output, data = tmp_path_factory.mktemp("output"), tmp_path_factory.mktemp("data")
    toy_data(data, sizes=[(64, 64)])
    poisoned = ["a.png", "b.png", "poison.png", "c.png"]
    toy_data(data, "poisoned", file_names=poisoned, sizes=[(64, 64)])
    script, port = Path(__file__).parents[1] / "helpers/two_processes.py", free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(output), str(data)],
            env=environment(rank, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        logs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(logs)
    return output, [torch.load(output / f"rank{rank}.pth") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("weights", ()),
        ("istr", (*ISTR, "SOLVER.BASE_LR", 1e-4)),
        ("boxes", (*BOXES, "MODEL.ISDA.DENOISING_QUERIES", 0)),
        ("solov2", SOLOV2),
        ("condinst", CONDINST),
        ("blendmask", BLENDMASK),
    ],
)
def test_two_processes_of_one_image_equal_one_process_of_two(
    outcome, tmp_path, one_thread, model, overrides
):
    _, (first, second) = outcome
    assert same_weights(first[model], second[model])
    toy_data(tmp_path, sizes=[(64, 64)])
    cfg = same_size_config(tmp_path / "one", *overrides)
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    start = {k: v.clone() for k, v in trainer.checkpointer.model.state_dict().items()}
    trainer.train()
    for name, together in trainer.checkpointer.model.state_dict().items():
        moved = (together - start[name]).abs().max()
        difference = (together - first[model][name]).abs().max()
        assert difference <= 1e-3 * moved + 1e-7, name


def test_an_image_without_instances_in_one_process_stops_nobody(outcome):
    # Of the toy images the first has none, and three steps of two images show all five.
    _, (first, _) = outcome
    for model in ("weights", "istr", "boxes", "random", "solov2", "condinst", "blendmask"):
        assert all(torch.isfinite(tensor).all() for tensor in first[model].values())


def test_noise_and_sampled_cells_leave_the_processes_alike(outcome):
    """Each draws its own, and has another number of groups; gradients are averaged as always."""
    _, (first, second) = outcome
    assert same_weights(first["random"], second["random"])


def test_all_processes_skip_a_step_that_is_bad_in_one(outcome):
    _, (first, second) = outcome
    assert same_weights(first["poisoned"], second["poisoned"])
    assert all(torch.isfinite(tensor).all() for tensor in first["poisoned"].values())
    (message,) = first["messages"]
    assert "poison.png" in message
    assert not any(name in message for name in ("a.png", "b.png", "c.png"))


def test_each_process_has_its_own_random_state_saved(outcome):
    output, _ = outcome
    states = torch.load(output / "two" / "model_final.pth")["trainer"]["random_states"]
    assert len(states) == 2
    assert states[0]["torch"] != states[1]["torch"]


def test_an_early_stop_is_for_all_processes(outcome):
    output, results = outcome
    for result in results:
        iterations, (dataset,) = result["stopped"]
        assert iterations == 3
        assert dataset.startswith("data")  # the folder's name
        assert dataset.endswith("_train")
    assert (output / "own" / "last_checkpoint").read_text() == "model_final.pth"
