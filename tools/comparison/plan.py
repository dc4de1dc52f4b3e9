"""How long a training is, fixed before it starts: minutes of one core, as steps of its config."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isda import strict_json
from isda.engine.resuming import read_flat
from isda.engine.setup import resolve_schedule
from isda.errors import UserError
from isda.files import write_text
from isda.model_zoo.weights import sha256_of

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

__all__ = [
    "EVALUATIONS",
    "PROBE_SKIPPED",
    "PROBE_STEPS",
    "Plan",
    "PlanError",
    "annotations_of",
    "changes",
    "planned_iterations",
    "probe_overrides",
    "read_plan",
    "schedule_overrides",
    "write_plan",
]

PLAN_FILE = "plan.json"
EVALUATIONS = 6  # of a training, the final one included
# Sizes of images are drawn at random, so a step's time is a mean; the first ones also warm up.
PROBE_SKIPPED, PROBE_STEPS = 5, 25
_NEVER = 10**9  # iterations


class PlanError(UserError):
    """No training can be planned."""


@dataclass(frozen=True)
class Plan:
    """What a resumed training has to keep, and what the table says about it."""

    minutes: float  # of the processor, in training steps
    seconds_per_step: float  # of the processor, as the probe measured it
    standard_error: float  # of that mean, in seconds
    iterations: int
    date: str
    commit: str | None
    config: str  # YAML of the method's own configuration, without the plan's schedule
    annotations: dict[str, str]  # sha256 per data set


def read_plan(folder: Path) -> Plan | None:
    """None where there is none.

    Raises:
        PlanError: the file is not what :func:`write_plan` writes.
    """
    path = folder / PLAN_FILE
    if not path.is_file():
        return None
    try:
        return Plan(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise PlanError(f"{path} is not the plan of a training ({error})") from error


def write_plan(plan: Plan, folder: Path) -> None:
    write_text(folder / PLAN_FILE, strict_json.dumps(asdict(plan), indent=1) + "\n")


def planned_iterations(minutes: float, step_seconds: Sequence[float]) -> tuple[int, float, float]:
    """How many steps fit, the mean of their seconds, and its standard error.

    Raises:
        PlanError: not even one fits.
    """
    mean = statistics.fmean(step_seconds)
    error = statistics.stdev(step_seconds) / math.sqrt(len(step_seconds))
    iterations = math.floor(60 * minutes / mean)
    if iterations < 1:
        raise PlanError(f"a step takes {mean:.3g} s: {minutes:g} minutes are too few for it")
    return iterations, mean, error


def probe_overrides() -> list[str]:
    """KEY VALUE pairs of a training that only measures its steps.

    Nothing is evaluated without a data set; with a period of 1, metrics.json tells every step.
    """
    iterations = PROBE_SKIPPED + PROBE_STEPS
    return [
        *("SOLVER.EPOCHS", "0", "SOLVER.MAX_ITER", str(iterations), "SOLVER.STEPS", "()"),
        *("SOLVER.CHECKPOINT_EPOCHS", "0", "SOLVER.CHECKPOINT_PERIOD", str(_NEVER)),
        *("DATASETS.TEST", "()", "TEST.EVAL_EPOCHS", "0", "TEST.EVAL_PERIOD", "1"),
    ]


def schedule_overrides(cfg: CfgNode, num_images: int, iterations: int) -> list[str]:
    """KEY VALUE pairs that stretch the config's own schedule to ``iterations``.

    Steps keep their shares of the whole; a cosine spans it anyway. The warm-up stays as long as it
    is, up to half of the training: shortened to 57 of 100 steps, it cost Mask R-CNN its box head.

    Args:
        num_images: filtered training images, of which an epoch consists.
    """
    own = cfg.clone()
    resolve_schedule(own, num_images)
    share = iterations / own.SOLVER.MAX_ITER
    steps = tuple(round(step * share) for step in own.SOLVER.STEPS)
    period = str(evaluation_period(iterations))
    return [
        *("SOLVER.EPOCHS", "0", "SOLVER.MAX_ITER", str(iterations)),
        *("SOLVER.STEPS", str(steps)),
        *("SOLVER.WARMUP_ITERS", str(min(own.SOLVER.WARMUP_ITERS, iterations // 2))),
        *("SOLVER.CHECKPOINT_EPOCHS", "0", "SOLVER.CHECKPOINT_PERIOD", period),
        *("TEST.EVAL_EPOCHS", "0", "TEST.EVAL_PERIOD", period),
    ]


def evaluation_period(iterations: int) -> int:
    """Iterations from one evaluation to the next."""
    return math.ceil(iterations / EVALUATIONS)


def annotations_of(cfg: CfgNode) -> dict[str, str]:
    """The sha256 of the annotations, per data set."""
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    return {name: sha256_of(Path(MetadataCatalog.get(name).json_file)) for name in names}


def changes(plan: Plan, cfg: CfgNode, annotations: dict[str, str]) -> list[str]:
    """What is not as it was when the plan was made; keys that only one of the two has do not count.

    Keys that a later version of this project adds keep their defaults.
    """
    before, now = read_flat(plan.config), read_flat(cfg.dump())
    found = [
        f"{key} {_shown(now[key])} instead of {_shown(before[key])}"
        for key in now
        if key in before and now[key] != before[key]
    ]
    if annotations != plan.annotations:
        found.append(f"other annotations of {', '.join(annotations)}")
    return found


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)
