"""The command ``isda``, as it is installed with the package; ``python -m isda`` is the same.

A command such as ``isda report`` is a module of this folder with three things, and a row of
:data:`COMMANDS`:

- its docstring is what ``--help`` shows above the arguments;
- ``add_arguments(parser)`` says what it takes;
- ``run(args)`` does it, and returns the exit status, or None for 0.

Optional are ``EXPECTED``, exceptions of others' code whose message is told instead of a traceback,
and ``EPILOG``. Modules import at their top only what costs nothing: neither PyTorch nor Detectron2,
so that ``--help``, completion and a mistyped flag are answered at once.
"""

import argparse
import difflib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple, NoReturn

from isda import console
from isda.errors import UsageError, UserError

__all__ = ["COMMANDS", "Command", "guarded", "main", "parser_of", "program"]

INTERRUPTED = 130  # as of a program that SIGINT has ended


class Command(NamedTuple):
    """Where a command is, and what it does in a few words."""

    module: str
    summary: str


# By what is typed after ``isda``, in the order in which they are listed.
COMMANDS = {
    "train": Command("isda.cli.train", "train a model, on your own data as well"),
    "eval": Command("isda.cli.eval", "AP of trained weights on a data set"),
    "predict": Command("isda.cli.predict", "masks on images, a video, or what a camera sees"),
    "check": Command("isda.cli.check", "is a data set in order, and which settings suit it?"),
    "convert dataset": Command(
        "isda.cli.convert_dataset", "annotations of labelme, VIA, and mask images to COCO's format"
    ),
    "convert weights": Command(
        "isda.cli.convert_weights", "checkpoints of other implementations to our names"
    ),
    "show data": Command("isda.cli.show_data", "a data set as it is, or after augmentation"),
    "show results": Command("isda.cli.show_results", "a file of predictions beside the truth"),
    "show model": Command("isda.cli.show_model", "what a trained model looks at"),
    "report": Command("isda.cli.report", "a training in one HTML file"),
    "export": Command("isda.cli.export", "a trained model as ONNX, or as PyTorch's .pt2"),
    "benchmark": Command("isda.cli.benchmark", "size, speed and memory of models side by side"),
    "mask-dictionary": Command("isda.cli.mask_dictionary", "what ISTR encodes masks with"),
    "models": Command("isda.cli.models", "the trained models that there are"),
    "config": Command("isda.cli.config", "what a config key does: default, range, meaning"),
    "completion": Command("isda.cli.completion", "what lets bash or zsh complete all of this"),
    "doctor": Command("isda.cli.doctor", "what is installed, what is missing, and what to do"),
}


def program(*words: str) -> NoReturn:
    """What the installed command, and the scripts that stand for one of its commands, do.

    Args:
        words: what stands before the arguments that were typed.
    """
    console.start()
    sys.exit(main([*words, *sys.argv[1:]]))


def main(words: Sequence[str] | None = None) -> int:
    """The exit status of ``isda WORDS``: 0, 1 for what failed, 2 for what cannot be meant.

    Raises:
        SystemExit: by ``argparse``, after ``--help`` and for wrong arguments.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help"):
        return guarded(lambda: print(overview()))
    if words[0] in ("-V", "--version"):
        return guarded(lambda: print(f"isda {importlib.metadata.version('isda')}"))
    for length in (1, 2):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return run_command(name, words[length:])
    return _explain(words)


def overview(group: str = "") -> str:
    """The commands, or those of a group such as ``show``, and what they do."""
    chosen = {n: c.summary for n, c in COMMANDS.items() if n.startswith(group)}
    width = max(map(len, chosen))
    lines = [f"usage: isda {group or ''}{'' if group else 'COMMAND'} ...", ""]
    lines += [f"  {name:<{width}}  {summary}" for name, summary in chosen.items()]
    return "\n".join([*lines, "", "isda COMMAND --help says what each takes."])


def _explain(words: list[str]) -> int:
    """What is said of words that are no command."""
    group = f"{words[0]} "
    members = [name for name in COMMANDS if name.startswith(group)]
    if members and words[1:] in (["-h"], ["--help"]):
        print(overview(group))
        return 0
    if members:
        choice = " or ".join(f"isda {name}" for name in members)
        text = f"isda {words[0]} is followed by what: {choice}"
    else:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean isda {near[0]}? " if near else ""
        text = f"there is no command '{words[0]}': {hint}isda --help lists all"
    print(f"error: {text}", file=sys.stderr)
    return 2


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a command's arguments."""
    return _parser(name, importlib.import_module(COMMANDS[name].module))


def _parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"isda {name}",
        description=module.__doc__,
        epilog=getattr(module, "EPILOG", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def run_command(name: str, words: Sequence[str]) -> int:
    """The exit status of a command with the words after its name."""
    module = importlib.import_module(COMMANDS[name].module)
    parser = _parser(name, module)
    args = parser.parse_args(words)

    def run() -> int | None:
        try:
            return module.run(args)
        except UsageError as error:
            parser.error(error.sentence)

    return guarded(run, getattr(module, "EXPECTED", ()))


def guarded(
    function: Callable[[], int | None],
    expected: tuple[type[Exception], ...] = (),
    interrupted: str = "interrupted",
) -> int:
    """The exit status of ``function()``; what the user can mend is told in a sentence.

    Args:
        expected: exceptions of others' code that are told in the same way.
        interrupted: what is said when the user has interrupted it.
    """
    try:
        status = function() or 0
        sys.stdout.flush()  # here, where a reader that has gone is noticed
    except BrokenPipeError:
        # As the Python manual advises: the interpreter flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        print(f"error: {error.sentence}", file=sys.stderr)
        return 1
    except expected as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return status
