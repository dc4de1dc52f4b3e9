import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for problems

from problems import needs_cuda, needs_gpu, needs_native  # noqa: E402

from isda import ops  # noqa: E402
from isda.ops import bags  # noqa: E402


@pytest.fixture(
    params=[
        "bags",
        "gather",
        pytest.param("native", marks=needs_native),
        pytest.param("cuda", marks=[needs_cuda, pytest.mark.gpu]),
        pytest.param("pure on cuda", marks=[needs_gpu, pytest.mark.gpu]),
    ],
)
def device(request, monkeypatch):
    """The device of every implementation in turn, which is forced."""
    if request.param == "gather":
        monkeypatch.setattr(bags, "fits", lambda sizes, tokens: False)
    forced = {"native": "cpu", "cuda": "cuda"}.get(request.param, "torch")
    with ops.backend(forced):
        yield "cuda" if "cuda" in request.param else "cpu"
