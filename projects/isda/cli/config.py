"""Say what a config key does: default, range, meaning, and what reads it.

isda config MODEL.ISDA.NUM_QUERIES     one key
isda config SOLVER.EMA                 all keys that begin so
isda config queries                    all keys that have this in their name
isda config                            all keys that ISDA adds to Detectron2's
"""

import argparse
import difflib
import textwrap
from collections.abc import Iterable

from isda.errors import UserError

WIDTH = 96
SIMILAR = 3


class UnknownKeyError(UserError):
    """No key of the configuration is called so."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", nargs="?", default="", metavar="KEY", help="or a part of one")


def run(args: argparse.Namespace) -> None:
    from isda.engine.config_reference import all_keys, meanings, reference

    known, ours = all_keys(), meanings()
    wanted = args.key.upper().strip(".")
    if wanted in known:
        print_key(reference(wanted))
        return
    found = [key for key in known if key.startswith(f"{wanted}.")]
    found = found or [key for key in known if wanted in key and (wanted or key in ours)]
    if not found:
        near = similar(wanted, known)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UnknownKeyError(f"no config key is called {args.key}: {hint}isda config lists ours")
    for key in found:
        print(f"{key}  {known[key]!r}")
        if key in ours:
            first = ours[key].partition(". ")[0].rstrip(".")
            print(wrapped(f"{first}.", "    "))


def similar(wanted: str, known: Iterable[str]) -> list[str]:
    """Keys whose name, or the last part of it, is nearly what was typed."""
    last = {key: key.rpartition(".")[2] for key in known}
    near = difflib.get_close_matches(wanted, last, n=SIMILAR)
    parts = difflib.get_close_matches(wanted.rpartition(".")[2], set(last.values()), n=SIMILAR)
    near += [key for key, part in last.items() if part in parts]
    return list(dict.fromkeys(near))[:SIMILAR]


def print_key(found) -> None:
    """Everything about one key."""
    print(found.name)
    readers = ", ".join(found.readers) or "all models"
    if found.idle:  # "KEY is VALUE", or a sentence on why it is never read
        by_value = " is " in found.idle and found.idle.split()[0].isupper()
        readers = f"{readers}, unless {found.idle}" if by_value else f"nothing: {found.idle}"
    for title, text in (
        ("default", repr(found.default)),
        ("must be", found.requirement or f"of type {type(found.default).__name__}"),
        ("meaning", found.meaning),
        ("read by", readers),
        ("--resume", found.resumed),
    ):
        if text:
            print(wrapped(text, "            ", f"  {title:<8}  "))


def wrapped(text: str, indent: str, first: str | None = None) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
