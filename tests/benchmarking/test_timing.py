"""Clocks, turns and ratios, by a clock that the tests move."""

import gc

import pytest
import torch

from isda.benchmarking.timing import (
    Timeline,
    in_rounds,
    in_turn,
    percentile_95,
    quartiles_of_ratios,
)


class Clock:
    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time


def test_stretches_add_up_to_the_whole():
    clock = Clock()
    timeline = Timeline(torch.device("cpu"), clock)
    for _ in range(2):  # starting anew forgets what was
        timeline.start()
        for part, seconds in (("a", 1.0), ("b", 2.0), ("a", 4.0)):
            clock.time += seconds
            timeline.mark(part)
    assert timeline.seconds() == {"a": 5.0, "b": 2.0}


def test_on_a_gpu_events_of_its_stream_are_marks(monkeypatch):
    """What the code asks CUDA for, of a stand-in: the stream reaches an event when it will."""
    stream, reached = object(), iter([10.0, 12.5, 13.0])  # milliseconds
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, of):
            assert of is stream
            self.time = next(reached)

        def elapsed_time(self, end):
            assert log[-1] == "synchronize"
            return end.time - self.time

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("synchronize"))
    timeline = Timeline(torch.device("cuda:0"))
    timeline.start()
    log.append("started")
    timeline.mark("a")
    timeline.mark("b")
    assert log == ["synchronize", "started"]  # marks do not wait
    assert timeline.seconds() == pytest.approx({"a": 0.0025, "b": 0.0005})


def test_all_take_turns_and_each_is_first_and_last():
    orders = [in_turn(["x", "y", "z"], number) for number in range(6)]
    assert orders[:3] == [["x", "y", "z"], ["x", "z", "y"], ["z", "x", "y"]]
    assert all(sorted(order) == ["x", "y", "z"] for order in orders)
    for place in (0, 2):
        assert {order[place] for order in orders} == {"x", "y", "z"}


def test_a_turn_is_filled_without_collecting_garbage():
    clock, collecting, told = Clock(), [], []

    def call(seconds):
        collecting.append(gc.isenabled())
        clock.time += seconds
        return seconds

    calls = {"short": lambda: call(0.5), "long": lambda: call(3.0)}
    report = lambda *turn: told.append(turn)  # noqa: E731
    results = in_rounds(calls, 2, floor=1.5, now=clock, report=report)
    assert results == {"short": [[0.5] * 3] * 2, "long": [[3.0]] * 2}
    assert told == [(0, "short"), (0, "long"), (1, "short"), (1, "long")]
    assert not any(collecting) and gc.isenabled()


def test_ratios_are_of_the_same_round():
    # The machine is three times slower in the last round, which the ratios do not see.
    low, middle, high = quartiles_of_ratios([2.0, 2.2, 6.0], [1.0, 1.0, 3.0])
    assert (low, middle, high) == pytest.approx((2.0, 2.0, 2.1))
    assert quartiles_of_ratios([3.0], [2.0]) == (1.5, 1.5, 1.5)


def test_percentile():
    assert percentile_95([float(n) for n in range(101)]) == pytest.approx(95.0)
    assert percentile_95([7.0]) == 7.0
