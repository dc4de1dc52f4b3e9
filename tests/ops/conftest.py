import pytest
from problems import needs_cuda, needs_gpu, needs_native

from isda import ops
from isda.ops import bags


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
