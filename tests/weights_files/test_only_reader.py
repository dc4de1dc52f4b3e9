"""That nothing but ``isda.weights_files`` unpickles what a user names: the code is looked through.

What is looked for are functions, of Python, PyTorch, NumPy and Detectron2, that execute what they
read; where they are called, under whatever name, and how.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ("projects/isda", "tools", "demo", "benchmarks", "train_net.py")

READERS = {
    *(f"pickle.{name}" for name in ("load", "loads", "Unpickler", "_Unpickler")),
    *(f"{module}.load" for module in ("cloudpickle", "dill", "joblib", "marshal", "jsonpickle")),
    *(f"{module}.loads" for module in ("cloudpickle", "dill", "marshal", "_pickle")),
    *("shelve.open", "pandas.read_pickle", "runpy.run_path", "eval", "exec"),
    *(f"torch.{name}" for name in ("load", "jit.load", "export.load", "package.PackageImporter")),
    *("torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.serialization.load"),
    *("torch.utils.model_zoo.load_url", "torch._inductor.aoti_load_package"),
    *("numpy.load", "numpy.lib.npyio.load", "scipy.io.loadmat"),
    *(f"yaml.{name}" for name in ("load", "full_load", "unsafe_load", "load_all", "Loader")),
    "detectron2.checkpoint.DetectionCheckpointer",
    "detectron2.config.LazyConfig",
    "detectron2.data.load_proposals_into_dataset",
    "detectron2.data.build.load_proposals_into_dataset",
    "detectron2.engine.DefaultPredictor",
    "fvcore.common.checkpoint.Checkpointer",
    "timm.create_model",
    "torchvision.models.get_model",
}
# Methods that do, of whatever they are.
METHODS = {"merge_from_file", "load_yaml_with_base", "from_pretrained", "get_state_dict"}
# Functions of Detectron2 that do if they are given a config, which may name files of proposals.
WITH_CONFIG = {
    "detectron2.data.build_detection_test_loader",
    "detectron2.data.build_detection_train_loader",
}

#: File, function, and the keyword arguments that make it harmless there.
ALLOWED = {
    ("projects/isda/weights_files/reading.py", "torch.load"): {"weights_only": True},
    # Its find_class is tested with the files.
    ("projects/isda/weights_files/pickled_data.py", "pickle.Unpickler"): {},
    ("projects/isda/data/formats/cellpose.py", "pickle.Unpickler"): {},
    ("projects/isda/modeling/mask_dictionary.py", "numpy.load"): {"allow_pickle": False},
    # Our Checkpointer replaces what reads; that it does is tested at the doors.
    ("projects/isda/checkpoint.py", "detectron2.checkpoint.DetectionCheckpointer"): {},
    ("projects/isda/engine/setup.py", "load_yaml_with_base"): {"allow_unsafe": False},
    # Under others_read_tensors_only(), which is tested at the doors.
    ("projects/isda/modeling/backbone/torch_backbone.py", "timm.create_model"): {},
    ("projects/isda/modeling/backbone/torch_backbone.py", "torchvision.models.get_model"): {},
    ("projects/isda/exported.py", "torch.export.load"): {},  # likewise
    # Detectron2's own configs, of its package.
    ("projects/isda/benchmarking/workload.py", "merge_from_file"): {},
}


def files() -> Iterator[Path]:
    for place in PLACES:
        path = ROOT / place
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


def full_names(tree: ast.AST) -> dict[str, str]:
    """What names of imports stand for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def full_name(node: ast.AST, names: dict[str, str]) -> str:
    """Of a name or an attribute of one, as ``numpy.load``; "" for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        before = full_name(node.value, names)
        return f"{before}.{node.attr}" if before else ""
    return ""


def mentions(code: str) -> Iterator[tuple[str, ast.Call | None]]:
    """Readers in a program: the name, and the call of it."""
    tree = ast.parse(code)
    names = full_names(tree)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        name = full_name(node, names)
        call = calls.get(id(node))
        if name in READERS:
            yield name, call
        elif isinstance(node, ast.Attribute) and node.attr in METHODS:
            yield node.attr, call
        elif name in WITH_CONFIG and call and full_name(call.args[0], names) in ("cfg", "config"):
            yield name, call


def faults(file: str, code: str) -> list[str]:
    """Readers that are not allowed in a file, or not as they are called there."""
    found = []
    for name, call in mentions(code):
        wanted = ALLOWED.get((file, name))
        keywords = {} if call is None else {k.arg: k.value for k in call.keywords}
        if wanted is None:
            found.append(f"{file}: {name}")
        for key, value in (wanted or {}).items():
            given = keywords.get(key)
            if not (isinstance(given, ast.Constant) and given.value is value):
                found.append(f"{file}: {name} without {key}={value}")
    return found


def test_nothing_else_reads():
    paths = {path.relative_to(ROOT).as_posix(): path.read_text() for path in files()}
    assert len(paths) > 150
    assert [fault for file, code in paths.items() for fault in faults(file, code)] == []
    used = {(file, name) for file, code in paths.items() for name, _ in mentions(code)}
    assert used == set(ALLOWED)


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "import torch as t\nread = t.load",
        "from torch import load as read\nread(f)",
        "def later():\n    import torch.serialization as s\n    s.load(f)",
        "from pickle import Unpickler\nclass Mine(Unpickler): pass",
        "import pickle\nwith open(f) as g: pickle.load(g)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import yaml\nyaml.load(f, yaml.Loader)",
        "cfg.merge_from_file(path)",
        "from detectron2.checkpoint import DetectionCheckpointer\nDetectionCheckpointer(m).load(p)",
        "from detectron2 import checkpoint\ncheckpoint.DetectionCheckpointer(m)",
        "import detectron2.engine as e\ne.DefaultPredictor(cfg)",
        "from detectron2.data import build_detection_test_loader\nbuild_detection_test_loader(cfg)",
        "from torch.hub import load_state_dict_from_url as fetch\nfetch(url)",
        "eval(text)",
    ],
)
def test_this_test_finds_them(code):
    assert faults("tools/any.py", code)
    assert faults("projects/isda/weights_files/reading.py", code)


@pytest.mark.parametrize(
    "code", ["torch.load(f, weights_only=True)", "json.load(f)", "model.eval()", "np.loadtxt(f)"]
)
def test_this_test_leaves_others_alone(code):
    code = f"import torch, json\nimport numpy as np\n{code}"
    assert faults("projects/isda/weights_files/reading.py", code) == []
