"""Phrases of messages: a list that is cut short, a number with its noun."""

from collections.abc import Iterable

__all__ = ["listed", "plural"]


def listed(names: Iterable[object], most: int = 3) -> str:
    """The first ``most`` names, and how many more there are: "A, B and 3 more"."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def plural(number: int, noun: str) -> str:
    """A number with its noun: "1 image", "2 images", "2 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"
