"""Every command of the pages is typed here, by another test, or marked with what it needs."""

import ast
import os
import re
from pathlib import Path
from unittest import mock

import pytest
import yaml
from commands import (
    NEEDS,
    PAGES,
    READ_ONLY,
    ROOT,
    Block,
    Command,
    blocks,
    commands_of,
    inline_commands,
)
from detectron2.config import CfgNode
from places import Trainings, prepare
from typist import CommandError, check, forget_data, run_code, type_command

from isda.data import builtin
from isda.data.shapes import ShapesParameters
from isda.engine.setup import load_config

# What readers replace, and by what it is replaced here.
MEANT = {"CONFIG": "configs/shapes/isda_tiny.yaml", "PATH": "mine"}
MEANT |= {"NAME": "nuclei/isda_boxes_mobilenet_v2"}
MEANT_ON = {"docs/MASK_EMBEDDING.md": {"CONFIG": "configs/shapes/istr_tiny.yaml"}}

_SETUP = "tests/test_setup.py::"
_WHEELS = "tests/tools/test_make_wheels.py::"
_NUTS = "tests/test_custom_data.py::test_from_download_to_prediction"
_OTHERS = "tests/test_custom_data.py::test_conversions_of_other_tools"
_EXPORT = "tests/cli/test_export.py::"
# How a command begins, or what a program has in it: the test that types it.
ELSEWHERE = {
    "make demo": "tests/test_demo.py::test_the_demo_from_end_to_end_and_again",
    "make env": f"{_SETUP}test_done_once_and_repeated_when_inputs_change",
    "make docs": (
        "tests/tools/test_docs_site.py::test_environment_is_made_once_and_again_for_other_pins"
    ),
    "make lint": f"{_SETUP}test_ci_lints_and_tests_and_does_nothing_else",
    "make test": f"{_SETUP}test_ci_lints_and_tests_and_does_nothing_else",
    "make wheel": f"{_WHEELS}test_installed_wheel_works_outside_the_checkout",
    "python -m pytest tests": f"{_SETUP}test_ci_lints_and_tests_and_does_nothing_else",
    "python tools/convert_dataset.py labelme2coco/images --output nuts": _NUTS,
    "python tools/check_dataset.py nuts ": _NUTS,
    "python tools/visualize_data.py --source dataloader --dataset nuts ": _NUTS,
    "python train_net.py --config-file configs/finetune/isda_mobilenet_v2.yaml --dataset nuts ": (
        _NUTS
    ),
    "python demo/demo.py --config-file output/nuts/config.yaml ": _NUTS,
    "python tools/convert_dataset.py labelme_files ": _OTHERS,
    "python tools/convert_dataset.py via_export.json ": _OTHERS,
    "python tools/convert_dataset.py stage1_train ": _OTHERS,
    "python tools/convert_dataset.py cells ": _OTHERS,
    "python tools/compare_methods.py ": (
        "tests/tools/test_compare_methods.py::test_from_nothing_to_the_table_with_a_kill_between"
    ),
    # Minutes on a busy machine, for models that are not as small as those of the tests.
    "python tools/export_model.py ": f"{_EXPORT}test_exported_model_agrees_on_photographs",
    "python tools/run_exported.py ": f"{_EXPORT}test_runner_prints_and_draws",
    'torch.export.load("isda.pt2"': f"{_EXPORT}test_program_of_the_page_runs",
    'InferenceSession("isda.onnx")': (
        "tests/prediction/test_export.py::test_program_of_the_page_runs"
    ),
}
# Of these a page has a stand-in, so what needs them is typed all the same.
STOOD_IN_FOR = ("COCO",)
UNDERSTOOD = ("export", "isda", "pip", "python", "source")
WHAT_TO_DO = (
    "If the page or the program is wrong, mend it. What a command takes for granted is made in "
    "tests/documentation/places.py, and what makes it short stands in typist.py beside it. A test "
    "that types it already is named in ELSEWHERE of test_commands.py. Above a block that needs "
    f"what no test has belongs <!-- needs X -->, with X of {', '.join(NEEDS)}; readers want to "
    "know it too."
)


def elsewhere(item: Command | Block) -> str | None:
    """The key of the test that types the command or the program."""
    for key in ELSEWHERE:
        if item.text.startswith(key) or (isinstance(item, Block) and key in item.text):
            return key
    return None


def is_typed(command: Command) -> bool:
    return elsewhere(command) is None and set(command.needs) <= set(STOOD_IN_FOR)


def all_commands() -> list[Command]:
    found = [b for page in PAGES for b in blocks(page) if not b.language]
    return [command for block in found for command in commands_of(block)]


def explain(item: Command | Block, error: object) -> str:
    text = item.text if isinstance(item, Command) else "the program that begins here"
    return f"{item.page}:{item.line}: {text}\n{error}\n{WHAT_TO_DO}"


def type_page(page: str) -> None:
    """Everything in the order of the page.

    Raises:
        AssertionError: with page, line, command, and what to do.
    """
    names: dict = {}
    for block in blocks(page):
        for item in commands_of(block) or [block]:
            try:
                if isinstance(item, Command):
                    type_or_check(item)
                elif item.language == "python" and not elsewhere(item):
                    type_program(item, names)
            except (CommandError, ValueError, OSError) as error:
                raise AssertionError(explain(item, error)) from error


def type_or_check(command: Command) -> None:
    meant = MEANT | MEANT_ON.get(command.page, {})
    if is_typed(command):
        type_command(command, meant)
    else:
        check([meant.get(word, word) for word in command.words])


def type_program(block: Block, names: dict) -> None:
    """Runs the program, after the others of its page, or saves it where the page has it saved."""
    if name := re.search(r"Save as `(\S+\.py)`", block.before):
        Path(name[1]).write_text(block.text)
    else:
        run_code(block.text, names)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    return Trainings(tmp_path_factory.mktemp("trainings"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory; the shapes are few."""
    few = {
        "shapes_train": (8, ShapesParameters(seed=1)),
        "shapes_val": (4, ShapesParameters(seed=2)),
    }
    monkeypatch.setattr(builtin, "SHAPES", builtin.SHAPES | few)
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ, DETECTRON2_DATASETS=str(tmp_path / "datasets")):
        yield tmp_path
    forget_data()


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any(b.is_typed for b in blocks(p))])
def test_commands_work_as_the_page_has_them(page, place, trainings):
    prepare(place, page, trainings)
    type_page(page)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_sentences_would_be_taken(page, monkeypatch):
    """With their options, configurations and targets of the Makefile."""
    monkeypatch.chdir(ROOT)
    for command in inline_commands(page):
        try:
            check([MEANT.get(word, word) for word in command.words])
        except (CommandError, ValueError, OSError) as error:
            pytest.fail(explain(command, error))


def unaccounted(found: list[Block]) -> list[str]:
    """What is neither typed, nor by another test, nor marked in a way that is known."""
    wrong = []
    for block in found:
        for need in set(block.needs) - set(NEEDS):
            wrong.append(explain(block, f"nobody knows what it is to need {need!r}"))
        if block.language not in ("", "python", *READ_ONLY):
            wrong.append(explain(block, f"nothing is known of the language {block.language}"))
        for command in commands_of(block):
            if is_typed(command) and command.words[0] not in UNDERSTOOD:
                wrong.append(explain(command, "nothing types it"))
    return wrong


def test_every_command_is_accounted_for():
    wrong = [text for page in PAGES for text in unaccounted(blocks(page))]
    assert not wrong, "\n".join(wrong)
    assert len(all_commands()) > 70


@pytest.mark.parametrize("page", PAGES)
def test_no_block_is_missed(page):
    """One that is indented instead of fenced would be."""
    text = re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
    assert re.findall(r"(?:^|\n\n) {4}\S.*", text) == []


def test_tests_that_type_commands_exist_and_are_needed():
    items = all_commands() + [b for page in PAGES for b in blocks(page) if b.language == "python"]
    assert {elsewhere(item) for item in items} - {None} == set(ELSEWHERE)
    for test in ELSEWHERE.values():
        file, name = test.split("::")
        defined = {n.name for n in ast.parse((ROOT / file).read_text()).body if hasattr(n, "name")}
        assert name in defined, test
    makefile = (ROOT / "Makefile").read_text()
    for beginning in ELSEWHERE:
        if beginning.startswith("make "):
            assert f"\n{beginning.split()[1]}:" in makefile


def test_blocks_of_configuration_are_ones():
    for page in PAGES:
        for block in blocks(page):
            if block.language == "yaml":
                load_config("").merge_from_other_cfg(CfgNode(yaml.safe_load(block.text)))


def test_extras_that_pages_name_exist():
    extras = set(re.findall(r'^ +"(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE))
    named = {x for page in PAGES for x in re.findall(r"'\.\[(\w+)\]'", (ROOT / page).read_text())}
    assert named and named <= extras


# --- the finding of commands, and what happens to new ones

PAGE = """\
Text, and `python tools/no_such.py`.

<!-- needs COCO and several GPUs -->
```
A=1 python train_net.py --config-file x.yaml \\
    KEY 'a  b'   # why
make demo && make dmeo
```

```python
1 / 0
```

```
frobnicate --now
python tools/plot_metrics.py --wrong
```
"""


def test_commands_are_found_with_their_place_and_needs():
    first, program, last = blocks("docs/X.md", PAGE)
    needs = ("COCO", "several GPUs")
    assert commands_of(first) == [
        Command("docs/X.md", 5, "A=1 python train_net.py --config-file x.yaml KEY 'a  b'", needs),
        Command("docs/X.md", 7, "make demo", needs),
        Command("docs/X.md", 7, "make dmeo", needs),
    ]
    assert commands_of(first)[0].variables == {"A": "1"}
    assert commands_of(first)[0].words[-1] == "a  b"
    assert (program.language, program.line, program.needs) == ("python", 11, ())
    assert commands_of(program) == []
    assert [str(c) for c in commands_of(last)][0] == "docs/X.md:15: frobnicate --now"


def test_a_new_command_is_named_with_what_to_do():
    (message,) = unaccounted(blocks("docs/X.md", PAGE))
    assert message.startswith("docs/X.md:15: frobnicate --now\nnothing types it\n")
    assert "<!-- needs X -->, with X of COCO, a GPU," in message
    (message,) = unaccounted(blocks("docs/X.md", "<!-- needs luck -->\n```\nmake demo\n```"))
    assert "to need 'luck'" in message
    (message,) = unaccounted(blocks("docs/X.md", "```sh\nmake demo\n```"))
    assert "the language sh" in message


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("python tools/plot_metrics.py --wrong", "arguments are required: runs"),
        (
            "python train_net.py --config-file configs/none.yaml",
            "config file configs/none.yaml does not exist",
        ),
        ("python train_net.py SOLVER.MAX_ITERS 5", "unknown config key SOLVER.MAX_ITERS"),
        ("torchrun train_net.py --no-such-flag", "unrecognized arguments: --no-such-flag"),
        ("python demo/demo.py --model nobody/is_it --webcam", "there is no model 'nobody/is_it'"),
        ("make dmeo", "the Makefile has no target dmeo"),
        ("make demo ARGS=--isrt", "unrecognized arguments: --isrt"),
    ],
)
def test_what_a_program_would_refuse_is_found_without_running_it(command, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((CommandError, ValueError), match=message):
        check(Command("docs/X.md", 1, command).words)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("python missing.py", "No such file"),
        ("python -c 'raise SystemExit(3)'", "it ended with 3"),
        ("python -c '1 / 0'", "ZeroDivisionError"),
        ("source no/such/file", "it ended with 1"),
        ("frobnicate", "nothing here knows"),
    ],
)
def test_failing_commands_fail(command, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CommandError, match=message):
        type_command(Command("docs/X.md", 1, command), {})


def test_commands_are_typed_with_words_replaced_and_patterns_expanded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "args.py").write_text("import sys; open('out', 'w').write(repr(sys.argv))")
    (tmp_path / "b.png").touch()
    (tmp_path / "a.png").touch()
    command = Command("docs/X.md", 1, "python args.py CONFIG *.png '*.png' none/*")
    type_command(command, {"CONFIG": "c.yaml"})
    expected = ["args.py", "c.yaml", "a.png", "b.png", "*.png", "none/*"]
    assert (tmp_path / "out").read_text() == repr(expected)
