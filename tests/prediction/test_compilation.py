"""Compiled models against themselves: the same instances, one graph for all sizes."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances
from small_models import random_image, small_config, small_model
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from isda.meta_arch import ISTR
from isda.modeling.folding import fold_norms
from isda.modeling.refinement import build_pooler
from isda.prediction.compilation import compile_inference
from isda.prediction.predictor import Predictor

SIZES = {
    "isda": [(131, 170), (230, 97)],
    "isda_boxes": [(131, 170), (230, 97), (90, 128)],  # the last has fewer tokens than queries
    "istr": [(131, 170), (230, 97)],
    "solov2": [(131, 170), (230, 97)],
}
every = pytest.mark.parametrize("name", ["isda", "isda_boxes", "istr", "solov2"])


@pytest.fixture(autouse=True)
def nothing_compiled_before(monkeypatch):
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pages of it
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def instances(model: nn.Module, *sizes: tuple[int, int]) -> list[Instances]:
    """What the model finds in a batch of images of these sizes."""
    batch = [{"image": random_image(*size).permute(2, 0, 1)} for size in sizes]
    with torch.no_grad():
        return [output["instances"] for output in model(batch)]


def assert_same(found: list[Instances], expected: list[Instances]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other) > 3
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=0)
        assert torch.equal(one.pred_classes, other.pred_classes)
        torch.testing.assert_close(
            one.pred_boxes.tensor, other.pred_boxes.tensor, atol=1e-2, rtol=0
        )
        differing = (one.pred_masks != other.pred_masks).flatten(1).sum(dim=1)
        assert (differing <= 0.001 * other.pred_masks.flatten(1).sum(dim=1)).all()


@pytest.mark.slow
@every
def test_one_graph_finds_the_same_at_several_sizes(name):
    """Through autograd's tracing, which takes apart what is written in place."""
    model = fold_norms(small_model(name))
    first, *others = SIZES[name]
    expected = [found for size in SIZES[name] for found in instances(model, size)]
    counter = CompileCounterWithBackend("aot_eager")
    compile_inference(model, backend=counter, fullgraph=True)
    assert_same(instances(model, first), expected[:1])
    compiled = counter.frame_count
    assert_same([found for size in others for found in instances(model, size)], expected[1:])
    assert counter.frame_count == compiled > 0


@pytest.mark.slow
def test_batches_of_several_sizes_are_compiled_too():
    model = small_model("isda")
    sizes = [(131, 170), (96, 180)]
    expected = instances(model, *sizes)
    compile_inference(model, backend="eager", fullgraph=True)
    assert_same(instances(model, *sizes), expected)


def test_a_copy_is_compiled_with_its_own_weights():
    model = compile_inference(small_model("isda"), backend="eager")
    copied = copy.deepcopy(model)
    assert copied.predict.__self__ is copied
    assert copied.predict.__func__ is model.predict.__func__ is not type(model).predict


def test_other_models_of_the_class_stay_as_they_are():
    before = ISTR.predict, ROIPooler.forward
    compile_inference(small_model("istr"), backend="eager")
    other = small_model("istr")
    assert (ISTR.predict, ROIPooler.forward) == before
    assert "predict" not in vars(other) and type(other.refinement.pooler) is ROIPooler


def test_other_architectures_are_refused():
    with pytest.raises(ValueError, match="Linear cannot be compiled .* only ISDA, ISTR.* can"):
        compile_inference(nn.Linear(1, 1))


def test_a_missing_compiler_is_told_before_minutes_of_tracing(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    model = small_model("isda")
    with pytest.raises(FileNotFoundError, match=r"needs a C\+\+ compiler .* no no-such-compiler"):
        compile_inference(model)
    compile_inference(model, backend="eager")


# --- regions of boxes as one operator


def regions() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Levels of two images, and boxes of all levels' sizes."""
    generator = torch.Generator().manual_seed(0)
    levels = [torch.rand(2, 3, 64 // n, 96 // n, generator=generator) for n in (1, 2, 4, 8)]
    corners = torch.rand(2, 9, 2, generator=generator) * torch.tensor([384.0, 256.0])
    sides = 2 ** torch.linspace(2, 10, 9)[:, None].expand(2, 9, 1)
    return levels, torch.cat([corners, corners + sides], dim=-1)


def test_regions_are_detectron2s_with_gradients_and_without():
    levels, boxes = regions()
    pooler = compile_inference(small_model("istr"), backend="eager").refinement.pooler
    original = build_pooler([4, 8, 16, 32], pooler.output_size[0])
    expected = original(levels, [Boxes(of_image) for of_image in boxes])
    with torch.no_grad():
        assert torch.equal(pooler(levels, [Boxes(of_image) for of_image in boxes]), expected)
    levels[1].requires_grad_()
    found = pooler(levels, [Boxes(of_image) for of_image in boxes])
    assert torch.equal(found, expected)
    found.sum().backward()
    assert levels[1].grad.any()


def test_operator_of_regions_is_registered_right():
    levels, boxes = regions()
    torch.library.opcheck(torch.ops.isda.pool_regions.default, (levels, boxes, 7))


# --- the predictor


def saved(name: str, folder: Path) -> CfgNode:
    """The config of a small model and its weights."""
    model = small_model(name)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    return small_config(name, "MODEL.WEIGHTS", str(folder / "model.pth"))


def test_predictor_compiles_when_told(tmp_path):
    cfg = saved("isda", tmp_path)
    assert "predict" in vars(Predictor(cfg, compile=True).model)
    assert "predict" not in vars(Predictor(cfg).model)


@pytest.mark.slow
def test_predictor_finds_the_same_in_half_precision(tmp_path):
    """With its convolutions and norms folded."""
    cfg = saved("isda", tmp_path)
    cfg.defrost()
    cfg.TEST.AMP.ENABLED, cfg.TEST.AMP.IF_SLOWER = True, "keep"
    image = random_image(131, 170).numpy()
    expected, compiled = Predictor(cfg)(image), Predictor(cfg)
    compile_inference(compiled.model, backend="eager", fullgraph=True)
    assert_same([compiled(image)], [expected])
