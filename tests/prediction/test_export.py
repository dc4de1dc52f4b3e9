"""Graphs of torch.export and ONNX against the models that they come from."""

import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from small_models import random_image, small_model
from torch import Tensor, nn

from isda.prediction import export
from isda.prediction.compilation import compile_inference

ROOT = Path(__file__).resolve().parents[2]
# With and without padding; none is the example's; the first has fewer tokens than isda_boxes has
# queries.
SIZES = [(96, 128), (131, 170), (310, 97)]
INFO = {"names": ["a", "b", "c"], "min_size": 128, "max_size": 256, "mask_threshold": 0.5}
LARGEST_COMPONENT = "isda, the largest component of each mask"
# How a pixel compares with the threshold.
IN_MASK = {"isda": torch.gt, LARGEST_COMPONENT: torch.gt, "isda_boxes": torch.gt, "istr": torch.ge}

# Of scores. Layers of random weights move boxes, and steep ellipses with them, by what rounding
# changes: 1.3e-4 was seen.
TOLERANCE = dict.fromkeys(IN_MASK, 1e-5) | {"isda_boxes": 1e-3}

Graph = Callable[[Tensor], Sequence[Tensor]]
every = pytest.mark.parametrize("name", IN_MASK)


class Exported(NamedTuple):
    model: nn.Module
    program: torch.export.ExportedProgram


@functools.cache
def exported(name: str) -> Exported:
    model = small_model("isda" if name == LARGEST_COMPONENT else name)
    model.keep_largest_component = name == LARGEST_COMPONENT
    return Exported(model, export.export_program(export.exportable(model, "BGR")))


@pytest.fixture(scope="module")
def onnx_path(tmp_path_factory) -> Callable[[str], Path]:
    """The saved graph of a model, by its name."""
    folder = tmp_path_factory.mktemp("onnx")

    @functools.cache
    def path(name: str) -> Path:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is not installed")
        export.save(exported(name).program, folder / f"{name}.onnx", INFO)
        return folder / f"{name}.onnx"

    return path


def onnx_session(path: Path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


def assert_agrees(name: str, graph: Graph, size: tuple[int, int]) -> None:
    """What the model returns are the first of the graph's instances, which never end."""
    image = random_image(*size)
    bgr = image.flip(2).permute(2, 0, 1)
    with torch.no_grad():
        (output,) = exported(name).model([{"image": bgr, "height": size[0], "width": size[1]}])
    expected = output["instances"]
    scores, classes, boxes, masks = graph(image)
    assert masks.shape == (len(scores), *size)
    found = scores > 0
    assert len(expected) == found.sum() > 3
    torch.testing.assert_close(scores[found], expected.scores, atol=TOLERANCE[name], rtol=0)
    assert torch.equal(classes[found], expected.pred_classes)
    torch.testing.assert_close(boxes[found], expected.pred_boxes.tensor, atol=1e-3, rtol=0)
    differing = (IN_MASK[name](masks[found], 0.5) != expected.pred_masks).flatten(1).sum(dim=1)
    areas = expected.pred_masks.flatten(1).sum(dim=1)
    assert (differing <= 0.001 * areas).all()
    assert not masks[~found].gt(0.5).any() and not boxes[~found].any()


@pytest.mark.slow
@every
@pytest.mark.parametrize("size", SIZES)
def test_graph_agrees_with_the_model_at_every_size(name, size):
    assert_agrees(name, exported(name).program.module(), size)


@pytest.mark.slow
def test_graph_of_isda_is_of_pytorchs_own_operators():
    model, program = exported("isda")
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [name for name in names if "isda" in name]
    attentions = sum("sampling_offsets.weight" in name for name in model.state_dict())
    assert sum("grid_sampler" in name for name in names) == 4 * attentions  # one per level


@pytest.mark.slow
def test_model_is_left_as_it_was():
    model, _ = exported("isda")
    assert all(parameter.requires_grad for parameter in model.transformer.parameters())
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.slow
@every
@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime_agrees_with_the_model_at_every_size(name, onnx_path):
    """With padding too: ONNX rounds divisions of negative numbers otherwise than Python."""
    session = onnx_session(onnx_path(name))

    def graph(image: Tensor) -> list[Tensor]:
        outputs = session.run(list(export.OUTPUTS), {"image": image.numpy()})
        return [torch.from_numpy(output) for output in outputs]

    for size in SIZES:
        assert_agrees(name, graph, size)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_file_has_open_sizes_onnx_s_own_operators_and_a_description(onnx_path):
    path = onnx_path("isda")
    graph = pytest.importorskip("onnx").load(path).graph
    assert {node.domain for node in graph.node} == {""}
    model = exported("isda").model
    attentions = sum("sampling_offsets.weight" in name for name in model.state_dict())
    assert sum(node.op_type == "GridSample" for node in graph.node) == 4 * attentions
    axes = [dim.dim_param or dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["height", "width", 3]
    metadata = onnx_session(path).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["isda"]) == INFO


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_program_of_the_page_runs(onnx_path, tmp_path, monkeypatch, capsys):
    """docs/EXPORT.md's for ONNX; tests/cli/test_export.py runs the one for .pt2."""
    text = (ROOT / "docs/EXPORT.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (program,) = [program for program in programs if "isda.onnx" in program]
    (tmp_path / "isda.onnx").write_bytes(onnx_path("isda").read_bytes())
    Image.fromarray(random_image(300, 200).numpy()).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    exec(program.replace("score >= 0.5", "score >= 0.1"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.split()[0] in INFO["names"] for line in lines)


def test_compiled_model_is_exported_as_it_was_before():
    """The compiler would meet itself; shown by what the copy calls."""
    model = small_model("istr")
    compile_inference(model, backend="eager")
    copied = export.exportable(model, "BGR").model
    assert "predict" in vars(model) and copied.predict.__func__ is type(model).predict


# --- what cannot be


def test_other_models_are_referred_to_detectron2():
    with pytest.raises(export.ExportError, match=r"take Detectron2's own tools/deploy/export_mod"):
        export.exportable(nn.Linear(1, 1), "BGR")


def test_backbone_of_one_size_is_refused(monkeypatch):
    model = small_model("isda")
    square = property(lambda self: {"square_size": 1024})
    monkeypatch.setattr(type(model.backbone), "padding_constraints", square)
    with pytest.raises(export.ExportError, match="needs square images of one size"):
        export.exportable(model, "RGB")


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(export.ExportError, match=r"m.pb: the name must end in .pt2 or .onnx"):
        export.save(None, tmp_path / "m.pb", INFO)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(export.ExportError, match="writing ONNX needs onnx and onnxscript: pip in"):
        export.save(None, tmp_path / "m.onnx", INFO)
