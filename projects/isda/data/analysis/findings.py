"""Findings of the examination of a data set, by how much they matter."""

from dataclasses import dataclass

__all__ = ["ERROR", "NOTE", "WARNING", "Finding"]

ERROR, WARNING, NOTE = "error", "warning", "note"  # training fails; suffers; does not mind


@dataclass(frozen=True)
class Finding:
    """A sentence for the user."""

    level: str  # ERROR, WARNING or NOTE
    text: str
    split: str = ""  # empty where it concerns all of them
    files: tuple[str, ...] = ()  # images that show it, as the annotations name them
