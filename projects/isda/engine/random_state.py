"""The state of every random number generator that training draws from."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["preserved_random_state", "random_state", "seed_cpu", "set_random_state"]


def random_state() -> dict:
    """States of Python's, NumPy's and PyTorch's generators, as tuples and lists of numbers.

    So processes can exchange it, and ``torch.load`` needs no trust to read it. The current CUDA
    device is included where CUDA is in use.
    """
    name, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state().tolist(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state().tolist()
    return state


def set_random_state(state: dict) -> None:
    """Continue where ``random_state`` was taken."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """What is drawn inside leaves the generators as they were."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def seed_cpu(*entropy: int) -> None:
    """Seed Python's, NumPy's and PyTorch's CPU generators from non-negative integers."""
    words = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    # Not torch.manual_seed, which seeds CUDA as well.
    torch.default_generator.manual_seed(int(words[2]))
