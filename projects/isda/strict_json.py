"""JSON that every reader takes: ``NaN`` and ``Infinity``, which Python writes, are none."""

import json
import math
from typing import Any, TextIO

__all__ = ["StrictLines", "dumps"]


def dumps(content: Any, **options: Any) -> str:
    """As ``json.dumps``, but numbers that are not finite become ``null``."""
    try:
        return json.dumps(content, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(content), allow_nan=False, **options)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {_finite(key): _finite(value) for key, value in content.items()}
    return [_finite(item) for item in content] if isinstance(content, list | tuple) else content


class StrictLines:
    """A file of JSON lines whose writer does not care; else as the file itself."""

    def __init__(self, file: TextIO):
        self._file = file

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def write(self, line: str) -> int:
        """One line, or several whole ones."""
        return self._file.write(
            "".join(f"{dumps(json.loads(one))}\n" for one in line.splitlines() if one)
        )
