"""Time and memory of calls, on machines that others use too."""

import math
import shutil
import subprocess
import time
from collections.abc import Callable

import torch

from isda.benchmarking.memory import peak_beyond
from isda.benchmarking.timing import collection_paused, in_turn

__all__ = ["Stopwatch", "peak_memory"]

_WARM_UPS = 20  # on a GPU
_PROBE_SECONDS = 0.06
_FEWEST_CALM = 3
_CYCLES_PER_SECOND = 3e9  # of a GPU, or fewer: so it is busy somewhat longer
_LONGEST_LAUNCH = 0.005

Call = Callable[[], None]


class Stopwatch:
    """Times calls in rounds of rotating order, and tells which rounds were undisturbed.

    Args:
        calm: share of its time that the probe may lose in a calm round; 1 saves probing.
        patience: seconds to wait for a calm machine, in all.
        floor: seconds that one timing fills with calls.
        flush: empty a GPU's L2 cache before every call.
        cpu_time: count the processor's time, not the clock's. On a busy machine that leaves out
            the others' turns, but not what they do to the caches; for one thread only.
    """

    def __init__(
        self,
        device: str,
        calm: float,
        patience: float,
        floor: float,
        flush: bool,
        cpu_time: bool = False,
    ) -> None:
        self.now = time.process_time if cpu_time else time.perf_counter
        self.calm, self.patience, self.floor = calm, patience, floor
        self.on_gpu = device == "cuda"
        self.probing = not self.on_gpu and calm < 1
        self.best: dict[int, float] = {}  # of the probe, per number of threads
        self.matrix = torch.randn(384, 384)
        self.flushed = None
        if flush and self.on_gpu:
            size = 2 * torch.cuda.get_device_properties(0).L2_cache_size
            self.flushed = torch.empty(size, dtype=torch.int8, device=device)

    def learn(self, threads: list[int]) -> None:
        """How long the probe takes when nobody disturbs it."""
        for count in threads if self.probing else []:
            torch.set_num_threads(count)
            for _ in range(20):
                self._lost(count)

    def in_rounds(
        self, calls: dict[str, Call], rounds: int, threads: int
    ) -> tuple[dict[str, list[float]], int]:
        """Seconds of every call, per round that counts, and how many were calm."""
        with collection_paused():
            return self._in_rounds(calls, rounds, threads)

    def _in_rounds(
        self, calls: dict[str, Call], rounds: int, threads: int
    ) -> tuple[dict[str, list[float]], int]:
        for call in calls.values():
            for _ in range(_WARM_UPS if self.on_gpu else 1):
                call()
        calm, every = [], []
        while len(calm) < rounds and len(every) < 2 * rounds:
            quiet = self._wait(threads)
            order = in_turn(list(calls), len(every))
            every.append({name: self._seconds(calls[name]) for name in order})
            if quiet and (not self.probing or self._lost(threads) <= self.calm):
                calm.append(every[-1])
        counted = calm if len(calm) >= min(rounds, _FEWEST_CALM) else every
        return {name: [times[name] for times in counted] for name in calls}, len(calm)

    def clocks(self) -> str | None:
        """A GPU's clocks as nvidia-smi states them."""
        if not self.on_gpu or shutil.which("nvidia-smi") is None:
            return None
        fields = "clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw"
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    def _seconds(self, call: Call) -> float:
        return self._seconds_on_gpu(call) if self.on_gpu else self._seconds_on_cpu(call)

    def _seconds_on_cpu(self, call: Call) -> float:
        calls, begin = 0, self.now()
        while True:
            call()
            calls += 1
            elapsed = self.now() - begin
            if elapsed >= self.floor:
                return elapsed / calls

    def _seconds_on_gpu(self, call: Call) -> float:
        total, calls, launching, first = 0.0, 0, _LONGEST_LAUNCH, self.now()
        while self.now() - first < self.floor or calls < 3:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            if self.flushed is not None:
                self.flushed.zero_()
            # Else it would wait for Python between the events, which may take longer than the call.
            torch.cuda._sleep(int(launching * _CYCLES_PER_SECOND))
            begin.record()
            started = self.now()
            call()
            launching = min(self.now() - started, _LONGEST_LAUNCH)
            end.record()
            end.synchronize()
            total += begin.elapsed_time(end) / 1000
            calls += 1
        return total / calls

    def _lost(self, threads: int) -> float:
        """The share of the processor that is missing, by a fixed product of matrices."""
        best, calls, begin = self.best.get(threads, math.inf), 0, self.now()
        while True:
            start = self.now()
            torch.mm(self.matrix, self.matrix)
            now = self.now()
            best, calls = min(best, now - start), calls + 1
            if now - begin > _PROBE_SECONDS:
                self.best[threads] = best
                return 1 - calls * best / (now - begin)

    def _wait(self, threads: int) -> bool:
        """Whether it is calm, if need be after a while."""
        if not self.probing:
            return True
        while (lost := self._lost(threads)) > self.calm and self.patience > 0:
            time.sleep(1)
            self.patience -= 1
        return lost <= self.calm


def peak_memory(call: Call, device: str) -> int | None:
    """Bytes that a call needs at most beyond what is allocated, results included.

    None where it cannot be told: on CPUs it takes Linux, which counts pages.
    """
    call()
    return peak_beyond(call, torch.device(device))
