"""What a user sees while trainings run: stages, one line of training, and time left."""

import math
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["INTERRUPTED_TRAINING", "Progress", "TrainingWatch", "clock", "shown_path"]

ROOT = Path(__file__).resolve().parents[1]
INTERRUPTED_TRAINING = "interrupted; the same command continues from the last checkpoint"
PLANNED_EVALUATION = 8.0  # seconds, until one was measured


def clock(seconds: float) -> str:
    """Minutes and seconds: ``4:05``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def shown_path(path: Path) -> str:
    """A path as seen from the checkout, where all commands are meant to be typed."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


class Progress:
    """Announces stages and estimates what remains of all of them.

    A stage to come counts with its planned time, times how much slower than planned this machine
    has been so far.

    Args:
        planned: ``{stage: seconds}`` in the order of the stages; 0 for what is finished already.
        stream: where to write: a terminal gets a line that is rewritten, anything else a line
            every ``interval`` seconds.
        now: the time in seconds.
    """

    def __init__(
        self,
        planned: Mapping[str, float],
        stream=None,
        now: Callable[[], float] = time.monotonic,
        interval: float = 15.0,
    ):
        self.planned, self.now, self.interval = dict(planned), now, interval
        self.stream = sys.stdout if stream is None else stream
        self.measured: dict[str, float] = {}
        self._stage = next(iter(self.planned))
        self._stage_start = self._last_update = now()
        self._line_length = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        """What is said next has a line of its own, an error too."""
        self._clear()
        self.stream.flush()

    def start(self, stage: str, text: str) -> None:
        self._stage, self._stage_start, self._last_update = stage, self.now(), self.now()
        number = list(self.planned).index(stage) + 1
        left = f" (about {clock(self.remaining())} until the end)" if self.planned[stage] else ""
        self.say(f"[{number}/{len(self.planned)}] {text}{left}")

    def finish(self) -> None:
        seconds = self.now() - self._stage_start
        if self.planned[self._stage]:
            self.measured[self._stage] = seconds
            self.say(f"      took {clock(seconds)}, planned {clock(self.planned[self._stage])}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        print(text, file=self.stream, flush=True)

    def update(self, text: str, stage_remaining: float) -> None:
        """A line that the next one replaces, with the seconds that this stage still needs."""
        is_terminal = self.stream.isatty()
        if not is_terminal and self.now() - self._last_update < self.interval:
            return
        self._last_update = self.now()
        end = clock(self.remaining(stage_remaining))
        text = f"      {text}  {clock(stage_remaining)} left, {end} until the end"
        if is_terminal:
            self._clear()
            print(text, end="", file=self.stream, flush=True)
            self._line_length = len(text)
        else:
            self.say(text)

    def remaining(self, stage_remaining: float | None = None) -> float:
        """Seconds until the end of all stages.

        Args:
            stage_remaining: what the present stage still needs, if that is known.
        """
        elapsed = self.now() - self._stage_start
        measured = self.measured
        if stage_remaining is None:
            planned = self.planned[self._stage] * self._slowness(measured)
            stage_remaining = max(planned - elapsed, 0.0)
        else:
            measured = measured | {self._stage: elapsed + stage_remaining}
        stages = list(self.planned)
        later = stages[stages.index(self._stage) + 1 :]
        planned_later = sum(self.planned[stage] for stage in later)
        return stage_remaining + self._slowness(measured) * planned_later

    def _slowness(self, measured: Mapping[str, float]) -> float:
        """Measured over planned time; 1 while there is too little to tell."""
        planned = sum(self.planned[stage] for stage in measured)
        return sum(measured.values()) / planned if planned >= 30 else 1.0

    def _clear(self) -> None:
        if self._line_length:
            print("\r" + " " * self._line_length + "\r", end="", file=self.stream)
            self._line_length = 0


class TrainingWatch:
    """Reads the console of ``train_net.py`` line by line.

    Args:
        iterations: of the whole training.
        evaluation_period: iterations from one evaluation to the next; 0 evaluates at the end only.
        now: the time in seconds.
    """

    def __init__(
        self, iterations: int, evaluation_period: int, now: Callable[[], float] = time.monotonic
    ):
        self.iterations, self.evaluation_period, self.now = iterations, evaluation_period, now
        self.iteration = 0  # finished ones
        self.loss = math.nan
        self.mask_ap: float | None = None
        self._seconds_per_iteration: float | None = None
        self._evaluation_seconds = PLANNED_EVALUATION
        self._evaluation_start: float | None = None
        self._task = ""
        self._is_over = False

    def read(self, line: str) -> bool:
        """Takes a line in; True if it brought news to show."""
        if match := re.search(r"iter: (\d+) .*total_loss: (\S+)(?:.* time: ([\d.]+))?", line):
            self.iteration = int(match[1]) + 1
            self.loss = float(match[2])
            if match[3]:
                self._seconds_per_iteration = float(match[3])
            return True
        if "Start inference on" in line:
            self._evaluation_start = self.now()
        elif match := re.search(r"copypaste: Task: (\w+)", line):
            self._task = match[1]
        elif match := re.search(r"copypaste: (-?[\d.]+|nan)(?:,|$)", line):
            return self._read_ap(float(match[1]))
        return False

    def _read_ap(self, ap: float) -> bool:
        if self._evaluation_start is not None:
            self._evaluation_seconds = self.now() - self._evaluation_start
        if self._task != "segm":
            return False
        self.mask_ap = ap
        self._is_over = self.iteration >= self.iterations  # segm is the last task
        return True

    def remaining(self) -> float | None:
        """Seconds of training and evaluation that are left; None before the first iterations."""
        if self._seconds_per_iteration is None:
            return None
        if self._is_over:
            return 0.0
        evaluations = 1  # the final one
        if self.evaluation_period:
            last = (self.iterations - 1) // self.evaluation_period
            evaluations += last - self.iteration // self.evaluation_period
        seconds = (self.iterations - self.iteration) * self._seconds_per_iteration
        return seconds + evaluations * self._evaluation_seconds

    def __str__(self) -> str:
        text = f"iteration {self.iteration}/{self.iterations}, loss {self.loss:.2f}"
        return text if self.mask_ap is None else f"{text}, mask AP {self.mask_ap:.1f}"
