"""What a start leaves out, because importing it takes seconds, is there when it is needed."""

import importlib
import subprocess
import sys
import types

import pytest

from isda import _imports


def test_a_prediction_needs_neither_dynamo_nor_matplotlib_nor_scipy():
    """And what asks for dynamo afterwards gets it: roi_align, other imports, ``torch.compile``."""
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from isda import Predictor, model_zoo\n"
        "opts = ['INPUT.MIN_SIZE_TEST', 64, 'INPUT.MAX_SIZE_TEST', 64]\n"
        "opts += ['MODEL.ISDA.KEEP_LARGEST_COMPONENT', False, 'MODEL.DEVICE', 'cpu']\n"
        "for name in ('nuclei/isda_boxes_mobilenet_v2', 'nuclei/mask_rcnn_mobilenet_v2'):\n"
        "    cfg = model_zoo.get_config(name, trained=True, overrides=opts)\n"
        "    Predictor(cfg)(np.zeros((64, 64, 3), np.uint8))\n"
        "print(*sys.modules)\n"
        "align = sys.modules['torchvision.ops.roi_align']\n"
        "assert align.is_compile_supported('cpu')\n"
        "from torch._dynamo.utils import counters, is_compile_supported\n"
        "assert align.is_compile_supported is not is_compile_supported\n"
        "import torch\n"
        "from detectron2.layers import Conv2d\n"
        "layer, x = Conv2d(3, 4, 3), torch.ones(1, 3, 8, 8)\n"
        "compiled = torch.compile(layer, backend='eager', fullgraph=True)\n"
        "assert torch.equal(compiled(x), layer(x))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    loaded = result.stdout.split()
    for name in ("torch._dynamo", "sympy", "matplotlib", "scipy", "pandas", "tensorboard", "onnx"):
        assert name not in loaded, name
    assert "torchvision.ops.roi_align" in loaded


@pytest.fixture
def asked(monkeypatch):
    """The name of a module in dynamo's place, and nobody has asked for it yet."""
    name = "isda_stands_in_for"
    finder = types.SimpleNamespace(
        find_spec=lambda wanted, *_: (
            importlib.machinery.ModuleSpec(name, finder) if wanted == name else None
        ),
        create_module=lambda spec: None,
        exec_module=lambda module: vars(module).update(counters={}, is_compile_supported=str),
    )
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, finder])
    monkeypatch.setattr(_imports, "_ASKED", name)
    monkeypatch.setattr(_imports, "_ASKING", "isda_asks")
    monkeypatch.setitem(sys.modules, name, None)
    del sys.modules[name]
    return name


def test_the_stand_in_gives_way_whoever_asks(asked):
    _imports.put_off_dynamo()
    with pytest.raises(ImportError):
        importlib.import_module("isda_asks")
    stand_in = sys.modules[asked]
    assert isinstance(stand_in, _imports._StandIn)
    function = stand_in.is_compile_supported
    counters = stand_in.counters
    assert sys.modules[asked] is not stand_in
    assert counters is sys.modules[asked].counters
    assert function(3) == "3"
    # Nor is it laid out twice.
    with pytest.raises(ImportError):
        importlib.import_module("isda_asks")
    assert counters is sys.modules[asked].counters


def test_what_is_there_already_stays(asked):
    real = importlib.import_module(asked)
    before = list(sys.meta_path)
    _imports.put_off_dynamo()
    assert sys.meta_path == before
    assert sys.modules[asked] is real


def test_what_is_imported_is_not_looked_through_for_garbage():
    """In a process of its own, as what is frozen stays so."""
    code = (
        "import gc\n"
        "from isda._imports import uncollected\n"
        "runs = []\n"
        "gc.callbacks.append(lambda phase, info: runs.append(phase))\n"
        "with uncollected():\n"
        "    made = [[] for _ in range(100_000)]\n"
        "print(runs, gc.isenabled(), gc.get_freeze_count() > 100_000)\n"
        "gc.disable()\n"
        "with uncollected():\n"
        "    pass\n"
        "print(gc.isenabled())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[] True True\nFalse\n", result.stderr
