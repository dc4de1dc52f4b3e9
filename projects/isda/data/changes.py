"""Changes to a data set on reading it, one line per kind."""

from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Changes", "Culprits"]


@dataclass
class Culprits:
    """Records that share a fault."""

    places: list[str] = field(default_factory=list)  # such as "annotation 3 of a.png"
    files: list[str] = field(default_factory=list)  # the image of each, as the file names it
    is_note: bool = False  # nothing is lost or doubtful by it

    def __len__(self) -> int:
        return len(self.places)

    def add(self, place: str, file: str = "") -> None:
        self.places.append(place)
        self.files.append(file)

    def shown(self) -> str:
        """The first one, and how many there are beside it."""
        more = f" and {len(self) - 1} more" if len(self) > 1 else ""
        return f"{self.places[0]}{more}"


@dataclass
class Changes:
    """Collects what reading, resolving and cleaning an annotation file did to its content.

    Attributes:
        left_out: annotations that are not used, by reason.
        mended: values that were put in the place of others, by what was wrong.
        filled: keys that were missing, each with how many.
        is_rewritten: something else differs from the file, of which nobody needs to hear.
    """

    left_out: dict[str, Culprits] = field(default_factory=dict)
    mended: dict[str, Culprits] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    is_rewritten: bool = False

    def leave_out(self, reason: str, place: str, file: str = "") -> None:
        self.left_out.setdefault(reason, Culprits()).add(place, file)

    def mend(self, what: str, place: str, file: str = "", is_note: bool = False) -> None:
        self.mended.setdefault(what, Culprits(is_note=is_note)).add(place, file)

    def fill(self, key: str) -> None:
        self.filled[key] = self.filled.get(key, 0) + 1

    def __bool__(self) -> bool:
        """Whether the content is no longer that of the file."""
        return bool(self.left_out or self.mended or self.filled or self.is_rewritten)

    def lines(self) -> Iterator[str]:
        """A line for each kind, with number and first culprit."""
        for reason, culprits in self.left_out.items():
            yield f"{len(culprits)} annotations left out, {reason}: {culprits.shown()}"
        for what, culprits in self.mended.items():
            yield f"{len(culprits)} {what}: {culprits.shown()}"
        if self.filled:
            yield "filled in: " + ", ".join(f"{n} {key}" for key, n in self.filled.items())
