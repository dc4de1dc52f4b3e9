"""The figure of the architecture and the badges, as they are in the repository."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import make_figures
from environment import checks

IMAGES = Path(__file__).resolve().parents[2] / "docs/images"
FIGURES = make_figures.figures()


@pytest.mark.parametrize("name", FIGURES)
def test_file_is_what_the_script_draws(name):
    assert (IMAGES / name).read_text(encoding="utf-8") == FIGURES[name]


def test_parts_stay_apart_and_within_the_figure():
    _, _, width, height = map(
        int, re.search(r'viewBox="([^"]+)"', make_figures.architecture())[1].split()
    )
    boxes = make_figures.BOXES
    for i, a in enumerate(boxes):
        assert a.x >= 0 and a.y >= 0 and a.x + a.width <= width and a.y + a.height <= height
        for b in boxes[:i]:
            beside = a.x + a.width <= b.x or b.x + b.width <= a.x
            assert beside or a.y + a.height <= b.y or b.y + b.height <= a.y, (a, b)


def test_lines_end_at_parts():
    """Each end of a line is on the border of a part."""
    for points in (*make_figures.ARROWS, make_figures.COMPARED):
        for x, y in (points[0], points[-1]):
            assert [
                box
                for box in make_figures.BOXES
                if (x in (box.x, box.x + box.width) and box.y < y < box.y + box.height)
                or (y in (box.y, box.y + box.height) and box.x < x < box.x + box.width)
            ], (x, y)


@pytest.mark.parametrize("fill", sorted({box.fill for box in make_figures.BOXES}))
def test_text_is_legible_on_its_fill(fill):
    """WCAG's contrast, of which 4.5 is asked for; lines need 3 on white and on GitHub's dark."""
    assert contrast(make_figures.INK, fill) > 10
    assert min(contrast(make_figures.LINE, page) for page in ("#ffffff", "#0d1117")) > 3


@pytest.mark.parametrize(
    "colour", sorted({colour for _, _, colour in make_figures.BADGES.values()})
)
def test_badges_are_legible(colour):
    assert contrast("#ffffff", colour) > 4.5


def test_badges_say_what_is_so():
    oldest, newest = (checks.dotted(version) for version in (checks.OLDEST, checks.NEWEST))
    assert make_figures.BADGES["python"][1] == f"{oldest} – {newest}"
    root = IMAGES.parents[1]
    assert 'license="Apache-2.0"' in (root / "setup.py").read_text()
    for key in ("arxiv_isda", "arxiv_istr"):
        number = make_figures.BADGES[key][1].split()[1]
        assert number in (root / "CITATION.cff").read_text()


@pytest.mark.parametrize("name", FIGURES)
def test_files_are_xml_with_a_title(name):
    title = ET.fromstring(FIGURES[name]).find("{http://www.w3.org/2000/svg}title")
    assert title.text


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
