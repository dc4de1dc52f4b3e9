"""The training of one method: planned once, trained or resumed, and what it has measured."""

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from isda.engine.loader import training_dicts
from isda.engine.setup import load_config
from isda.errors import UserError
from isda.files import remove_partial_files
from isda.machine import commit
from isda.visualization import read_metrics

import numpy as np
from detectron2.config import CfgNode

from comparison.methods import Data, Method
from comparison.plan import (
    PLAN_FILE,
    PROBE_SKIPPED,
    Plan,
    annotations_of,
    changes,
    evaluation_period,
    planned_iterations,
    probe_overrides,
    read_plan,
    schedule_overrides,
    write_plan,
)
from environment.state import exclusive
from training_process import CONSOLE_FILE, failure_text, python_name, run_program
from training_progress import Progress, TrainingWatch, shown_path

__all__ = ["FORCED", "ONE_THREAD", "Run", "RunError", "evaluations", "new_run", "recall", "train"]

# One core, whatever the machine has, and the same order of images and random numbers every time.
# Whether half precision pays is measured at every start: on a busy machine, not always alike.
FORCED = ("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SEED", "0")
FORCED += ("SOLVER.AMP.ENABLED", "False")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_SECONDS = "processor_seconds"


class RunError(UserError):
    """A training cannot start or failed."""


@dataclass
class Run:
    """One method on one data set."""

    method: Method
    data: Data
    folder: Path
    cfg: CfgNode  # without the plan's schedule
    opts: list[str]  # KEY VALUE pairs of the user
    plan: Plan | None = None

    @property
    def config_file(self) -> str:
        return self.method.config_file(self.data)

    @property
    def metrics(self) -> list[dict]:
        """Records of metrics.json; none before the first one."""
        try:
            return read_metrics(self.folder / "metrics.json")
        except (FileNotFoundError, ValueError):
            return []

    @property
    def evaluations(self) -> list[dict]:
        """See :func:`evaluations`; none where nothing is planned."""
        if self.plan is None:
            return []
        return evaluations(self.metrics, self.plan.iterations, self.cfg.SOLVER.IMS_PER_BATCH)

    @property
    def finished(self) -> bool:
        """Whether all is trained and evaluated."""
        done = self.evaluations
        return bool(done) and done[-1]["iteration"] == self.plan.iterations

    def command(self, overrides: Sequence[str], output: Path, resume: bool = False) -> list[str]:
        """What follows ``python``, in the checkout."""
        words = ["train_net.py", "--config-file", self.config_file, *(["--resume"] * resume)]
        return [*words, *FORCED, *self.opts, *overrides, "OUTPUT_DIR", shown_path(output)]

    def training_command(self, resume: bool = False) -> list[str]:
        """The planned training."""
        images = len(training_dicts(self.cfg))
        overrides = schedule_overrides(self.cfg, images, self.plan.iterations)
        return self.command(overrides, self.folder, resume)


def evaluations(records: Sequence[Mapping], iterations: int, batch: int) -> list[dict]:
    """Per evaluation the steps before it, the images in them, the processor's minutes, and AP.

    Args:
        records: of metrics.json, in order.
        iterations: of the whole training; the final evaluation is counted as after all of them.
        batch: images of a step.
    """
    counted = [(r["iteration"] + 1, r[_SECONDS]) for r in records if _SECONDS in r]
    if not counted:
        return []
    steps, seconds = zip((0, 0.0), *counted)
    found = []
    for record in records:
        if "segm/AP" not in record:
            continue
        done = min(record["iteration"] + 1, iterations)
        # A kill may have taken the last steps' record, but not their checkpoint.
        beyond = max(done - steps[-1], 0) * seconds[-1] / steps[-1]
        row = {"iteration": done, "images": done * batch}
        row["minutes"] = float(np.interp(done, steps, seconds) + beyond) / 60
        row |= {key: record.get(f"segm/{key}") for key in METRICS}
        row["box AP"] = record.get("bbox/AP")
        found.append(row)
    return found


def new_run(method: Method, data: Data, output: Path, opts: list[str]) -> Run:
    """Without what an earlier comparison left of it.

    Args:
        output: folder of the whole comparison.
        opts: KEY VALUE pairs.
    """
    cfg = load_config(method.config_file(data), [*FORCED, *opts])
    return Run(method, data, output / method.name, cfg, opts)


def recall(run: Run, *, fresh: bool = False) -> None:
    """Takes over the plan of an earlier comparison, or with ``fresh`` removes its training.

    Raises:
        RunError: it was planned with another configuration or other data, or the folder holds
            something else.
        PlanError: the plan cannot be read.
    """
    folder, method = run.folder, run.method
    if not folder.is_dir():
        return
    remove_partial_files(folder)
    plan = read_plan(folder)
    if plan is None and any(folder.iterdir()):
        raise RunError(
            f"{shown_path(folder)} holds no {PLAN_FILE}, so no training of a comparison: choose "
            "another --output, or remove it"
        )
    if fresh:
        shutil.rmtree(folder)
    elif plan and (changed := changes(plan, run.cfg, annotations_of(run.cfg))):
        raise RunError(
            f"{shown_path(folder)} was planned with another configuration or other data: now "
            f"{'; '.join(changed)}. Set it back, choose another --output, or train {method.title} "
            f"anew with --methods {method.name} --fresh"
        )
    else:
        run.plan = plan


def train(run: Run, minutes: float, progress: Progress) -> None:
    """Trains to the end, from where an earlier comparison stopped; does nothing after that.

    Raises:
        RunError: it failed; the message ends with the last lines of its console.
        PlanError: the minutes are too few.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = run.folder.with_name(f".{run.method.name}.lock")
    with exclusive(lock, f"{run.method.title}: waiting for another training of it to end"):
        run.plan = read_plan(run.folder)  # which the other one may have made
        if run.plan is None:
            make_plan(run, minutes, progress)
        if not run.finished:
            run_training(run, progress)
        for path in run.folder.glob("model_[0-9]*.pth"):
            path.unlink()  # checkpoints that nothing continues any more


def make_plan(run: Run, minutes: float, progress: Progress) -> None:
    """Measures some steps of the config, and writes down how many fit into the minutes.

    Raises:
        RunError: they failed.
        PlanError: the minutes are too few.
    """
    probe = run.folder.with_name(f"{run.method.name}_probe")
    shutil.rmtree(probe, ignore_errors=True)
    probe.mkdir()
    progress.say("      measuring some steps, to plan how many fit")
    console = probe / CONSOLE_FILE
    code = run_program(run.command(probe_overrides(), probe), console, environment=ONE_THREAD)
    what = f"a probe of {run.method.title}"
    if code:
        raise RunError(failure_text(what, code, console, "metrics.json"))
    counted = [record[_SECONDS] for record in read_metrics(probe / "metrics.json")]
    iterations, seconds, error = planned_iterations(minutes, np.diff(counted)[PROBE_SKIPPED - 1 :])
    run.plan = Plan(
        minutes=minutes,
        seconds_per_step=seconds,
        standard_error=error,
        iterations=iterations,
        date=datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
        commit=commit(),
        config=run.cfg.dump(),
        annotations=annotations_of(run.cfg),
    )
    run.folder.mkdir(exist_ok=True)
    write_plan(run.plan, run.folder)
    shutil.rmtree(probe)
    progress.say(
        f"      {seconds:.3g} ± {error:.2g} s of the processor per step of "
        f"{run.cfg.SOLVER.IMS_PER_BATCH} images: {iterations} steps"
    )


def run_training(run: Run, progress: Progress) -> None:
    """
    Raises:
        RunError: it failed.
    """
    command = run.training_command(resume=(run.folder / "last_checkpoint").is_file())
    progress.say(f"      $ {shlex.join([python_name(), *command])}")
    watch = TrainingWatch(run.plan.iterations, evaluation_period(run.plan.iterations))

    def read(line: str) -> None:
        if watch.read(line) and (remaining := watch.remaining()) is not None:
            progress.update(str(watch), remaining)

    console = run.folder / CONSOLE_FILE
    code = run_program(command, console, read, ONE_THREAD)
    if code or not run.finished:
        text = failure_text(f"training {run.method.title}", code, console, "the final mask AP")
        raise RunError(
            f"{text}\nRun the same command again to continue from the last checkpoint, or with "
            f"--methods {run.method.name} --fresh to start anew."
        )
