"""What the pages tell users to type.

A block without a language holds commands, one of ``python`` a program; what else there is, is only
read. Above a block that cannot run everywhere stands ``<!-- needs ... -->``.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *("README.md", "CONTRIBUTING.md", "demo/README.md", "tools/README.md", "datasets/README.md"),
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    "projects/isda/weights/README.md",
]
# What not everybody has, and no test.
NEEDS = ("COCO", "a GPU", "several GPUs", "a camera", "conda", "Docker", "the download")
NEEDS += ("the network", "a shell of yours")
READ_ONLY = ("text", "yaml")

_FENCE = re.compile(r"^ *```(\w*)$")
_MARKER = re.compile(r"^ *<!-- needs (.+) -->$")
_ASSIGNMENT = re.compile(r"^[A-Z_]+=")
_INLINE = re.compile(r"(?<!`)`((?:[A-Z_]+=\S+ )?(?:python|make|torchrun|isda)\s[^`]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    page: str
    line: int  # of its first line, from 1
    language: str
    text: str
    needs: tuple[str, ...] = ()  # as its marker says
    before: str = ""  # the last line of text above it

    @property
    def is_typed(self) -> bool:
        return self.language not in READ_ONLY


@dataclass(frozen=True)
class Command:
    """What is typed at once: continued lines are joined, comments left out."""

    page: str
    line: int
    text: str
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"

    @property
    def words(self) -> list[str]:
        """Without the environment variables that are set before them."""
        return shlex.split(self.text)[len(self.variables) :]

    @property
    def variables(self) -> dict[str, str]:
        found = {}
        for word in shlex.split(self.text):
            if not _ASSIGNMENT.match(word):
                break
            name, value = word.split("=", 1)
            found[name] = value
        return found


def blocks(page: str, text: str | None = None) -> list[Block]:
    """All blocks of a page, or of the text in its place."""
    lines = ((ROOT / page).read_text() if text is None else text).splitlines()
    fences = [number for number, line in enumerate(lines) if _FENCE.match(line)]
    assert len(fences) % 2 == 0, f"{page}: a block has no end"
    return [_block(page, lines, *pair) for pair in zip(fences[::2], fences[1::2])]


def _block(page: str, lines: list[str], first: int, last: int) -> Block:
    above = [line for line in lines[:first] if line.strip()]
    needs: tuple[str, ...] = ()
    if above and lines[first - 1] == above[-1] and (marker := _MARKER.match(above[-1])):
        needs = tuple(re.split(r", | and ", marker[1]))
        above.pop()
    indent = len(lines[first]) - len(lines[first].lstrip())
    text = "\n".join(line[indent:] for line in lines[first + 1 : last])
    language = _FENCE.match(lines[first])[1]
    return Block(page, first + 2, language, text, needs, above[-1] if above else "")


def commands_of(block: Block) -> list[Command]:
    """Of a block without a language; others have none."""
    if block.language:
        return []
    found, typed, start = [], "", block.line
    for number, line in enumerate(block.text.splitlines(), block.line):
        if not typed:
            start = number
        if line.endswith("\\"):
            typed += line.removesuffix("\\").strip() + " "
            continue
        typed += re.sub(r"(^|\s)#.*", "", line).strip()
        parts = [part.strip() for part in typed.split(" && ") if part.strip()]
        found += [Command(block.page, start, part, block.needs) for part in parts]
        typed = ""
    return found


def inline_commands(page: str) -> list[Command]:
    """Those within sentences and tables."""
    text = (ROOT / page).read_text()
    for pattern in (r"^ *```.*?^ *```$", r"<!--.*?-->"):
        text = re.sub(pattern, lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)
    return [
        Command(page, text.count("\n", 0, match.start()) + 1, re.sub(r"\s*\n\s*", " ", match[1]))
        for match in _INLINE.finditer(text)
        # What a program says begins with its name as well.
        if "\n\n" not in match[1] and not match[1].endswith(":")
    ]
