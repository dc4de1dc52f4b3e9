"""Links of the pages lead somewhere: files of the repository, and headings by GitHub's anchors."""

import re

import pytest
from commands import PAGES, ROOT

from docs_site.hooks import links, slug, source_of

LINKING = [*PAGES, "CHANGELOG.md", "datasets/nuclei_mini/SOURCE.md"]


def anchors(text: str) -> set[str]:
    """Those of headings that are there once; one that is repeated has no lasting anchor."""
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#{1,6} +(.+?) *#*$", prose, re.MULTILINE)
    # Of a link in a heading only its text counts.
    found = [slug(re.sub(r"\[(.*?)\]\(.*?\)|[*`]", r"\1", heading)) for heading in headings]
    return {name for name in found if found.count(name) == 1}


def broken(page: str, text: str) -> list[str]:
    """The links of a page that lead nowhere."""
    wrong = []
    for link in links(text):
        target, anchor = ROOT / source_of(page, link), link.partition("#")[2]
        if not target.exists():
            wrong.append(link)
        elif anchor:
            meant = text if target == ROOT / page else target.read_text()
            if target.suffix != ".md" or anchor not in anchors(meant):
                wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", LINKING)
def test_links_lead_to_files_and_headings(page):
    assert broken(page, (ROOT / page).read_text()) == []


def test_there_are_links_to_check():
    found = [link for page in LINKING for link in links((ROOT / page).read_text())]
    assert len(found) > 150
    assert sum("#" in link for link in found) > 40


@pytest.mark.parametrize(
    ("link", "leads"),
    [
        ("[a](GETTING_STARTED.md)", True),
        ("[a](GETTING_STARTED.md#resume)", True),
        ("[a](../demo/README.md)", True),
        ("[a](../README.md#isda)", True),
        ("[`a`\nb](#a-heading-of-torchcompile)", True),
        ("[a](https://example.com/none)", True),
        ('<img src="images/nuclei_curves.png">', True),
        ("```\n[a](none.md)\n```", True),
        ("[a](none.md)", False),
        ("![a](images/none.png)", False),
        ("[a](GETTING_STARTED.md#none)", False),
        ("[a](#twice)", False),
        ('<img src="images/none.png">', False),
        ("[![a](images/none.png)](GETTING_STARTED.md)", False),
    ],
)
def test_broken_links_are_found(link, leads):
    text = f"# A [heading](x://y) of `torch.compile`!\n\n# Twice\n\n# Twice\n\n{link}\n"
    assert (broken("docs/METHOD.md", text) == []) is leads


def test_anchors_are_those_of_github():
    text = (
        "# Is it *well*?\n## ISDA: `--eval-only`, 42ep_x & more\n```\n# no heading\n```\n### Ä (ß)"
    )
    assert anchors(text) == {"is-it-well", "isda---eval-only-42ep_x--more", "ä-ß"}
