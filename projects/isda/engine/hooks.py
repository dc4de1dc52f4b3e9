"""Hooks that Detectron2 lacks."""

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter

from isda import strict_json
from isda.checkpoint import BEST, Checkpointer, WeightsError
from isda.files import copy_file, write_error, write_text
from isda.weights_files import read_checkpoint

__all__ = [
    "BestCheckpointer",
    "EarlyStopper",
    "Evaluation",
    "MetricsWriter",
    "PeriodicWriter",
    "ProcessorTimer",
    "TrainingStopped",
    "is_evaluated",
    "tidy_metrics",
]

logger = logging.getLogger(__name__)

BEST_PREFIX = "best_"


class ProcessorTimer(HookBase):
    """Counts the processor's seconds in training steps, as ``processor_seconds`` of the metrics.

    They are those of all threads of this process, from the first step of the training on, also
    across resumptions. What evaluations, checkpoints and other programs take is left out, and so
    is the work of DATALOADER.NUM_WORKERS, which are processes of their own. On a GPU they say
    nothing. It belongs behind Detectron2's ``IterationTimer``, before hooks that do work.
    """

    def __init__(self, now: Callable[[], float] = time.process_time):
        self.now = now
        self.seconds = 0.0
        self._start = 0.0

    def before_step(self) -> None:
        self._start = self.now()

    def after_step(self) -> None:
        self.seconds += self.now() - self._start
        self.trainer.storage.put_scalar("processor_seconds", self.seconds, smoothing_hint=False)

    def state_dict(self) -> dict:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict) -> None:
        self.seconds = state_dict["seconds"]


class MetricsWriter(JSONWriter):
    """Detectron2's, in strict JSON, which says what is wrong where it cannot be written."""

    def __init__(self, json_file: str):
        try:
            super().__init__(json_file)
        except OSError as error:
            raise write_error(json_file, error) from error
        self._file_handle = strict_json.StrictLines(self._file_handle)
        self.json_file = json_file

    def write(self) -> None:
        try:
            super().write()
        except OSError as error:
            raise write_error(self.json_file, error) from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what write could not write is tried once more
            super().close()


class PeriodicWriter(hooks.PeriodicWriter):
    """Detectron2's, which also writes what an evaluation found at once: a kill may be near."""

    def __init__(self, writers: list[EventWriter], period: int, evaluation_period: int):
        super().__init__(writers, period)
        self.evaluation_period = evaluation_period

    def before_train(self) -> None:
        if self.trainer.storage.latest():  # an evaluation that has been made up for
            self._write()

    def after_step(self) -> None:
        super().after_step()
        if self.evaluation_period and (self.trainer.iter + 1) % self.evaluation_period == 0:
            self._write()

    def _write(self) -> None:
        for writer in self._writers:
            if not isinstance(writer, CommonMetricPrinter):  # the evaluation has been printed
                writer.write()


class Evaluation(hooks.EvalHook):
    """Detectron2's, which makes up for an evaluation that a kill has taken.

    A checkpoint is written before the evaluation of the same iteration: who resumes it would miss
    that one. It belongs before the ``BestCheckpointer`` and the ``PeriodicWriter``.
    """

    def __init__(self, period: int, function: Callable[[], dict], output_dir: str):
        super().__init__(period, function)
        self.output_dir = output_dir

    def before_train(self) -> None:
        done = self.trainer.start_iter
        due = self._period > 0 and done % self._period == 0 and 0 < done < self.trainer.max_iter
        if not due or is_evaluated(self.output_dir, done - 1):
            return
        logger.info("The evaluation after %d iterations was interrupted: once more", done)
        self.trainer.storage.iter = done - 1
        self._do_eval()
        self.trainer.storage.iter = done


def is_evaluated(output_dir: str, iteration: int) -> bool:
    """Whether ``metrics.json`` has an evaluation of an iteration; the main process decides."""
    path, found = Path(output_dir) / "metrics.json", False
    if comm.is_main_process() and path.is_file():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        # Most lines are of training steps: those are not parsed.
        evaluations = [line for line in lines if '/AP"' in line]
        found = any(_iteration(line) == iteration for line in evaluations)
    return comm.all_gather(found)[0]


class BestCheckpointer(HookBase):
    """Keeps the weights with the best value of a metric in ``model_best.pth``.

    Unlike Detectron2's it leaves ``last_checkpoint`` alone, so that ``--resume`` continues the
    latest state and not the best one; and it knows the best value across resumptions, because
    the file carries it. It writes the weights that were evaluated, and nothing else.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, metric: str, predictions: str = ""):
        """
        Args:
            period: iterations between evaluations, as the ``EvalHook`` before it; 0: only at the
                end.
            metric: name in the event storage, the higher the better, such as "segm/AP".
            predictions: file that an evaluation writes; that of the best one is kept beside it,
                with "best_" before its name.
        """
        self.checkpointer = checkpointer
        self.period = period
        self.metric = metric
        self.predictions = predictions
        self.best = -math.inf
        self.best_iteration = -1

    def before_train(self) -> None:
        path = os.path.join(self.checkpointer.save_dir, BEST)
        if self.trainer.start_iter > 0 and os.path.isfile(path):
            contents = read_checkpoint(path, mmap=True)
            iteration, batch = contents.get("iteration", -1), contents.get("images_per_step")
            self.best = contents.get("value", -math.inf)
            if not all(isinstance(n, int | float) for n in (self.best, iteration, batch or 0)):
                raise WeightsError(
                    f"{path} does not say in numbers which evaluation it is of, as this trainer "
                    "does: move it to another folder"
                )
            solver = self.trainer.cfg.SOLVER
            if batch and solver.EPOCHS > 0:
                iteration = rescaled(iteration, batch / solver.IMS_PER_BATCH)
            self.best_iteration = iteration
        if self.metric in self.trainer.storage.latest():  # of an interrupted evaluation
            self._keep_if_better()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self.period > 0 and done % self.period == 0 and done != self.trainer.max_iter:
            self._keep_if_better()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._keep_if_better()

    def evaluations_since_best(self, done: int) -> int:
        """How many evaluations after ``done`` iterations were no better than the best.

        0 as long as no value was above 0: a set predictor may need many epochs to its first AP.
        """
        return (done - self.best_iteration - 1) // self.period if self.best > 0 else 0

    def _keep_if_better(self) -> None:
        latest = self.trainer.storage.latest()
        if self.metric not in latest:
            known = ", ".join(sorted(key for key in latest if key.endswith("AP"))) or "none"
            logger.warning("no metric %s to choose the best model by (AP: %s)", self.metric, known)
            return
        value, iteration = latest[self.metric]
        # Once more where a kill may have come between the weights and the predictions.
        again = (value, iteration) == (self.best, self.best_iteration)
        if not value > self.best and not again:  # NaN included
            return
        self.best, self.best_iteration = float(value), int(iteration)
        contents = {"metric": self.metric, "value": self.best, "iteration": self.best_iteration}
        contents["images_per_step"] = self.trainer.cfg.SOLVER.IMS_PER_BATCH
        self.checkpointer.write(BEST, contents | self.checkpointer.inference_contents())
        if self.predictions and os.path.isfile(self.predictions):
            folder, name = os.path.split(self.predictions)
            copy_file(self.predictions, os.path.join(folder, BEST_PREFIX + name))
        logger.info("%s %.3f is the best so far", self.metric, self.best)


class TrainingStopped(BaseException):  # noqa: N818
    """Ends Detectron2's loop early; no ``Exception``, which it would log as a failure."""


class EarlyStopper(HookBase):
    """Ends the training when the best evaluation is too long ago.

    It belongs behind the ``BestCheckpointer``, in all processes. A resumption goes on counting,
    because ``model_best.pth`` says when the best evaluation was, and ends at once where the
    training had been stopped, unless the patience is longer now.
    """

    def __init__(
        self, checkpointer: Checkpointer, best: BestCheckpointer | None, period: int, patience: int
    ):
        """
        Args:
            best: of the main process; None in others.
            period: iterations between evaluations.
            patience: so many evaluations in a row may be no better than the best.
        """
        self.checkpointer = checkpointer
        self.best = best
        self.period = period
        self.patience = patience
        self.has_stopped = False

    def before_train(self) -> None:
        if self.has_stopped:  # so says the checkpoint that is resumed
            self._stop_if_due(self.trainer.start_iter)
            self.has_stopped = False

    def before_step(self) -> None:
        """Once more in the first step, where a kill has taken the evaluation or this hook's turn.

        Not earlier: the random states of the checkpoint are back only now.
        """
        done = self.trainer.start_iter
        if self.trainer.iter == done > 0 and done % self.period == 0:
            self._stop_if_due(done)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 and done != self.trainer.max_iter:
            self._stop_if_due(done)

    def _stop_if_due(self, done: int) -> None:
        since = self.best.evaluations_since_best(done) if self.best else 0
        if comm.all_gather(since)[0] < self.patience:  # the main process decides for all
            return
        if not self.has_stopped:
            self.has_stopped = True
            self.trainer.iter = done - 1  # what the checkpoint is to say
            self.checkpointer.save("model_final", iteration=done - 1)
        if self.best:
            logger.warning(
                "Stopped early, after %d of %d iterations: %s %.3f of iteration %d was not "
                "surpassed in %d evaluations (SOLVER.EARLY_STOP.PATIENCE %d)",
                done,
                self.trainer.max_iter,
                self.best.metric,
                self.best.best,
                self.best.best_iteration + 1,
                since,
                self.patience,
            )
        raise TrainingStopped

    def state_dict(self) -> dict:
        return {"has_stopped": self.has_stopped}

    def load_state_dict(self, state_dict: dict) -> None:
        self.has_stopped = state_dict["has_stopped"]


def tidy_metrics(output_dir: str, start_iter: int, before: int = 0) -> None:
    """Make ``metrics.json`` end where training starts.

    A resumed training repeats what the interrupted one did after its last checkpoint; its lines
    go. A training that starts anew in a used folder keeps the old file as ``metrics_0.json`` or
    the next free number.

    Args:
        start_iter: iterations that are done, as this training counts them.
        before: as the lines count them, if that differs because the batch is another; the lines
            are then renumbered.
    """
    path = Path(output_dir) / "metrics.json"
    if not path.is_file():
        return
    if start_iter == 0:
        number = len(list(path.parent.glob("metrics_*.json")))
        path.rename(path.with_name(f"metrics_{number}.json"))
        return
    before = before or start_iter
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [strict_json.dumps(json.loads(x)) for x in lines if _iteration(x) < before]
    if before != start_iter:
        kept = [_renumbered(line, start_iter / before) for line in kept]
    write_text(path, "".join(line + "\n" for line in kept))


def _renumbered(line: str, scale: float) -> str:
    content = json.loads(line)
    content["iteration"] = rescaled(content["iteration"], scale)
    return strict_json.dumps(content, sort_keys=True)


def rescaled(iteration: int, scale: float) -> int:
    """The number, from 0, of an iteration that is done when ``scale`` times as many are."""
    return max(round((iteration + 1) * scale) - 1, 0)


def _iteration(line: str) -> float:
    """The iteration of a line; infinity for one that a kill left incomplete, or that has none."""
    try:
        content = json.loads(line)
    except json.JSONDecodeError:
        return math.inf
    iteration = content.get("iteration") if isinstance(content, dict) else None
    return iteration if isinstance(iteration, int) else math.inf
