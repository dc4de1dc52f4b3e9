"""The command ``isda``: how commands are found, what they cost, and how they end."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

import isda
from isda import cli
from isda.cli.arguments import argument_parser
from isda.errors import UsageError, UserError

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "detectron2", "numpy", "cv2", "PIL", "scipy", "matplotlib", "pycocotools")


def python(code: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_what_only_tells_imports_nothing_heavy():
    """Help of everything, the version, completion, and the names of models."""
    result = python(
        "import sys\n"
        "from isda import cli\n"
        "cli.main(['--help']), cli.main(['--version']), cli.main(['models'])\n"
        "for name in cli.COMMANDS: cli.parser_of(name).format_help()\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def test_help_is_there_at_once():
    """In half a second of the processor's time; PyTorch alone would take three times that."""
    resource = pytest.importorskip("resource")

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    subprocess.run([sys.executable, "-m", "isda", "--help"], capture_output=True, check=True)
    assert spent() - before < 0.5


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*name.split(), "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: isda {name} ")
    module = importlib.import_module(cli.COMMANDS[name].module)
    assert module.__doc__.split("\n")[0] in said


def test_the_overview_lists_all(capsys):
    assert cli.main(["--help"]) == cli.main([]) == 0
    said = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f"  {name} " in said and command.summary in said


def test_a_mistyped_command(capsys):
    assert cli.main(["predcit", "--input", "a.png"]) == 2
    said = capsys.readouterr()
    assert "there is no command 'predcit': did you mean isda predict?" in said.err
    assert said.out == ""


def test_a_wrong_flag_ends_with_the_usage(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["eval", "--confg-file", "x"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("usage: isda eval")


# --- how commands end


def raising(error: BaseException):
    def run():
        raise error

    return run


def test_what_the_user_can_mend_is_one_sentence(capsys):
    assert cli.guarded(raising(UserError("a.json: no image: add one"))) == 1
    assert capsys.readouterr().err == "error: a.json: no image: add one\n"
    assert cli.guarded(raising(OSError("gone")), expected=(OSError,)) == 1
    assert capsys.readouterr().err == "error: gone\n"


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(ValueError, match="not expected"):
        cli.guarded(raising(ValueError("not expected")), expected=(OSError,))


def test_an_interruption(capsys):
    assert cli.guarded(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_arguments_that_do_not_go_together(monkeypatch, capsys):
    module = importlib.import_module(cli.COMMANDS["models"].module)
    monkeypatch.setattr(module, "run", lambda args: raising(UsageError("both --a and --b"))())
    with pytest.raises(SystemExit) as end:
        cli.main(["models"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: isda models") and said.endswith("error: both --a and --b\n")


def test_a_reader_that_has_gone_is_no_error():
    """As in ``isda models --all | head -1``: more than a pipe holds, and nobody reads it."""
    code = "from isda import cli; cli.overview = lambda: 'x' * 10**6; cli.program('--help')"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    said = process.stderr.read().decode()
    assert process.wait() == 1
    assert said == ""


# --- every error that a user can meet

# Caught by the part that raises them, which says it in an error of the family.
INTERNAL = {
    "ArgumentError",
    "ForbiddenNameError",
    "ProbeError",
    "SafetensorsError",
    "UnknownKindError",
    "UnknownTypeError",
    "UnusableSegmentationError",
    "UnusableShapeError",
}


def our_errors() -> list[type]:
    names = [name for _, name, _ in pkgutil.walk_packages(isda.__path__, "isda.")]
    modules = [
        importlib.import_module(n) for n in names if not n.endswith("__main__") and "_msda" not in n
    ]
    return [
        kind
        for module in modules
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Exception) and kind.__module__ == module.__name__
        if not name.startswith("_")
    ]


def test_errors_are_of_one_family():
    found = our_errors()
    assert len(found) > 15
    strangers = {kind.__name__ for kind in found if not issubclass(kind, UserError)}
    assert strangers == INTERNAL


# --- Detectron2's habits


def described(parser) -> dict:
    return {
        action.dest: (tuple(action.option_strings), action.nargs, action.const, action.default)
        for action in parser._actions
    }


def test_flags_of_a_training_are_those_of_detectron2():
    theirs, ours = described(default_argument_parser()), described(argument_parser())
    assert ours.pop("dataset") == (("--dataset",), None, None, None)
    crowds = (("--crowds-are-instances",), 0, True, False)
    assert ours.pop("crowds_are_instances") == crowds
    assert ours == theirs
    of_train = described(cli.parser_of("train"))
    assert {name: of_train[name] for name in theirs} == theirs
    assert set(theirs) - set(described(cli.parser_of("eval"))) == {"eval_only"}
    words = ["--num-gpus", "2", "--resume", "SOLVER.MAX_ITER", "5", "--eval-only"]
    assert (
        vars(argument_parser().parse_args(words)).items()
        >= vars(default_argument_parser().parse_args(words)).items()
    )


def scripts() -> list[Path]:
    folders = (ROOT, ROOT / "tools", ROOT / "demo")
    files = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    return [file for file in files if "from isda.cli import program" in file.read_text()]


@pytest.mark.parametrize("script", scripts(), ids=lambda path: path.name)
def test_scripts_are_commands_under_another_name(script):
    result = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    name = result.stdout.removeprefix("usage: isda ").partition(" [")[0]
    assert name in cli.COMMANDS


def test_train_net_and_demo_stay():
    assert {"train_net.py", "demo.py"} < {path.name for path in scripts()}


def test_recipes_of_the_package_are_found_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def found(name: str) -> Path:
        return Path(cli.parser_of("train").parse_args(["--config-file", name]).config_file)

    shipped = ROOT / "configs/nuclei/isda_tiny.yaml"
    for name in ("nuclei/isda_tiny.yaml", "nuclei/isda_tiny", "configs/nuclei/isda_tiny.yaml"):
        assert found(name) == shipped
    assert found("nowhere.yaml") == Path("nowhere.yaml")  # of which load_config tells
    Path("nuclei").mkdir()
    Path("nuclei/isda_tiny.yaml").touch()
    assert found("nuclei/isda_tiny.yaml") == Path("nuclei/isda_tiny.yaml")
