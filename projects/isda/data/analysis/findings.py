"""One thing that is worth saying of a data set, and how much it matters."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ERROR", "NOTE", "WARNING", "Finding", "listed", "plural"]

ERROR, WARNING, NOTE = "error", "warning", "note"  # training fails; suffers; does not mind
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """A sentence for the user."""

    level: str  # ERROR, WARNING or NOTE
    text: str
    split: str = ""  # empty where it concerns all of them
    files: tuple[str, ...] = ()  # images that show it, as the annotations name them


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more


def plural(number: int, noun: str) -> str:
    """A number with its noun: "1 image", "2 images", "2 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"
