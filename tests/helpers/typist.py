"""Checks the arguments of commands, and types them, in this process."""

import argparse
import contextlib
import functools
import glob
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

from commands import ROOT, Command
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch.distributed import run as torchrun

from isda import cli, model_zoo
from isda.data.custom_data import forget_folders
from isda.engine.setup import load_config

__all__ = ["CommandError", "check", "forget_data", "run_code", "type_command"]


class CommandError(Exception):
    """A command that cannot be typed, or failed."""


# --- what makes a command a matter of seconds: (flags, KEY VALUE pairs)

_SMALL_IMAGES = ("INPUT.MIN_SIZE_TEST", "64")
_SMALL_MODELS = (
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.ISDA.ENCODER_LAYERS", "1", "MODEL.ISDA.DECODER_LAYERS", "1"),
    *("MODEL.ISDA.NUM_QUERIES", "10", "MODEL.ISTR.NUM_QUERIES", "10", "MODEL.ISTR.NUM_STEPS", "1"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "10", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "10"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "64", "TEST.DETECTIONS_PER_IMAGE", "5"),
)
_ONE_ROUND = ("--size", "64", "64", "--train-size", "64", "64", "--batch", "1")
_ONE_ROUND += ("--train-batch", "1", "--rounds", "1", "--floor", "0")
OVERRIDES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "train_net.py": (
        (),
        (
            *("SOLVER.EPOCHS", "0", "SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_EPOCHS", "0"),
            *("TEST.EVAL_EPOCHS", "0", "TEST.DETECTIONS_PER_IMAGE", "5"),
            *("DATALOADER.NUM_WORKERS", "0"),
            *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
        ),
    ),
    "demo/demo.py": ((), _SMALL_IMAGES),
    "tools/visualize.py": (("--limit", "1"), _SMALL_IMAGES),
    "tools/visualize_data.py": ((), ("INPUT.MIN_SIZE_TRAIN", "(64,)")),
    "tools/benchmark.py": (_ONE_ROUND, _SMALL_MODELS),
    "benchmarks/msda.py": (
        ("--levels", "4x6,2x3", "--floor", "0", "--patience", "0", "--contenders", "isda cpu"),
        (),
    ),
    "tools/make_shapes.py": (("--images", "3"), ()),
    "tools/make_nuclei.py": (("--val-images", "1"), ()),
    # Never into the package.
    "tools/publish_model.py": (("--zoo", "my_zoo"), ()),
}
OVERRIDES["train_mine.py"] = OVERRIDES["train_net.py"]  # which GETTING_STARTED.md has users write
OVERRIDES |= {
    "isda train": OVERRIDES["train_net.py"],
    "isda eval": OVERRIDES["train_net.py"],
    "isda predict": OVERRIDES["demo/demo.py"],
    "isda show data": OVERRIDES["tools/visualize_data.py"],
    "isda show model": OVERRIDES["tools/visualize.py"],
    "isda benchmark": OVERRIDES["tools/benchmark.py"],
}
_TRAININGS = ("train_net.py", "train_mine.py", "isda train", "isda eval")
_PAIRS_LAST = (*_TRAININGS, "tools/visualize_data.py", "isda show data")


def program_of(words: Sequence[str]) -> str:
    """The file of Python, or ``isda`` and its command."""
    if words[0] != "isda":
        return words[1]
    two = " ".join(words[1:3])
    return f"isda {two if two in cli.COMMANDS else words[1]}"


def in_seconds(words: Sequence[str], needs: Sequence[str] = ()) -> list[str]:
    """A command of Python with the flags and KEY VALUE pairs that make it short."""
    program = program_of(words)
    flags, pairs = OVERRIDES.get(program, ((), ()))
    if program in _TRAININGS and "SOLVER.IMS_PER_BATCH" not in words:
        pairs = (*pairs, "SOLVER.IMS_PER_BATCH", "4")
    if "COCO" in needs:
        pairs = (*pairs, *_SMALL_MODELS, "MODEL.WEIGHTS", "")  # the recipe's are a download
    at = words.index("--opts") if "--opts" in words else len(words)
    given = list(words[at:]) or (["--opts"] if pairs and program not in _PAIRS_LAST else [])
    return [*words[:at], *flags, *given, *pairs]


# --- checking


class _Parsed(BaseException):
    """Ends a program when it has read its arguments."""

    def __init__(self, arguments: argparse.Namespace):
        super().__init__()
        self.arguments = arguments


def check(words: Sequence[str]) -> None:
    """That the program would take these arguments, and the configuration that they name exists.

    Of what is neither of this repository nor ``torchrun`` nothing is checked.

    Raises:
        CommandError: something is wrong.
    """
    if words[0] == "make":
        check_make(words)
    elif words[0] == "torchrun":
        launched = torchrun.parse_args(words[1:])
        script = ["python", launched.training_script]
        if launched.module:
            script = [launched.training_script]
        check([*script, *launched.training_script_args])
    elif words[0] == "isda" and " ".join(words[1:]) in cli.COMMANDS:
        return  # a command that is spoken of
    elif words[0] == "isda" or (words[0] == "python" and words[1].endswith(".py")):
        check_config(parsed(words))


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """What the program's own parser makes of its arguments."""
    original = argparse.ArgumentParser.parse_args

    def stop(*args, **options):
        raise _Parsed(original(*args, **options))

    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            run_program(words)
        except _Parsed as end:
            return end.arguments
    raise CommandError(f"{words[1]} reads no arguments")


def check_config(arguments: argparse.Namespace) -> None:
    """Builds the configurations that arguments name, with their KEY VALUE pairs."""
    files = getattr(arguments, "config_file", None) or ""
    for name in [files] if isinstance(files, str) else files:
        if name.startswith("output/") and not Path(name).exists():
            continue  # a training writes it
        is_file = name.endswith(".yaml") or not name
        path = name if is_file else model_zoo.get_config_file(name)
        load_config(path, getattr(arguments, "opts", None))
    name = getattr(arguments, "model", None)
    # Those are files, and folders that a training writes.
    if name and Path(name).suffix not in (".onnx", ".pt2") and not name.startswith("output/"):
        model_zoo.get_config_file(name)


def check_make(words: Sequence[str]) -> None:
    """That the Makefile has the targets, and their program takes what ``ARGS`` gives it."""
    makefile = (ROOT / "Makefile").read_text()
    settings = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    for target in (word for word in words[1:] if "=" not in word):
        rule = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)*)", makefile, re.MULTILINE)
        if rule is None:
            raise CommandError(f"the Makefile has no target {target}")
        program = re.search(r"/python (\S+\.py) \$\(ARGS\)", rule[1])
        if "ARGS" in settings and program:
            check(["python", program[1], *shlex.split(settings["ARGS"])])


# --- typing


def type_command(command: Command, meant: dict[str, str]) -> None:
    """Runs a command in the working directory, which stands for the checkout.

    Args:
        meant: by the words in capitals that readers replace.

    Raises:
        CommandError: it failed, or is none of those that are understood.
    """
    words = [meant.get(word, word) for word in with_files(command)]
    if words[0] == "export":
        os.environ.update(word.split("=", 1) for word in words[1:])
    elif words[0] == "source":
        call(["bash", "-ec", command.text])
    elif words[0] == "pip":
        install(words)
    elif words[0] in ("isda", "python"):
        forget_data()
        with mock.patch.dict(os.environ, command.variables):
            run_program(in_seconds(words, command.needs))
    else:
        raise CommandError("nothing here knows how to type it")


def install(words: Sequence[str]) -> None:
    """``pip install`` of a checkout without compiling, into a folder of its own."""
    aside = ["--ignore-installed", "--prefix", "installed", "--no-index", "--quiet"]
    call([sys.executable, "-m", *words, *aside], ISDA_BUILD="none")


def call(words: Sequence[str], **environment: str) -> None:
    """
    Raises:
        CommandError: it failed.
    """
    options = {"capture_output": True, "text": True, "check": False}
    finished = subprocess.run(words, env=os.environ | environment, **options)
    if finished.returncode:
        raise CommandError(f"it ended with {finished.returncode}\n{finished.stderr}")


def with_files(command: Command) -> list[str]:
    """The words as a shell makes them: patterns without quotes become the files that match."""
    raw = shlex.split(command.text, posix=False)[len(command.variables) :]
    words = []
    for typed, word in zip(raw, command.words, strict=True):
        is_pattern = "*" in typed and typed == word
        words += sorted(glob.glob(word)) or [word] if is_pattern else [word]
    return words


def forget_data() -> None:
    """Each command begins without the data sets that others registered."""
    forget_folders()
    for name in set(DatasetCatalog.list()) - _BUILT_IN:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


_BUILT_IN = frozenset(DatasetCatalog.list())


def run_program(words: Sequence[str]) -> None:
    """``isda ...``, ``python FILE ...``, ``python -m MODULE ...`` or ``python -c CODE``.

    In this process, which has imported everything already.

    Raises:
        CommandError: it failed; the message ends with what it printed.
    """
    options = {"run_name": "__main__"}
    if words[0] == "isda":
        _run(cli.program, words)
    elif words[1] == "-c":
        run_code(words[2])
    elif words[1] == "-m":
        program = functools.partial(runpy.run_module, words[2], alter_sys=True, **options)
        _run(program, words[2:])
    else:
        _run(functools.partial(runpy.run_path, words[1], **options), words[1:])


def run_code(code: str, names: dict | None = None) -> None:
    """A program of a page, or of ``python -c``.

    Raises:
        CommandError: it failed.
    """
    names = {} if names is None else names
    _run(lambda: exec(code, names), [""])


def _run(program: Callable[[], object], argv: Sequence[str]) -> None:
    said = io.StringIO()
    # Python puts the folder of the file there.
    path = [str(Path(argv[0]).resolve().parent), *sys.path]
    with (
        mock.patch.object(sys, "argv", list(argv)),
        mock.patch.object(sys, "path", path),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        try:
            program()
        except SystemExit as end:
            if end.code not in (None, 0):
                raise CommandError(f"it ended with {end.code}\n{_end_of(said)}") from end
        except Exception as error:  # noqa: BLE001  (whatever it was, the command failed)
            trace = "".join(traceback.format_exception(error))
            raise CommandError(f"{_end_of(said)}\n{trace}") from error


def _end_of(said: io.StringIO) -> str:
    return "\n".join(said.getvalue().splitlines()[-15:])
