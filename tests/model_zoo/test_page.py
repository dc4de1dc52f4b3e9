"""What docs/MODEL_ZOO.md tells users to type, with a tiny model under the names of the page."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import publish_model

PAGE = Path(__file__).parents[2] / "docs" / "MODEL_ZOO.md"


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind == language]


@pytest.fixture
def place(training, tmp_path, monkeypatch):
    """A folder with what the page takes for granted; it is the working directory."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for name in ("cells.png", "a.png", "b.png"):
        Image.fromarray(pixels).save(name)
    shutil.copytree(training, "output/mine")
    return tmp_path


def run(command):
    """The command of publish_model.py in a block of the page."""
    assert publish_model.main(shlex.split(command.replace("\\\n", " "))[2:]) == 0


def test_the_python_of_the_page(place, monkeypatch):
    options = ["output/mine", "--zoo", "zoo", "--data", "none"]
    assert publish_model.main([*options, "--name", "nuclei/isda_boxes_mobilenet_v2"]) == 0
    monkeypatch.setenv("ISDA_MODEL_ZOO", "zoo")
    code = blocks("python")
    assert len(code) == 3
    names = {}
    exec("\n".join(code), names)
    assert (place / "cells_with_masks.png").is_file()
    assert (place / "cells.json").is_file()
    assert not names["model"].training


def test_publishing_as_the_page_does(place, monkeypatch):
    own, shipped = [block for block in blocks("") if "publish_model.py" in block]
    run(own.splitlines()[0])
    monkeypatch.setenv("ISDA_MODEL_ZOO", "my_zoo")
    assert publish_model.model_zoo.list("mine/*", trained=True) == ["mine/parts"]
    # Of the package's own, everything up to writing.
    args = publish_model.parse_arguments(shlex.split(shipped.replace("\\\n", " "))[2:])
    assert (args.training, args.name) == ("output/nuclei", "nuclei/isda_boxes_mobilenet_v2")
