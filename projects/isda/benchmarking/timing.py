"""Seconds, on machines that others use too: calls take turns, and ratios are of one round."""

import gc
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

__all__ = [
    "Timeline",
    "collection_paused",
    "in_rounds",
    "in_turn",
    "percentile_95",
    "quartiles_of_ratios",
]

Result = TypeVar("Result")
Clock = Callable[[], float]


class Timeline:
    """Where the time of a call goes: marks part it, and what lies between two has a name.

    On a GPU a mark is an event of its stream, so that nothing waits before the call is over; on a
    CPU it is a look at the clock.
    """

    def __init__(self, device: torch.device, now: Clock = time.perf_counter):
        """
        Args:
            now: seconds on a CPU, of the clock or of the processor.
        """
        self.device = device
        self.now = now
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def start(self) -> None:
        """Forget what was; time begins here."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._marks = [("", self._moment())]

    def mark(self, part: str) -> None:
        """The time since the last mark belongs to ``part``."""
        self._marks.append((part, self._moment()))

    def seconds(self) -> dict[str, float]:
        """Per part, which together are the whole."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        total: dict[str, float] = defaultdict(float)
        for (_, begin), (part, end) in itertools.pairwise(self._marks):
            total[part] += self._between(begin, end)
        return dict(total)

    def _moment(self) -> float | torch.cuda.Event:
        if self.device.type != "cuda":
            return self.now()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _between(self, begin, end) -> float:
        if self.device.type != "cuda":
            return end - begin
        return begin.elapsed_time(end) / 1000


def in_rounds(
    calls: Mapping[str, Callable[[], Result]],
    rounds: int,
    *,
    floor: float = 0.0,
    now: Clock = time.perf_counter,
    report: Callable[[int, str], None] = lambda number, name: None,
) -> dict[str, list[list[Result]]]:
    """Results of every call, per round, in which all take their turns.

    Args:
        floor: seconds that a turn fills with calls; at least one.
        report: told the round and the name before every turn.
    """
    results: dict[str, list[list[Result]]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in in_turn(list(calls), number):
            report(number, name)
            with collection_paused():
                results[name].append(_filled(calls[name], floor, now))
    return results


def _filled(call: Callable[[], Result], floor: float, now: Clock) -> list[Result]:
    results, begin = [], now()
    while True:
        results.append(call())
        if now() - begin >= floor:
            return results


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: each begins with another name, every second one runs backwards."""
    shift = number % len(names)
    turned = [*names[shift:], *names[:shift]]
    return turned if number % 2 == 0 else turned[::-1]


@contextmanager
def collection_paused() -> Iterator[None]:
    """Python's pauses to collect garbage are nobody's time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def quartiles_of_ratios(
    numerators: Sequence[float], denominators: Sequence[float]
) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratios, round by round."""
    ratios = [one / other for one, other in zip(numerators, denominators, strict=True)]
    if len(ratios) == 1:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, middle, high


def percentile_95(values: Sequence[float]) -> float:
    """95 % of the values are at most this; interpolated between two of them."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=20, method="inclusive")[-1]
