"""The page on a data set: its numbers, its pictures, and that it is whole by itself."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from examples_of_datasets import annotation, box, content, write

from isda.data.analysis import Analysis, examine
from isda.data.layouts import find_dataset
from isda.report.analysis import write_analysis

# Five columns of nine pixels.
BLOCK = {"size": [40, 60], "counts": [45, *[9, 31] * 4, 9, 2186]}


class Balanced(HTMLParser):
    """Fails on a tag that is not closed, or closed twice; keeps the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """Closes itself."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(path: Path) -> str:
    parser = Balanced()
    parser.feed(path.read_text())
    assert parser.open == []
    return " ".join(parser.text)


def analysis_of(folder: Path) -> Analysis:
    return examine(find_dataset(folder))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> tuple[Analysis, Path]:
    """A nasty class name, an object annotated twice, a truncated image, mixed formats; its page."""
    part = content(1)
    part["categories"][0]["name"] = "<b>fig</b>"
    part["annotations"][2]["segmentation"].append([1, 1, 5, 5])  # no polygon
    part["annotations"][6]["segmentation"] = BLOCK
    part["annotations"].append(annotation(999, 4, 2, box(20 + 1.2, 5, 8, 20)))
    folder = write(tmp_path_factory.mktemp("data") / "fruit & nuts", part)
    (folder / "train/3.png").write_bytes((folder / "train/3.png").read_bytes()[:200])
    analysis = analysis_of(folder)
    return analysis, write_analysis(analysis, folder / "pages/page.html", folder)


def test_the_page_says_what_was_found(faulty):
    analysis, path = faulty
    page, text = path.read_text(), parsed(path)
    assert "fruit & nuts" in text and "will not" in text
    assert len(analysis.findings) == 3  # the part that is no polygon, the image, the second outline
    for finding in analysis.findings:
        assert finding.text in text
    assert "<b>fig" not in page and "<b>fig</b>" in text
    for row in (r"Images\s+10\s+10", r"Instances\s+20\s+20", r"Small \(COCO's bounds\)\s+20"):
        assert re.search(row, text), row
    assert "MODEL.ISDA.NUM_QUERIES 50" in re.sub(r"\s+", " ", text)


def test_each_image_that_can_be_read_is_shown_once(faulty):
    page = faulty[1].read_text()
    shown = re.findall(r'<img src="data:image/jpeg;base64,[^"]+" alt="(\d+)\.png, 60x40', page)
    assert len(set(shown)) == len(shown) >= 16
    assert "3" not in shown and "4" in shown


def test_the_page_asks_nothing_of_the_network(faulty):
    page = faulty[1].read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert "http" not in re.sub(r"base64,[^\"]+", "", page)


def test_a_set_without_any_usable_image_has_a_page_too(tmp_path):
    folder = write(tmp_path / "broken")
    for split in ("train", "val"):
        (folder / f"annotations/instances_{split}.json").write_text('{"images": []}')
    analysis = analysis_of(folder)
    text = parsed(write_analysis(analysis, tmp_path / "page.html", folder))
    assert "the list 'images' is empty" in text and "Distributions" not in text


def test_images_without_instances_are_no_obstacle(tmp_path):
    val = content(101)
    val["annotations"] = []
    folder = write(tmp_path, val=val)
    text = parsed(write_analysis(analysis_of(folder), tmp_path / "page.html", folder))
    assert "All have 40." in text  # the shorter sides
