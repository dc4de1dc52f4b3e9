"""What importing the package does, each time in a fresh interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECTS = Path(__file__).resolve().parent.parent / "projects"


def run(code: str) -> subprocess.CompletedProcess:
    environ = {**os.environ, "PYTHONPATH": str(PROJECTS)}
    environ.pop("PYTHONWARNINGS", None)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_the_operator_needs_neither_detectron2_nor_models():
    result = run(
        "import sys, isda.ops, isda.layers\n"
        "foreign = ('detectron2', 'fvcore', 'isda.modeling', 'isda.meta_arch', 'isda.config')\n"
        "print([name for name in foreign if name in sys.modules])"
    )
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.parametrize("name", ["add_config", "add_isda_config", "add_istr_config"])
def test_asking_for_the_config_registers_everything_in_silence(name):
    result = run(
        f"from isda import {name}\n"
        "from importlib.util import find_spec\n"
        "if find_spec('pkg_resources'):\n"  # which setuptools 82 removed
        "    from detectron2 import model_zoo\n"
        "from detectron2.data import DatasetCatalog\n"
        "from detectron2.modeling import META_ARCH_REGISTRY\n"
        "print(*(name in META_ARCH_REGISTRY for name in ('ISDA', 'ISTR')))\n"
        "print('shapes_train' in DatasetCatalog.list())"
    )
    assert result.stdout == "True True\nTrue\n"
    assert result.stderr == ""


def test_predictor_and_model_zoo_need_no_more_than_asking():
    result = run(
        "import sys, isda\n"
        "print(isda.model_zoo.list('nuclei/isda_tiny'))\n"
        "from isda import Predictor, model_zoo\n"
        "print(Predictor.__module__, model_zoo is isda.model_zoo)\n"
        "print([m for m in ('pkg_resources', 'detectron2.model_zoo') if m in sys.modules])"
    )
    expected = ["['nuclei/isda_tiny']", "isda.prediction.predictor True", "[]"]
    assert result.stdout.splitlines() == expected, result.stderr
    assert result.stderr == ""


def test_other_warnings_are_shown():
    result = run(
        "import warnings, isda\n"
        "warnings.warn('pkg_resources is deprecated as an API, here', UserWarning)\n"
        "warnings.warn('mine', FutureWarning)"
    )
    assert "UserWarning: pkg_resources" in result.stderr
    assert "FutureWarning: mine" in result.stderr


def test_missing_detectron2_is_one_sentence():
    result = run("import sys; sys.modules['detectron2'] = None\nfrom isda import add_isda_config")
    last = result.stderr.splitlines()[-1]
    assert last == "ImportError: isda needs Detectron2: docs/INSTALL.md says how it is installed"


def test_unknown_attribute():
    import isda

    with pytest.raises(AttributeError, match="module 'isda' has no attribute 'add_isdn_config'"):
        _ = isda.add_isdn_config


@pytest.mark.parametrize("order", [("isda", "istr"), ("istr", "isda"), ("isda",), ("istr",)])
def test_either_config_function_brings_what_both_share(order):
    from detectron2.config import get_cfg

    import isda

    cfg = get_cfg()
    for name in order:
        getattr(isda, f"add_{name}_config")(cfg)
        cfg.SOLVER.REFERENCE_BATCH = 3  # which the second call leaves alone
    assert {node for node in ("ISDA", "ISTR") if node in cfg.MODEL} == {n.upper() for n in order}
    assert cfg.SOLVER.REFERENCE_BATCH == 3
    assert cfg.MODEL.WEIGHTS_MIN_MATCHED == 0.5
    assert "DATASET_MAPPER_NAME" in cfg.INPUT
    assert "SWIN" in cfg.MODEL
