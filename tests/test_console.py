"""What reaches a terminal: by the module alone, and by the tools on names that are not nice."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isda import console
from isda.console import printable, printable_lines

ROOT = Path(__file__).parents[1]
NASTY = "di\x1b[31msc\x1b]0;title\x07 bo\nx\r \x9b2J we\u202edge \u2028 \udcff"
SHOWN = r"di\x1b[31msc\x1b]0;title\x07 bo\nx\r \x9b2J we\u202edge \u2028 \udcff"


def test_orders_are_escaped_and_letters_stay():
    assert printable(NASTY) == SHOWN
    assert printable_lines("a\n\tb\r\x1b") == "a\n\tb\\r\\x1b"
    for fine in ("円 四角 三角", "café Ñandú", "نیم‌فاصله", "👩‍🔬", "C:\\new", "a b"):
        assert printable(fine) == fine
    assert printable(Path("a\x1bb")) == r"a\x1bb"


@pytest.fixture
def run(tmp_path):
    """Runs a program with an environment, for the bytes that it prints."""
    program = tmp_path / "program.py"

    def run_program(code, **environment):
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "projects"), **environment}
        code = f"from isda import console; console.start()\n{code}"
        program.write_text(code, encoding="utf-8")
        command = [sys.executable, program]
        return subprocess.run(command, env=environment, capture_output=True, check=False)

    return run_program


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PYTHONIOENCODING": "cp1252"}, "é \\u5186".encode("cp1252")),
        ({"PYTHONIOENCODING": "ascii:strict"}, b"\\xe9 \\u5186"),
        (ASCII, b"\\xe9 \\u5186"),
        ({"PYTHONIOENCODING": "utf-8"}, "é 円".encode()),
    ],
)
def test_what_a_terminal_cannot_show_ends_nothing(run, environment, expected):
    code = "import sys\nprint('é 円')\nprint('é 円', file=sys.stderr)\nsys.exit('é 円')"
    result = run(code, **environment)
    assert result.returncode == 1
    assert result.stdout.strip() == expected
    assert result.stderr.splitlines() == [expected] * 2


def test_text_files_are_utf8_in_every_locale(run, tmp_path):
    code = f"open({str(tmp_path / 'a')!r}, 'w').write('円')"
    result = run(code, **ASCII)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "a").read_bytes() == "円".encode()


def test_nothing_that_is_printed_or_logged_is_an_order(run, tmp_path):
    code = f"""
import logging, sys
from isda.console import guard, unguarded
guard()  # again
nasty = {NASTY!r}
print(nasty, file=sys.stderr)
sys.stdout.writelines([nasty])
with unguarded():
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("\\x1b[32mcolor\\x1b[0m %(message)s"))
    logging.basicConfig(handlers=[handler, logging.FileHandler({str(tmp_path / "log")!r})])
logging.warning("%s and %s", nasty, "\\x1b[31mred\\x1b[0m")
try:
    raise ValueError(nasty)
except ValueError:
    logging.exception("oh")
raise KeyError(nasty)
"""
    result = run(code)
    log = (tmp_path / "log").read_bytes()
    colors = (b"\x1b[32mcolor\x1b[0m ", b"")
    for output in (result.stdout.replace(*colors), result.stderr, log):
        assert b"\x1b" not in output and b"\x07" not in output and b"\xc2\x9b" not in output
        assert rb"sc\x1b]0;title\x07" in output
    assert result.stdout.count(colors[0]) == 2
    assert b"ValueError" in log and b"and red" in log


@pytest.fixture
def nasty_data(tmp_path):
    """Class and file names that no terminal should see raw."""
    import cv2
    import numpy as np

    classes = {"esc\x1b[31m\x1b]0;t\x07": 1, "円": 2}
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        images, annotations = [], []
        for number in range(4):
            name = f"{split}\x1b[2J{number}.png"
            cv2.imwrite(str(tmp_path / split / name), np.full((40, 60, 3), 90, np.uint8))
            images.append({"id": number + 1, "file_name": name, "width": 60, "height": 40})
            annotation = {"id": number + 1, "image_id": number + 1, "category_id": number % 2 + 1}
            polygon = [5, 5, 30, 5, 30, 30, 5, 30]
            annotation |= {"bbox": [5, 5, 25, 25], "area": 625, "segmentation": [polygon]}
            annotations.append(annotation | {"iscrowd": 0})
        content = {"images": images, "annotations": annotations}
        content["categories"] = [{"id": i, "name": name} for name, i in classes.items()]
        (tmp_path / "annotations").mkdir(exist_ok=True)
        path = tmp_path / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "cp1252"}, ASCII])
@pytest.mark.parametrize(
    "arguments",
    [
        ["check_dataset.py", "DATA", "--output", "OUT/page.html"],
        [
            *("visualize_data.py", "--source", "annotation", "--dataset", "DATA"),
            *("--config-file", "configs/finetune/isda_mobilenet_v2.yaml", "--output-dir", "OUT"),
        ],
    ],
)
def test_tools_survive_names(nasty_data, tmp_path, arguments, environment):
    places = {"DATA": str(nasty_data), "OUT": str(tmp_path / "out")}
    for place, path in places.items():
        arguments = [argument.replace(place, path) for argument in arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "projects"), **environment}
    command = [sys.executable, str(ROOT / "tools" / arguments[0]), *arguments[1:]]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert b"\x1b" not in result.stdout + result.stderr
    for page in (tmp_path / "out").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "\x1b" not in text and "円" in text and r"esc\x1b[31m" in text


def test_names_of_classes_are_shown_from_all_their_sources(nasty_data):
    from isda.data.coco_json import read_coco_json
    from isda.data.registration import _checked_file

    path = nasty_data / "annotations" / "instances_val.json"
    expected = [r"esc\x1b[31m\x1b]0;t\x07", "円"]
    content = read_coco_json(path)
    assert [category["name"] for category in content["categories"]] == expected
    copy = _checked_file(str(path), str(nasty_data / "val"))  # which Detectron2 reads
    names = json.loads(Path(copy).read_text(encoding="utf-8"))["categories"]
    assert [category["name"] for category in names] == expected


def test_a_guard_can_be_taken_off(monkeypatch):
    """Tests and notebooks have streams of their own."""
    factory = logging.getLogRecordFactory()
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", None)  # as without a console on Windows
    plain = sys.stdout
    try:
        console.guard()
        assert sys.stdout is not plain and sys.stderr is None
        assert sys.stdout.fileno is not None and sys.stdout.encoding == plain.encoding
        with console.unguarded():
            assert sys.stdout is plain
    finally:
        logging.setLogRecordFactory(factory)
