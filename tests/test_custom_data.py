"""docs/CUSTOM_DATA.md, typed from the first command to the last on a stand-in for the nuts."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from examples_of_formats import labelme, photo, polygon_region, shape, via_content
from PIL import Image

from isda import cli
from isda.cli.arguments import argument_parser
from isda.data.custom_data import forget_folders
from isda.engine.launch import run

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "CUSTOM_DATA.md"
# What makes the commands of the page a matter of seconds.
TINY = [
    *("SOLVER.EPOCHS", "0", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2"),
    *("INPUT.MIN_SIZE_TRAIN", "(32,)", "INPUT.MIN_SIZE_TEST", "32", "DATALOADER.NUM_WORKERS", "0"),
    *("TEST.EVAL_EPOCHS", "0"),
]


def program(name: str):
    spec = importlib.util.spec_from_file_location(f"custom_data_{Path(name).stem}", ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(chapter: str) -> list[str]:
    """Of the blocks of a chapter that users type, but not of those that need the network."""
    text = re.search(rf"^## {chapter}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)[1]
    text = re.sub(r"<!-- needs the network -->\n```\n.*?^```\n", "", text, flags=re.M | re.S)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    lines = "".join(block for kind, block in blocks if not kind).replace("\\\n", " ")
    return lines.splitlines()


def nuts(folder: Path) -> None:
    """The layout of the repository that the page has users clone."""
    corners = ([[4, 4], [20, 4], [20, 20], [4, 20]], [[30, 8], [50, 8], [50, 24], [30, 24]])
    for index in range(18):
        labels = ("date", "fig") if index % 2 else ("fig", "hazelnut")
        shapes = [
            {"label": label, "line_color": None, "points": points, "shape_type": "polygon"}
            for label, points in zip(labels, corners)
        ]
        path = labelme(folder / f"{index}.json", shapes, version="3.16.2")
        content = json.loads(path.read_text())
        del content["imageHeight"], content["imageWidth"]
        path.write_text(json.dumps(content))


def draw_labels(path: Path) -> None:
    values = np.zeros((40, 60), np.uint8)
    values[3:9, 4:20], values[20:30, 30:50] = 1, 2
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def train(words: list[str]) -> int:
    arguments = argument_parser().parse_args([*words, *TINY])
    run(program("train_net.py").main, arguments)
    return 0


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    yield tmp_path
    forget_folders()


@pytest.mark.slow
def test_from_download_to_prediction(place, capsys):
    nuts(place / "labelme2coco/images")
    typed = [shlex.split(command) for command in commands("From download to prediction")]
    assert [words[1] for words in typed] == [
        "tools/convert_dataset.py",
        "tools/check_dataset.py",
        "tools/visualize_data.py",
        "train_net.py",
        "demo/demo.py",
    ]
    convert, check, look, training, demo = (words[2:] for words in typed)
    assert cli.main(["convert", "dataset", *convert]) == 0
    assert cli.main(["check", *check]) == 0
    assert (place / "nuts.html").read_text().count("data:image/jpeg") == 14
    assert cli.main(["show", "data", *look, "INPUT.MIN_SIZE_TRAIN", "(32,)"]) == 0
    assert len(list((place / "nuts_augmented").iterdir())) == 8
    assert train(training) == 0
    assert cli.main(["predict", *demo]) == 0
    assert len(list((place / "output/nuts/masks").glob("*.jpg"))) == 4
    assert "error" not in capsys.readouterr().err.lower()


def test_conversions_of_other_tools(place):
    typed = [shlex.split(command) for command in commands("Annotation formats")]
    labelme(place / "labelme_files/a.json", [shape()])
    labelme(place / "labelme_files/b.json", [shape()])
    for name in ("a", "b"):
        photo(place / f"photos/{name}.jpg")
        photo(place / f"stage1_train/{name}/images/{name}.png")
        photo(place / f"stage1_train/{name}/masks/1.png")
        photo(place / f"cells/images/{name}.tif")
        draw_labels(place / f"cells/labels/{name}.png")
    regions = {f"{name}.jpg": [polygon_region(kind="nut", by="me")] for name in ("a", "b")}
    (place / "via_export.json").write_text(json.dumps(via_content(regions)))
    assert len(typed) == 4
    for index, words in enumerate(typed):
        assert words[1] == "tools/convert_dataset.py" and words[-2:] == ["--output", "mine"]
        assert cli.main(["convert", "dataset", *words[2:-1], f"mine{index}"]) == 0
        assert cli.main(["check", f"mine{index}"]) == 0
        forget_folders()
