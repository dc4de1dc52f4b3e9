"""Who imports whom inside the package, against the table in CONTRIBUTING.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "projects/isda"
METHODS = ("blendmask", "condinst", "isda", "istr", "solo", "solov2")
NODES = ("ISDA", "ISTR", "SOLO", "SOLOV2", "CONDINST", "BLENDMASK")


def rows() -> list[tuple[list[str], str]]:
    """Places of each row, and the words of its column "May import"."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("|Place|What|May import of ours|\n|---|---|---|\n")[1].split("\n\n")[0]
    cells = [line.strip("|").split("|") for line in table.splitlines()]
    return [(re.findall(r"`(\w+)[./`]", places), words) for places, _, words in cells]


def allowed() -> dict[str, set[str]]:
    """Places that each place may import, itself included."""
    basics = set(rows()[0][0])
    above: set[str] = set()
    result = {}
    for places, words in rows():
        listed = set(re.findall(r"`(\w+)`", words))
        listed |= basics if "basics" in words or places[0] in basics else set()
        listed |= above if words == "all above" else set()
        for place in places:
            result[place] = listed | {place}
        above |= set(places)
    return result


def place_of(module: str) -> str:
    """The first name below the package; the package itself is ``__init__``."""
    return module.split(".")[1] if "." in module else "__init__"


def modules() -> dict[str, Path]:
    paths = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in files()}
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


def files() -> Iterator[Path]:
    return PACKAGE.rglob("*.py")


def imports(tree: ast.AST, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Modules of the package that are imported, anywhere in a file, with the lines."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the package"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in full]
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "isda")


def violations(sources: dict[str, str], known: dict[str, Path]) -> list[str]:
    rules = allowed()
    return [
        f"{module}:{line} imports {name}"
        for module, source in sources.items()
        for name, line in imports(ast.parse(source), known)
        if place_of(name) not in rules[place_of(module)]
    ]


def test_the_table_has_every_place_and_only_those():
    assert set(allowed()) - {"weights"} == {place_of(module) for module in modules()}


def test_the_table_has_no_circle():
    """A place may import what stands above it, or in its own row."""
    seen: set[str] = set()
    for places, _ in rows():
        seen |= set(places)
        for place in places:
            assert allowed()[place] <= seen, place


def test_modules_import_what_the_table_allows():
    known = modules()
    sources = {name: path.read_text(encoding="utf-8") for name, path in known.items()}
    assert violations(sources, known) == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("isda.modeling.neck", "from isda.meta_arch import ISDA"),
        ("isda.engine.trainer", "def f():\n    import isda.report.page"),
        ("isda.data.masks", "from isda import model_zoo"),
        ("isda.ops.bags", "from isda.errors import UserError"),
    ],
)
def test_a_violation_is_found(module, source):
    assert len(violations({module: source}, modules())) == 1


def test_methods_do_not_import_each_other():
    known = modules()
    names = {f"isda.meta_arch.{method}" for method in METHODS}
    for name in names:
        tree = ast.parse(known[name].read_text(encoding="utf-8"))
        assert not {other for other, _ in imports(tree, known)} & (names - {name}), name


@pytest.mark.parametrize("place", ["layers", "modeling", "ops", "structures.py", "training"])
def test_what_methods_share_names_no_key_of_one_of_them(place):
    path = PACKAGE / place
    pattern = re.compile(rf"MODEL\.({'|'.join(NODES)})\b")
    shared = path.rglob("*.py") if path.is_dir() else [path]
    assert [p.name for p in shared if pattern.search(p.read_text(encoding="utf-8"))] == []


def test_docstrings_of_modules_begin_with_what_they_are_about():
    """With a noun or a verb, not with a clause."""
    words = {"what", "whoever", "whether", "which", "who", "where", "how", "from", "when"}
    found = []
    for name, path in modules().items():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if text.split()[:1] and text.split()[0].lower() in words:
            found.append(f"{name}: {text.splitlines()[0]}")
    assert found == []
