"""A training that was killed and resumed ends in the same weights, to the last bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.env import seed_all_rng
from toys import BOXES, same_weights, toy_config, toy_data

from isda.engine.hooks import (
    EarlyStopper,
    ProcessorTimer,
    TrainingStopped,
    is_evaluated,
    tidy_metrics,
)
from isda.engine.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

OVERRIDES = (
    *("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.9),
    *("SOLVER.ACCUMULATION", 2, "SOLVER.IMS_PER_BATCH", 4),
    *("DATALOADER.NUM_WORKERS", 1, "DATALOADER.ASPECT_RATIO_GROUPING", True),
    *("TEST.EVAL_PERIOD", 2),
)


def train(cfg, resume=False):
    seed_all_rng(cfg.SEED + resume)  # a new process does not start where the old one was
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def final(folder):
    return torch.load(folder / "model_final.pth")


@pytest.mark.slow
@pytest.mark.parametrize("method", [(), (*BOXES, "MODEL.ISDA.MASK_POINTS", 60)], ids=["", "boxes"])
def test_killed_and_resumed_equals_straight(tmp_path, method):
    toy_data(tmp_path)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    overrides = (*OVERRIDES, *method)
    train(toy_config(straight, *overrides))

    script = Path(__file__).parents[1] / "helpers/killed_training.py"
    command = [sys.executable, script, broken, tmp_path, 3, *overrides]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (broken / "last_checkpoint").read_text() == "model_0000001.pth"

    resumed = train(toy_config(broken, *overrides), resume=True)
    assert resumed.start_iter == 2
    expected, found = final(straight), final(broken)
    assert same_weights(expected["model"], found["model"])
    assert same_weights(expected["training_model"], found["training_model"])
    assert not same_weights(found["model"], found["training_model"])
    moments = [f["trainer"]["_trainer"]["optimizer"]["state"] for f in (expected, found)]
    assert all(same_weights(moments[0][k], moments[1][k]) for k in moments[0])


def test_data_order_and_augmentation_do_not_depend_on_workers(tmp_path):
    toy_data(tmp_path)
    seen = []
    for workers in (0, 2):
        trainer = Trainer(toy_config(tmp_path / "out", "DATALOADER.NUM_WORKERS", workers))
        batches = iter(trainer.data_loader)
        seen.append([x["image"] for _ in range(6) for x in next(batches)])
    assert all(map(torch.equal, *seen))
    assert len({tuple(image.shape) for image in seen[0]}) > 1  # sizes are drawn at random


def test_resuming_a_finished_training_trains_no_more(tmp_path):
    toy_data(tmp_path)
    cfg = toy_config(tmp_path / "out", "SOLVER.MAX_ITER", 2)
    train(cfg)
    before = (tmp_path / "out" / "model_final.pth").read_bytes()
    assert "segm" in Trainer.train(train(cfg, resume=True))
    assert (tmp_path / "out" / "model_final.pth").read_bytes() == before


def evaluations(folder):
    """Iterations with an evaluation and its AP, the best one, and the iterations of all lines."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    best = torch.load(folder / "model_best.pth")
    found = {line["iteration"]: line["segm/AP"] for line in lines if "segm/AP" in line}
    return found, (best["iteration"], best["value"]), {line["iteration"] for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("killed", [2, 3])
def test_an_interrupted_evaluation_is_made_up_for(tmp_path, monkeypatch, killed):
    """Its checkpoint has been written, and resuming goes on after it."""
    toy_data(tmp_path)
    opts = ("SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 2)
    train(toy_config(tmp_path / "straight", *opts))
    evaluate, calls = Trainer.evaluate, []

    def kill(trainer):
        calls.append(trainer.iter)
        if len(calls) > 1:  # written at once, and not with the next twentieth step
            assert is_evaluated(str(tmp_path / "out"), 2 * len(calls) - 3)
        if len(calls) == killed:
            raise KeyboardInterrupt
        return evaluate(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", kill)
        with pytest.raises(KeyboardInterrupt):
            train(toy_config(tmp_path / "out", *opts))
    train(toy_config(tmp_path / "out", *opts), resume=True)
    expected = evaluations(tmp_path / "straight")
    assert evaluations(tmp_path / "out") == expected
    assert list(expected[0]) == [1, 3, 6]
    ours, theirs = (torch.load(tmp_path / x / "model_final.pth") for x in ("straight", "out"))
    assert same_weights(ours["model"], theirs["model"])


@pytest.mark.parametrize(("since", "start"), [(2, 4), (1, 4), (2, 3), (2, 0)])
def test_an_early_stop_that_a_kill_has_taken_comes_with_the_first_step(since, start):
    saved = {}
    checkpointer = SimpleNamespace(save=lambda name, iteration: saved.update({name: iteration}))
    best = SimpleNamespace(
        evaluations_since_best=lambda done: since, metric="segm/AP", best=3.0, best_iteration=1
    )
    stopper = EarlyStopper(checkpointer, best, period=2, patience=2)
    stopper.trainer = trainer = SimpleNamespace(start_iter=start, iter=start, max_iter=9)
    stopper.before_train()
    assert saved == {}
    if (since, start) == (2, 4):
        with pytest.raises(TrainingStopped):
            stopper.before_step()
        assert saved == {"model_final": 3} and trainer.iter == 3
    else:
        stopper.before_step()
        trainer.iter += 1
        stopper.before_step()
        assert saved == {}


def test_resume_without_a_checkpoint_starts_anew_and_says_so(tmp_path, caplog):
    toy_data(tmp_path)
    trainer = Trainer(toy_config(tmp_path / "out"))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0
    assert "starting anew" in caplog.text


def test_metrics_end_where_training_resumes(tmp_path):
    lines = [json.dumps({"iteration": i, "total_loss": i}) + "\n" for i in (19, 39, 59)]
    (tmp_path / "metrics.json").write_text("".join(lines) + '{"iteration": 7')
    tidy_metrics(str(tmp_path), 50)
    assert (tmp_path / "metrics.json").read_text() == "".join(lines[:2])


def test_a_new_training_in_a_used_folder_keeps_the_old_metrics(tmp_path):
    toy_data(tmp_path)
    cfg = toy_config(tmp_path / "out", "SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()")
    train(cfg)
    old = (tmp_path / "out" / "metrics.json").read_text()
    train(cfg)
    assert old
    assert (tmp_path / "out" / "metrics_0.json").read_text() == old


class ScriptedTrainer(Trainer):
    """Each evaluation gives the next AP of a list; at None it fails."""

    aps: list

    @classmethod
    def test(cls, cfg, model):
        ap = cls.aps.pop(0)
        if ap is None:
            raise RuntimeError("interrupted")
        return {"segm": {"AP": ap}}


def scripted(folder, aps, resume=False, patience=2):
    """A trainer after its training of 12 steps at most, evaluated after each."""
    ScriptedTrainer.aps = list(aps)
    overrides = ("TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", 12, "SOLVER.CHECKPOINT_PERIOD", 5)
    trainer = ScriptedTrainer(
        toy_config(folder, *overrides, "SOLVER.EARLY_STOP.PATIENCE", patience)
    )
    trainer.resume_or_load(resume=resume)
    trainer.results = trainer.train()
    return trainer


def test_early_stop(tmp_path):
    """At 0 nothing is counted; then two evaluations in a row below the best end the training."""
    toy_data(tmp_path)
    out = tmp_path / "out"
    trainer = scripted(out, [0, 0, 0, 5, 4, 7, 7, 6.9, 9])
    assert trainer.results == {"segm": {"AP": 6.9}}
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    assert final(out)["iteration"] == 7
    best = torch.load(out / "model_best.pth")
    assert (best["value"], best["iteration"]) == (7, 5)
    assert "model" in best

    # Resumed, it stays where it stopped; with more patience it goes on, and counts on.
    assert scripted(out, [3.0], resume=True).results == {"segm": {"AP": 3.0}}
    assert final(out)["iteration"] == 7
    trainer = scripted(out, [6, 6, 8, 7, 7, 7, 7], resume=True, patience=5)
    assert final(out)["iteration"] == 11
    assert torch.load(out / "model_best.pth")["iteration"] == 10
    assert ScriptedTrainer.aps == [7, 7, 7]


def test_early_stop_counts_across_an_interruption(tmp_path):
    toy_data(tmp_path)
    straight = scripted(tmp_path / "straight", [5, 4, 6, 7, 1, 2, 3], patience=3)
    assert straight.iter == 6
    with pytest.raises(RuntimeError, match="interrupted"):
        scripted(tmp_path / "broken", [5, 4, 6, 7, None], patience=3)
    # The evaluation that was interrupted, after 5 steps, comes first.
    resumed = scripted(tmp_path / "broken", [1, 2, 3], resume=True, patience=3)
    assert (resumed.start_iter, resumed.iter) == (5, 6)
    assert ScriptedTrainer.aps == []


def test_without_patience_nothing_stops(tmp_path):
    toy_data(tmp_path)
    trainer = scripted(tmp_path / "out", [5] + 11 * [1], patience=0)
    assert trainer.iter == 12


class Processor:
    """A clock of which a step takes 2 s, and everything else 5."""

    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time


def test_processor_seconds_are_those_of_steps_across_resumptions():
    clock, written = Processor(), []
    storage = SimpleNamespace(put_scalar=lambda name, value, **_: written.append((name, value)))

    def steps(timer, count):
        timer.trainer = SimpleNamespace(storage=storage)
        for _ in range(count):
            timer.before_step()
            clock.time += 2.0
            timer.after_step()
            clock.time += 5.0  # an evaluation

    first = ProcessorTimer(clock)
    steps(first, 2)
    second = ProcessorTimer(clock)
    second.load_state_dict(first.state_dict())
    steps(second, 1)
    assert written == [("processor_seconds", seconds) for seconds in (2.0, 4.0, 6.0)]


def test_a_resumed_training_goes_on_counting_processor_seconds(tmp_path):
    toy_data(tmp_path)
    for iterations in (2, 4):
        cfg = toy_config(tmp_path / "out", "SOLVER.MAX_ITER", iterations, "DATASETS.TEST", ())
        train(cfg, resume=True)
    lines = [json.loads(x) for x in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    seconds = [line["processor_seconds"] for line in lines]
    assert [line["iteration"] for line in lines] == [1, 3]
    assert 0 < seconds[0] < seconds[1]
    state = torch.load(tmp_path / "out" / "model_final.pth")["trainer"]["hooks"]["ProcessorTimer"]
    assert state == {"seconds": seconds[1]}
