"""Conditions on values of config keys and arguments, with the words that say them.

A module's constructor checks its arguments by :func:`check`; a method that has the same number
under a config key names the same requirement there, so that each range is written once.
"""

from collections.abc import Callable
from typing import Any

__all__ = [
    "COUNT",
    "GROUPS",
    "NOT_NEGATIVE",
    "POSITIVE",
    "SHARE",
    "ArgumentError",
    "Requirement",
    "at_least",
    "check",
    "each",
    "multiple_of",
    "one_of",
    "or_zero",
    "violation",
]

Requirement = tuple[Callable[[Any], bool], str]  # whether a value holds; "X must be …"


class ArgumentError(ValueError):
    """A wrong argument: its name, and what is wrong with it. Both together are the message."""

    def __init__(self, argument: str, text: str):
        super().__init__(f"{argument} {text}")
        self.argument, self.text = argument, text


def violation(value: Any, requirement: Requirement) -> str:
    """What is wrong with a value, in words that follow its name; "" if nothing is."""
    holds, words = requirement
    try:
        fulfilled = holds(value)
    except TypeError:  # text among numbers
        fulfilled = False
    return "" if fulfilled else f"must be {words}, got {value!r}"


def check(requirement: Requirement, **arguments: Any) -> None:
    """
    Raises:
        ArgumentError: an argument does not fulfil the requirement.
    """
    for name, value in arguments.items():
        text = violation(value, requirement)
        if text:
            raise ArgumentError(name, text)


def at_least(low: float) -> Requirement:
    return lambda value: value >= low, f"at least {low}"


def one_of(*values: Any) -> Requirement:
    return lambda value: value in values, f"one of {', '.join(map(str, values))}"


def or_zero(requirement: Requirement) -> Requirement:
    """0, or what fulfils ``requirement``."""
    holds, words = requirement
    return lambda value: value == 0 or holds(value), f"0 or {words}"


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


COUNT = at_least(1)
NOT_NEGATIVE = at_least(0)
POSITIVE: Requirement = (lambda value: value > 0, "above 0")
SHARE: Requirement = (lambda value: 0 <= value <= 1, "between 0 and 1")
GROUPS = multiple_of(32, "for group normalisation with 32 groups")
