"""The site of the documentation: its hook, its navigation, and what `make docs` does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import make_docs
from docs_site import hooks
from environment import state

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("source", "link", "in_site"),
    [
        ("docs/METHOD.md", "[a](OP.md#speed)", "[a](OP.md#speed)"),
        ("docs/METHOD.md", "[a](#why)", "[a](#why)"),
        ("docs/METHOD.md", "[a](../demo/README.md)", "[a](demo/README.md)"),
        ("docs/METHOD.md", "[a](../README.md#isda)", "[a](README.md#isda)"),
        ("docs/METHOD.md", "[a](../LICENSE)", "[a](LICENSE.md)"),
        (
            "docs/METHOD.md",
            "[a](../configs/Base-ISDA.yaml)",
            "[a](configs/Base-ISDA.yaml.md)",
        ),
        (
            "docs/METHOD.md",
            "[a](../projects/isda/weights/mask_dictionary_28.npz)",
            "a",
        ),
        ("docs/METHOD.md", "[a](../none.md)", "[a](../none.md)"),
        ("docs/METHOD.md", "[a](https://arxiv.org/abs/1)", "[a](https://arxiv.org/abs/1)"),
        ("docs/METHOD.md", "```\n[a](../LICENSE)\n```", "```\n[a](../LICENSE)\n```"),
        ("docs/benchmarks/cpu.md", "![a](cpu_scaling.png)", "![a](cpu_scaling.png)"),
        ("README.md", "[a](docs/OP.md#speed)", "[a](OP.md#speed)"),
        (
            "README.md",
            "[![a](docs/images/nuclei_curves.png)](docs/OP.md)",
            "[![a](images/nuclei_curves.png)](OP.md)",
        ),
        (
            "README.md",
            '<img src="docs/images/nuclei_curves.png">',
            '<img src="images/nuclei_curves.png">',
        ),
        ("demo/README.md", "[a](../docs/OP.md)", "[a](../OP.md)"),
        ("demo/README.md", "[a](../tools/README.md)", "[a](../tools/README.md)"),
    ],
)
def test_links_lead_to_the_same_in_the_site(source, link, in_site):
    assert hooks.with_links_of_the_site(f"Text\n{link}\n", source) == f"Text\n{in_site}\n"


def named(entries: list) -> list[str]:
    """The pages of a navigation."""
    values = [value for entry in entries for value in entry.values()]
    nested = [named(value) if isinstance(value, list) else [value] for value in values]
    return [page for pages in nested for page in pages]


def test_navigation_has_every_page_once():
    pages = named(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert len(pages) == len(set(pages))
    ours = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert ours <= set(pages)
    # The others are those of the repository.
    assert all((ROOT / page).is_file() for page in set(pages) - ours)


def test_what_pages_link_to_outside_docs_is_added():
    pages = [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")]
    added = list(hooks.linked_from([hooks.HOME, *pages]))
    assert {"demo/README.md", "tools/README.md", "CONTRIBUTING.md", "LICENSE"} <= set(added)
    assert "configs/nuclei/mask_rcnn_mobilenet_v2.yaml" in added
    assert not [name for name in added if name.endswith((".pth", ".npz"))]
    assert hooks.content("LICENSE").startswith("# LICENSE\n\n```text\n")


def test_lock_pins_what_is_asked_for():
    folder = ROOT / "tools/docs_site"
    asked = re.findall(r"^\S+==\S+", (folder / "requirements.in").read_text(), re.MULTILINE)
    locked = (folder / "requirements.txt").read_text()
    assert asked
    for pin in asked:
        assert f"\n{pin} \\\n    --hash=sha256:" in locked


def test_environment_is_made_once_and_again_for_other_pins(tmp_path, monkeypatch):
    """Without a network: pip is only asked."""
    lock = tmp_path / "requirements.txt"
    lock.write_text("mkdocs==1\n")
    monkeypatch.setattr(make_docs, "ROOT", tmp_path)
    monkeypatch.setattr(make_docs, "VENV", tmp_path / ".venv-docs")
    monkeypatch.setattr(make_docs, "LOG", tmp_path / ".venv-docs/log")
    monkeypatch.setattr(make_docs, "LOCK", lock)
    asked = []
    monkeypatch.setattr(make_docs.venvs, "create", lambda venv, log: None)
    monkeypatch.setattr(make_docs, "run_pip", lambda python, words, log: asked.append(words))
    make_docs.make_venv()
    make_docs.make_venv()
    assert asked == [["install", "--require-hashes", "--no-deps", "-r", lock]]
    lock.write_text("mkdocs==2\n")
    make_docs.make_venv()
    assert len(asked) == 2
    assert set(state.read(tmp_path / ".venv-docs")) == {"dependencies"}


@pytest.mark.slow
def test_site_is_built_without_a_warning(tmp_path):
    """Where `make docs` has made its environment."""
    python = make_docs.venvs.python_of(make_docs.VENV)
    if not python.exists():
        pytest.skip("needs `make docs` once")
    command = [python, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "MODEL_ZOO.html").read_text()
    assert 'href="configs/nuclei/mask_rcnn_mobilenet_v2.yaml.html"' in page
    assert ".pth" in page and 'href="../projects' not in page
    assert (tmp_path / "demo/index.html").is_file()


def test_make_docs_says_in_a_sentence_what_is_missing():
    """Here a Python that is too old."""
    code = (
        "import sys; sys.path.insert(0, 'tools'); sys.argv = ['make_docs.py'];"
        "from environment import checks; checks.OLDEST = (3, 98); checks.NEWEST = (3, 99);"
        "import make_docs; sys.exit(make_docs.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.fullmatch(r"make docs: .* is Python .*need 3\.98 to 3\.99.*\n", done.stderr)
