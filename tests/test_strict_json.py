"""All JSON that is written can be read by others; all text files state their encoding."""

import ast
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from isda import strict_json

ROOT = Path(__file__).parents[1]
# Only whole numbers and texts, or for reading by Python again.
PLAIN = {"doctor.py", "shapes.py", "make_nuclei.py", "make_nuclei_mini.py", "state.py"}
PLAIN |= {"summarise_gpu_check.py", "strict_json.py"}
PLAIN |= {"exported.py"}  # a copy of it works without this package


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_numbers_that_are_none_become_null():
    content = {"a": math.nan, "b": [1.5, -math.inf, (np.float64("inf"),)], "c": {"d": "NaN"}}
    text = strict_json.dumps(content, indent=1)
    expected = {"a": None, "b": [1.5, None, [None]], "c": {"d": "NaN"}}
    assert json.loads(text, parse_constant=refuse) == expected
    assert strict_json.dumps({"é": 1}, ensure_ascii=False) == '{"é": 1}'
    with pytest.raises(TypeError):
        strict_json.dumps({"a": object()})


def test_lines_of_others_become_strict():
    file = io.StringIO()
    lines = strict_json.StrictLines(file)
    lines.write('{"AP": NaN, "iteration": 1}\n')
    lines.write('{"AP": 2.0}\n')
    lines.flush()
    assert file.getvalue() == '{"AP": null, "iteration": 1}\n{"AP": 2.0}\n'


def calls():
    """File, line, function, and keywords of every call in the programs and the package."""
    for part in ("projects", "tools", "demo", "benchmarks"):
        for path in sorted((ROOT / part).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield path, node


def name_of(call):
    function = call.func
    if isinstance(function, ast.Attribute):
        return f"{ast.unparse(function.value)}.{function.attr}"
    return ast.unparse(function)


def test_json_is_written_by_the_strict_writer():
    loose = [
        f"{path}:{call.lineno}"
        for path, call in calls()
        if name_of(call) in ("json.dump", "json.dumps") and path.name not in PLAIN
    ]
    assert loose == []


def test_text_files_are_utf8():
    lacking = []
    for path, call in calls():
        name, keywords = name_of(call), {keyword.arg for keyword in call.keywords}
        method = name.rsplit(".", 1)[-1]
        positional = {"read_text": 1, "write_text": 2}.get(method)
        if positional is not None and "encoding" not in keywords:
            lacking += [f"{path}:{call.lineno}"] * (len(call.args) < positional)
        if name in ("open", "PathManager.open") and "encoding" not in keywords:
            mode = call.args[1].value if len(call.args) > 1 else "r"
            lacking += [f"{path}:{call.lineno}"] * ("b" not in mode)
    assert [place for place in lacking if "checkpoint.py" not in place] == []
