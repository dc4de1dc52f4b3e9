"""What values of config keys must fulfil: a condition and the words that say it."""

from collections.abc import Callable
from typing import Any

__all__ = ["POSITIVE", "SHARE", "Requirement", "at_least", "each", "multiple_of", "one_of"]

Requirement = tuple[Callable[[Any], bool], str]  # whether a value holds; "X must be …"

POSITIVE: Requirement = (lambda value: value > 0, "above 0")
SHARE: Requirement = (lambda value: 0 <= value <= 1, "between 0 and 1")


def at_least(low: float) -> Requirement:
    return lambda value: value >= low, f"at least {low}"


def one_of(*values: Any) -> Requirement:
    return lambda value: value in values, f"one of {', '.join(map(str, values))}"


def multiple_of(divisor: int, why: str) -> Requirement:
    """Positive, and a multiple of ``divisor``."""
    return (
        lambda value: value > 0 and value % divisor == 0,
        f"a positive multiple of {divisor}, {why}",
    )


def each(requirement: Requirement, count: int) -> Requirement:
    """A list of ``count`` values that all fulfil ``requirement``."""
    holds, words = requirement
    return (
        lambda values: len(values) == count and all(holds(value) for value in values),
        f"{count} values, each {words}",
    )
