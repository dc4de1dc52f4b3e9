"""Half precision where it pays: processors without instructions for it are slower than in float32.

PyTorch computes in bfloat16 and float16 on every CPU. Where the processor has no instructions for
it, that is emulation, and a convolution takes some 20 times as long as in float32. Whether it
does is measured, once in a process, because it depends on the processor, on PyTorch and on oneDNN.
"""

import functools
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:  # the doctor measures also where there is no Detectron2
    from detectron2.config import CfgNode

__all__ = ["FULL", "Precision", "Speed", "inference_dtype", "speed_of", "training_precision"]

logger = logging.getLogger(__name__)

# Half precision is given up only for more than this: small differences are noise.
_MARGIN = 1.25
_ROUNDS = 3
_CLEARLY = 4.0  # times as long: no further round could change the verdict
# Compute capability from which a GPU has instructions for the type.
_CAPABILITY = {torch.bfloat16: (8, 0), torch.float16: (7, 0)}
FULL = "float32"


class Speed(NamedTuple):
    """How a device computes in a half type, against float32."""

    is_slower: bool
    reason: str


class Precision(NamedTuple):
    """What a training was asked to compute in, and what it computes in."""

    asked: str
    taken: str

    @property
    def dtype(self) -> torch.dtype | None:
        """None for full precision."""
        return None if self.taken == FULL else getattr(torch, self.taken)


@functools.cache
def speed_of(dtype: torch.dtype, device_type: str) -> Speed:
    """Whether half precision is slower than float32; measured on CPUs, in a quarter of a second.

    Args:
        device_type: "cpu" or "cuda", whose current GPU is meant; others count as faster.
    """
    if device_type == "cuda":
        return _speed_of_gpu(dtype)
    return _speed_of_cpu(dtype) if device_type == "cpu" else Speed(False, "not measured")


def _speed_of_gpu(dtype: torch.dtype) -> Speed:
    if torch.version.hip:
        return Speed(False, "not measured")
    has, needs = torch.cuda.get_device_capability(), _CAPABILITY[dtype]
    texts = [".".join(map(str, numbers)) for numbers in (has, needs)]
    reason = "compute capability {}, instructions for it come with {}".format(*texts)
    return Speed(has < needs, reason)


def _speed_of_cpu(dtype: torch.dtype) -> Speed:
    times = {name: _times(call, dtype) for name, call in _probes().items()}
    parts = [f"a {name} takes {half / full:.1f}" for name, (full, half) in times.items()]
    full, half = (sum(pair) for pair in zip(*times.values(), strict=True))
    return Speed(half > _MARGIN * full, f"{' and '.join(parts)} times as long as in float32")


def _probes() -> dict[str, Callable[[], Tensor]]:
    image, kernels = torch.ones(1, 32, 32, 32), torch.ones(32, 32, 3, 3)
    tokens, weights = torch.ones(512, 256), torch.ones(256, 256)
    return {
        "convolution": lambda: F.conv2d(image, kernels, padding=1),
        "product": lambda: F.linear(tokens, weights),
    }


@torch.no_grad()
def _times(call: Callable[[], Tensor], dtype: torch.dtype) -> tuple[float, float]:
    """Seconds in float32 and in ``dtype``: the fastest of several calls, after one to warm up."""
    fastest = {True: float("inf"), False: float("inf")}
    for number in range(_ROUNDS + 1):
        if number > 1 and fastest[True] > _CLEARLY * fastest[False]:
            break
        for is_half in (False, True):
            with torch.autocast("cpu", dtype, enabled=is_half):
                start = time.perf_counter()
                call()
                seconds = time.perf_counter() - start
            if number:
                fastest[is_half] = min(fastest[is_half], seconds)
    return fastest[False], fastest[True]


def inference_dtype(cfg: "CfgNode", device: torch.device) -> torch.dtype | None:
    """What ``TEST.AMP`` computes in on a device; None for float32."""
    return _choice(cfg.TEST.AMP, "TEST.AMP", device).dtype


def training_precision(
    cfg: "CfgNode", device: torch.device, earlier: Precision | None = None
) -> Precision:
    """What ``SOLVER.AMP`` computes in on a device, and what it was asked for.

    Args:
        earlier: of the training that is resumed. It goes on as it began, whatever machine it is on
            now, unless the configuration asks for something else now.
    """
    amp = cfg.SOLVER.AMP
    asked = amp.DTYPE if amp.ENABLED else FULL
    goes_on = earlier is not None and earlier.asked == asked
    if not goes_on or (amp.IF_SLOWER == "keep" and amp.ENABLED):
        chosen = _choice(amp, "SOLVER.AMP", device)
    else:
        chosen = earlier
        _say_it_goes_on(chosen, device)
    if earlier is not None and earlier.taken != chosen.taken:
        logger.warning("the training goes on in %s; it began in %s", chosen.taken, earlier.taken)
    return chosen


def _say_it_goes_on(precision: Precision, device: torch.device) -> None:
    """A line where the precision of a resumed training is not what this machine would be given."""
    if precision.taken != precision.asked:
        logger.warning(
            "SOLVER.AMP: the training goes on in %s instead of %s, as it began "
            "(SOLVER.AMP.IF_SLOWER keep changes it)",
            *reversed(precision),
        )
    elif precision.dtype is not None:
        speed = speed_of(precision.dtype, device.type)
        if speed.is_slower:
            logger.warning(
                "SOLVER.AMP: the training goes on in %s, as it began, which is slower than "
                "float32 on this machine (%s): SOLVER.AMP.ENABLED False changes it",
                precision.taken,
                speed.reason,
            )


def _choice(amp: "CfgNode", key: str, device: torch.device) -> Precision:
    """What a node of the configuration gets; a line says so where it is not what it asks for."""
    if not amp.ENABLED:
        return Precision(FULL, FULL)
    speed = speed_of(getattr(torch, amp.DTYPE), device.type)
    if not speed.is_slower:
        return Precision(amp.DTYPE, amp.DTYPE)
    taken = amp.DTYPE if amp.IF_SLOWER == "keep" else FULL
    _say(key, amp.DTYPE, taken, speed.reason)
    return Precision(amp.DTYPE, taken)


@functools.cache
def _say(key: str, asked: str, taken: str, reason: str) -> None:
    """Once in a process, not at every evaluation."""
    where = f"{asked} is slower than float32 on this machine ({reason})"
    if taken == asked:
        logger.warning("%s: %s, and %s.IF_SLOWER keeps it", key, where, key)
    else:
        logger.warning("%s: %s, so float32 is taken (%s.IF_SLOWER keep keeps it)", key, where, key)
