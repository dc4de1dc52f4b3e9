"""What a shell offers after ``isda``, asked of the shells themselves."""

import argparse
import contextlib
import io
import shutil
import subprocess

import pytest

from isda import cli
from isda.cli.completion import known_words


def script_for(shell: str) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert cli.main(["completion", shell]) == 0
    return text.getvalue()


@pytest.fixture(scope="module")
def offered():
    """``offered(*words)``: what bash offers in the place of the last word."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")

    def complete(script: str, *words: str) -> list[str]:
        lines = [script, 'COMP_WORDS=("$@")', "COMP_CWORD=$(($# - 1))", "_isda"]
        lines.append('printf "%s\\n" "${COMPREPLY[@]}"')
        command = ["bash", "-c", "\n".join(lines), "bash", "isda", *words]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stderr == ""
        return result.stdout.split()

    return complete


@pytest.fixture(scope="module")
def script():
    return script_for("bash")


def test_commands_are_offered_first(offered, script):
    expected = {name.split()[0] for name in cli.COMMANDS}
    assert set(offered(script, "")) == expected
    assert set(offered(script, "pre")) == {"predict"}
    assert set(offered(script, "show", "")) == {"data", "results", "model"}
    assert set(offered(script, "--")) == {"--help", "--version"}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_flag_of_a_command_is_offered(offered, script, name):
    flags = {flag for a in cli.parser_of(name)._actions for flag in a.option_strings}
    assert set(offered(script, *name.split(), "-")) == flags
    # Wherever one is typed.
    assert set(offered(script, *name.split(), "--output", "x", "-")) == flags


def test_choices_of_a_flag(offered, script):
    assert offered(script, "show", "data", "--source", "") == ["annotation", "dataloader"]
    assert "deformable-detr" in offered(script, "convert", "weights", "--from", "def")
    assert offered(script, "mask-dictionary", "fit", "--symmetry", "m") == ["mirror"]
    assert offered(script, "benchmark", "--tasks", "l") == ["latency"]


def test_files_are_left_to_the_shell(offered, script):
    """What the function does not know it does not offer, and ``-o default`` completes names."""
    assert offered(script, "check", "") == []
    assert offered(script, "predict", "--input", "ph") == []
    assert "complete -o default" in script


def test_subcommands_of_a_command():
    words = known_words()
    assert words["mask-dictionary"].others == ["fit", "merge", "evaluate", "show"]
    assert "--shard" in words["mask-dictionary fit"].flags


def test_every_command_has_a_case():
    def parsers(name, parser):
        yield name
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for below, sub in action.choices.items():
                    yield from parsers(f"{name} {below}", sub)

    expected = {n for name in cli.COMMANDS for n in parsers(name, cli.parser_of(name))}
    assert set(known_words()) == expected | {"", "convert", "show"}


ASK_ZSH = """
local -x COMP_CWORD=4
local -a COMP_WORDS=(isda show data --source "") words=(isda show data --source "")
compgen -o default -F _isda -- ""
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_offers_the_same():
    """By the function that its stand-in for bash's completion calls."""
    code = f"{script_for('zsh')}\nask() {{{ASK_ZSH}}}\nask"
    result = subprocess.run(["zsh", "-fc", code], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert result.stdout.split() == ["annotation", "dataloader"]
