"""Graphs of torch.export and ONNX against the models that they come from."""

import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from isda import export
from isda.engine.setup import load_config

ROOT = Path(__file__).resolve().parents[1]
SHAPES = ROOT / "configs/shapes"
SIZES = [(96, 128), (131, 170), (310, 97)]  # with and without padding; none is the example's
SMALL = {
    "isda": [
        *("MODEL.ISDA.HIDDEN_DIM", "32", "MODEL.ISDA.ENCODER_LAYERS", "1"),
        *("MODEL.ISDA.DECODER_LAYERS", "1", "MODEL.ISDA.NUM_CLASSES", "3"),
        *("MODEL.ISDA.MASK_HEAD_DIM", "32", "MODEL.ISDA.MASK_DIM", "32"),
    ],
    "istr": [
        *("MODEL.ISTR.NUM_STEPS", "2", "MODEL.ISTR.NUM_CLASSES", "3"),
        *("MODEL.ISTR.HIDDEN_DIM", "32", "MODEL.FPN.OUT_CHANNELS", "32"),
        *("MODEL.ISTR.FEEDFORWARD_DIM", "32", "MODEL.ISTR.DYNAMIC_DIM", "8"),
    ],
}
NARROW = ["MODEL.RESNETS.DEPTH", "10", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8"]
INFO = {"names": ["a", "b", "c"], "min_size": 128, "max_size": 256, "mask_threshold": 0.5}


def small_model(name: str) -> nn.Module:
    """As if trained: a fresh model's scores, masks and sampling points are all alike."""
    opts = ["MODEL.DEVICE", "cpu", *NARROW, "TEST.DETECTIONS_PER_IMAGE", "12", *SMALL[name]]
    torch.manual_seed(0)
    model = build_model(load_config(str(SHAPES / f"{name}_tiny.yaml"), opts)).eval()
    torch.manual_seed(1)
    for key, parameter in model.named_parameters():
        if "sampling_offsets" in key or "attention_weights" in key:
            nn.init.normal_(parameter, std=0.3)
        elif key in ("instance_head.classes.weight", "queries.features.weight"):
            nn.init.normal_(parameter, std=0.5)
        elif key in ("instance_head.kernels.4.weight", "queries.boxes.weight"):
            parameter.data += 0.3 * torch.randn_like(parameter)
        elif key.endswith(("classes.bias", "masks.bias")):
            nn.init.normal_(parameter)
    return model


def random_image(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def isda():
    model = small_model("isda")
    return model, export.export_program(export.exportable(model, "BGR"))


def compare(model: nn.Module, outputs: list[torch.Tensor], image: torch.Tensor, at) -> None:
    """What the model returns are the first of the graph's instances, which never end."""
    bgr = image.flip(2).permute(2, 0, 1)
    with torch.no_grad():
        (expected,) = model([{"image": bgr, "height": image.shape[0], "width": image.shape[1]}])
    expected = expected["instances"]
    scores, classes, boxes, masks = outputs
    assert masks.shape == (len(scores), *image.shape[:2])
    found = scores > 0
    assert len(expected) == found.sum() > 3
    torch.testing.assert_close(scores[found], expected.scores, atol=1e-5, rtol=0)
    assert torch.equal(classes[found], expected.pred_classes)
    torch.testing.assert_close(boxes[found], expected.pred_boxes.tensor, atol=1e-3, rtol=0)
    differing = (at(masks[found], 0.5) != expected.pred_masks).flatten(1).sum(dim=1)
    areas = expected.pred_masks.flatten(1).sum(dim=1)
    assert (differing <= 0.001 * areas).all()
    assert not masks[~found].gt(0.5).any() and not boxes[~found].any()


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_graph_of_isda_agrees_with_the_model_at_every_size(isda, size):
    model, program = isda
    image = random_image(*size)
    compare(model, program.module()(image), image, torch.gt)


@pytest.mark.slow
def test_graph_of_isda_is_of_pytorchs_own_operators(isda):
    model, program = isda
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [name for name in names if "isda" in name]
    attentions = sum("sampling_offsets.weight" in name for name in model.state_dict())
    assert sum("grid_sampler" in name for name in names) == 4 * attentions  # one per level


@pytest.mark.slow
def test_model_is_left_as_it_was(isda):
    model, _ = isda
    assert all(parameter.requires_grad for parameter in model.transformer.parameters())
    assert torch.backends.mha.get_fastpath_enabled()


def onnx_session(program: torch.export.ExportedProgram, path: Path):
    """ONNX Runtime's, of the saved graph."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    export.save(program, path, INFO)
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


def compare_session(model: nn.Module, session, at) -> None:
    for size in SIZES:
        image = random_image(*size)
        outputs = session.run(list(export.OUTPUTS), {"image": image.numpy()})
        compare(model, [torch.from_numpy(output) for output in outputs], image, at)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime_agrees_with_isda_at_every_size(isda, tmp_path, monkeypatch, capsys):
    path = tmp_path / "isda.onnx"
    session = onnx_session(isda[1], path)
    compare_session(isda[0], session, torch.gt)
    graph = pytest.importorskip("onnx").load(path).graph
    assert {node.domain for node in graph.node} == {""}
    attentions = sum("sampling_offsets.weight" in name for name in isda[0].state_dict())
    assert sum(node.op_type == "GridSample" for node in graph.node) == 4 * attentions
    axes = [dim.dim_param or dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["height", "width", 3]
    assert json.loads(session.get_modelmeta().custom_metadata_map["isda"]) == INFO
    run_program_of_the_page(tmp_path, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.split()[0] in INFO["names"] for line in lines)


def run_program_of_the_page(folder: Path, monkeypatch) -> None:
    """docs/EXPORT.md's, on isda.onnx and photo.png in the folder."""
    text = (ROOT / "docs/EXPORT.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (program,) = [program for program in programs if "isda.onnx" in program]
    Image.fromarray(random_image(300, 200).numpy()).save(folder / "photo.png")
    monkeypatch.chdir(folder)
    exec(program.replace("score >= 0.5", "score >= 0.1"), {})


@pytest.fixture(scope="module")
def istr():
    model = small_model("istr")
    return model, export.export_program(export.exportable(model, "BGR"))


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_graph_of_istr_agrees_with_the_model_at_every_size(istr, size):
    image = random_image(*size)
    compare(istr[0], istr[1].module()(image), image, torch.ge)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime_agrees_with_istr_at_every_size(istr, tmp_path):
    """With padding too: ONNX rounds divisions of negative numbers otherwise than Python."""
    compare_session(istr[0], onnx_session(istr[1], tmp_path / "istr.onnx"), torch.ge)


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
