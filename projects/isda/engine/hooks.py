"""Hooks that Detectron2 lacks."""

import json
import logging
import math
import os
from pathlib import Path

import torch
from detectron2.engine import HookBase

from isda.checkpoint import Checkpointer

__all__ = ["BestCheckpointer", "tidy_metrics"]

logger = logging.getLogger(__name__)

BEST = "model_best.pth"


class BestCheckpointer(HookBase):
    """Keeps the weights with the best value of a metric in ``model_best.pth``.

    Unlike Detectron2's it leaves ``last_checkpoint`` alone, so that ``--resume`` continues the
    latest state and not the best one; and it knows the best value across resumptions, because
    the file carries it. It writes the weights that were evaluated, and nothing else.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, metric: str):
        """
        Args:
            period: iterations between evaluations, as the ``EvalHook`` before it; 0: only at the
                end.
            metric: name in the event storage, the higher the better, such as "segm/AP".
        """
        self.checkpointer = checkpointer
        self.period = period
        self.metric = metric
        self.best = -math.inf

    def before_train(self) -> None:
        path = os.path.join(self.checkpointer.save_dir, BEST)
        if self.trainer.start_iter > 0 and os.path.isfile(path):
            self.best = torch.load(path, map_location="cpu", mmap=True).get("value", -math.inf)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self.period > 0 and done % self.period == 0 and done != self.trainer.max_iter:
            self._keep_if_better()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._keep_if_better()

    def _keep_if_better(self) -> None:
        latest = self.trainer.storage.latest()
        if self.metric not in latest:
            known = ", ".join(sorted(key for key in latest if key.endswith("AP"))) or "none"
            logger.warning("no metric %s to choose the best model by (AP: %s)", self.metric, known)
            return
        value, iteration = latest[self.metric]
        if not value > self.best:  # NaN included
            return
        self.best = float(value)
        contents = {"metric": self.metric, "value": self.best, "iteration": int(iteration)}
        contents["model"] = self.checkpointer.inference_model.state_dict()
        self.checkpointer.write(BEST, contents)
        logger.info("%s %.3f is the best so far", self.metric, self.best)


def tidy_metrics(output_dir: str, start_iter: int) -> None:
    """Make ``metrics.json`` end where training starts.

    A resumed training repeats what the interrupted one did after its last checkpoint; its lines
    go. A training that starts anew in a used folder keeps the old file as ``metrics_0.json`` or
    the next free number.
    """
    path = Path(output_dir) / "metrics.json"
    if not path.is_file():
        return
    if start_iter == 0:
        number = len(list(path.parent.glob("metrics_*.json")))
        path.rename(path.with_name(f"metrics_{number}.json"))
        return
    kept = [line for line in path.read_text().splitlines() if _iteration(line) < start_iter]
    partial = path.with_name("metrics.json.partial")
    partial.write_text("".join(line + "\n" for line in kept))
    partial.replace(path)


def _iteration(line: str) -> float:
    """The iteration of a line; infinity for a last line that a kill left incomplete."""
    try:
        return json.loads(line).get("iteration", math.inf)
    except json.JSONDecodeError:
        return math.inf
