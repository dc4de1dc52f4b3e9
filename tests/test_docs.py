import ast
import re
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from isda import add_config
from isda.config import RENAMED_KEYS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *("README.md", "CONTRIBUTING.md", "demo/README.md", "tools/README.md"),
    "docs/BENCHMARK.md",
    "docs/CUSTOM_DATA.md",
    *(
        "docs/CLI.md",
        "docs/CONFIG.md",
        "docs/EXPORT.md",
        "docs/GETTING_STARTED.md",
        "docs/INSTALL.md",
    ),
    "docs/MASK_EMBEDDING.md",
    *("docs/CONDINST.md", "docs/METHOD.md", "docs/MODEL_ZOO.md", "docs/OP.md", "docs/SOLO.md"),
    *("docs/RESULTS.md", "docs/TROUBLESHOOTING.md", "docs/WEIGHTS.md"),
]


def flattened(cfg: CfgNode, prefix: str = "") -> dict:
    values = {}
    for key, value in cfg.items():
        nested = isinstance(value, CfgNode)
        values |= flattened(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return values


def added_keys() -> dict:
    cfg = get_cfg()
    theirs = flattened(cfg)
    add_config(cfg)
    return {key: value for key, value in flattened(cfg).items() if key not in theirs}


def test_every_added_key_is_explained_with_its_default():
    text = (ROOT / "docs" / "CONFIG.md").read_text()
    rows = re.findall(r"^\|`([A-Z0-9_.]+)`\|`(.*?)`\|(.+)\|$", text, re.MULTILINE)
    explained = {key: ast.literal_eval(default) for key, default, _ in rows}
    assert len(explained) == len(rows)
    assert explained == added_keys()


def section(heading: str) -> str:
    """A chapter of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return re.search(rf"^## {heading}\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)[1]


def test_files_of_the_reading_order_exist():
    files = re.findall(r"`(\w+/[\w/]*(?:\.\w+)?)`", section("Reading order"))
    assert len(files) > 20
    assert [f for f in files if not (ROOT / "projects" / "isda" / f).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_what_the_pages_name_exists(page):
    """Config files, and scripts of commands."""
    text = re.sub(r"<!--.*?-->", "", (ROOT / page).read_text(), flags=re.DOTALL)
    named = re.findall(r"\b(?:configs|tools|demo|projects|tests)/[\w/.-]+\.(?:yaml|py|md)", text)
    named = [name for name in named if "NAME" not in name]  # readers replace it
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_keys_that_the_pages_name_exist(page):
    cfg = get_cfg()
    add_config(cfg)
    known = {**flattened(cfg), **RENAMED_KEYS}
    text = (ROOT / page).read_text()
    named = set(
        re.findall(r"\b(?:MODEL|SOLVER|INPUT|TEST|DATASETS|DATALOADER)\.[A-Z0-9_.]+\b", text)
    )
    unknown = [n for n in named if n not in known and not any(k.startswith(n + ".") for k in known)]
    assert unknown == []
