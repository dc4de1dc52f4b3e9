"""Print a script by which a shell completes the commands, their flags and choices.

bash: echo 'source <(isda completion bash)' >> ~/.bashrc
zsh:  echo 'source <(isda completion zsh)' >> ~/.zshrc
"""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

from isda import cli

# A case per command, so that completing starts no interpreter. Files are what a shell offers where
# nothing else is known.
BASH = """\
_isda() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} flags= words=
    case " ${{COMP_WORDS[*]:1:$((COMP_CWORD - 1))}} " in
{cases}
    esac
    case "$word" in
    -*) words=$flags;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _isda isda
"""
# zsh takes bash's completions by a module of its own.
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n" + BASH


class Words(NamedTuple):
    """What may follow some words of a command line."""

    flags: list[str]
    others: list[str]  # commands, and choices of what stands without a flag
    values: dict[str, list[str]]  # after a flag, its choices


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh"])


def run(args: argparse.Namespace) -> None:
    print({"bash": BASH, "zsh": ZSH}[args.shell].format(cases="\n".join(cases())), end="")


def cases() -> Iterator[str]:
    """A pattern of what has been typed, and what may follow; the longest come first."""
    found = known_words()
    for typed in sorted(found, key=lambda typed: -len(typed.split())):
        words = found[typed]
        yield f'    " {typed} "*)' if typed else "    *)"
        yield f'        flags="{" ".join(words.flags)}"'
        yield f'        words="{" ".join(words.others)}"'
        if words.values:
            yield '        case "$before" in'
            for flag, values in words.values.items():
                yield f'        {flag}) words="{" ".join(values)}";;'
            yield "        esac"
        yield "        ;;"


def known_words() -> dict[str, Words]:
    """By what has been typed after ``isda``: nothing, a group, a command."""
    found = {"": Words(["--help", "--version"], [], {})}
    for name in cli.COMMANDS:
        word, _, second = name.partition(" ")
        if word not in found[""].others:
            found[""].others.append(word)
        if second:
            found.setdefault(word, Words(["--help"], [], {})).others.append(second)
    for name in cli.COMMANDS:
        found |= words_of(name, cli.parser_of(name))
    return found


def words_of(typed: str, parser: argparse.ArgumentParser) -> dict[str, Words]:
    """Those of a parser, and of the parsers below it."""
    words, found = Words([], [], {}), {}
    for action in parser._actions:
        choices = [str(choice) for choice in action.choices or ()]
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found |= words_of(f"{typed} {name}", below)
        if not action.option_strings:
            words.others.extend(choices)
            continue
        words.flags.extend(action.option_strings)
        if choices:
            words.values.update(dict.fromkeys(action.option_strings, choices))
    return found | {typed: words}
