"""What models compute in: TEST.AMP reaches what infers, norms are folded, slow types avoided."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils.env import seed_all_rng
from torch import nn
from toys import same_weights, toy_config, toy_data

from isda import Predictor, model_zoo
from isda.engine import precision
from isda.engine.trainer import Trainer
from isda.modeling.folding import FoldedConv2d

NUCLEI = Path(__file__).parents[2] / "datasets/nuclei_mini/images/06c779330d6d3447.png"


KEEP = ("SOLVER.AMP.IF_SLOWER", "keep", "TEST.AMP.IF_SLOWER", "keep")
HALF = ("SOLVER.AMP.ENABLED", True, "TEST.AMP.ENABLED", True)


@pytest.fixture
def processor(monkeypatch):
    """Sets whether half precision is slower from here on, whatever the machine is."""

    def set_speed(is_slower):
        speed = precision.Speed(is_slower, "it takes its time")
        monkeypatch.setattr(precision, "speed_of", lambda dtype, device_type: speed)
        precision._say.cache_clear()

    yield set_speed
    precision._say.cache_clear()


def watched(model):
    """The types that convolutions and linear layers of a model compute in, as they occur."""
    seen = set()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    return seen


@pytest.mark.parametrize("enabled", [True, False])
def test_evaluation_and_prediction(tmp_path, enabled):
    toy_data(tmp_path)
    cfg = toy_config(tmp_path / "out", "TEST.AMP.ENABLED", enabled, *KEEP)
    model = Trainer.build_model(cfg).eval()
    seen = watched(model)
    Trainer.test(cfg, model)
    assert (torch.bfloat16 in seen) == enabled
    assert not torch.is_autocast_enabled("cpu")

    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    predictor = Predictor(cfg)
    seen = watched(predictor.model)
    found = predictor(np.zeros((40, 60, 3), np.uint8))
    assert (torch.bfloat16 in seen) == enabled
    assert found.scores.dtype == torch.float32


@pytest.mark.parametrize("meta_architecture", ["ISDA", "ISTR"])
def test_half_precision_of_both_models(tmp_path, meta_architecture):
    toy_data(tmp_path)
    overrides = ("MODEL.META_ARCHITECTURE", meta_architecture, "TEST.AMP.ENABLED", True, *KEEP)
    if meta_architecture == "ISTR":
        overrides += ("MODEL.BACKBONE.NAME", "build_toy_fpn_backbone")
    cfg = toy_config(tmp_path / "out", *overrides)
    model = Trainer.build_model(cfg)
    results = Trainer.test(cfg, model)
    assert set(results) == {"bbox", "segm"}
    assert model.training  # as before


def test_predictors_fold_norms(tmp_path):
    toy_data(tmp_path)
    resnet = ("MODEL.BACKBONE.NAME", "build_basic_resnet_backbone", "MODEL.RESNETS.DEPTH", 10)
    width = ("MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8)
    features = ("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"])
    norm = ("MODEL.RESNETS.NORM", "FrozenBN")
    cfg = toy_config(tmp_path / "out", *resnet, *width, *features, *norm)
    model = Trainer.build_model(cfg)
    assert any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    predictor = Predictor(cfg)
    assert any(isinstance(module, FoldedConv2d) for module in predictor.model.modules())
    assert list(predictor.model.state_dict()) == list(model.state_dict())


def test_the_shipped_model_finds_the_same():
    """Nuclei are small: a pixel more or less at the border counts, so the median has to do."""
    found = []
    for enabled in (False, True):
        cfg = model_zoo.get_config("nuclei/isda_boxes_mobilenet_v2", trained=True)
        cfg.defrost()
        cfg.MODEL.DEVICE, cfg.TEST.AMP.ENABLED = "cpu", enabled
        cfg.TEST.AMP.IF_SLOWER = "keep"
        found.append(Predictor(cfg, threshold=0.5)(NUCLEI))
    exact, reduced = (prediction.pred_masks.flatten(1).float() for prediction in found)
    assert len(exact) > 5
    shared = exact @ reduced.T
    ious = shared / (exact.sum(1)[:, None] + reduced.sum(1) - shared)
    best, match = ious.max(dim=1)
    assert best.median() > 0.95
    torch.testing.assert_close(found[1].scores[match], found[0].scores, rtol=0, atol=0.1)


def train(cfg, resume=False):
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return torch.load(f"{cfg.OUTPUT_DIR}/model_final.pth")


def test_a_slow_type_gives_way_to_float32_with_a_line(tmp_path, processor, caplog):
    toy_data(tmp_path)
    processor(True)
    exact = train(toy_config(tmp_path / "exact", "SOLVER.MAX_ITER", 2))
    assert "slower" not in caplog.text
    switched = train(toy_config(tmp_path / "half", "SOLVER.MAX_ITER", 2, *HALF))
    assert same_weights(exact["model"], switched["model"])
    assert switched["trainer"]["precision"] == {"asked": "bfloat16", "taken": "float32"}
    for key in ("SOLVER.AMP", "TEST.AMP"):  # once each, whatever is evaluated
        assert caplog.text.count(f"{key}: bfloat16 is slower than float32 on this machine") == 1
    assert "(it takes its time), so float32 is taken (SOLVER.AMP.IF_SLOWER keep" in caplog.text


@pytest.mark.parametrize("keeps", [False, True])
def test_half_precision_is_taken_where_it_pays_or_is_kept(tmp_path, processor, caplog, keeps):
    toy_data(tmp_path)
    processor(keeps)
    exact = train(toy_config(tmp_path / "exact", "SOLVER.MAX_ITER", 2))
    half = train(toy_config(tmp_path / "half", "SOLVER.MAX_ITER", 2, *HALF, *KEEP * keeps))
    assert not same_weights(exact["model"], half["model"])
    assert half["trainer"]["precision"] == {"asked": "bfloat16", "taken": "bfloat16"}
    assert ("SOLVER.AMP.IF_SLOWER keeps it" in caplog.text) == keeps


@pytest.mark.parametrize("slow_first", [True, False])
def test_a_training_goes_on_as_it_began_on_another_machine(tmp_path, processor, caplog, slow_first):
    toy_data(tmp_path)
    dtype = ("SOLVER.AMP.DTYPE", "float16")  # which has a gradient scaler to go on with
    processor(slow_first)
    straight = train(toy_config(tmp_path / "straight", *HALF, *dtype))
    resumed = tmp_path / "resumed"
    half_way = toy_config(resumed, *HALF, *dtype, "SOLVER.CHECKPOINT_PERIOD", 3)
    seed_all_rng(half_way.SEED)
    trainer = Trainer(half_way)
    trainer.register_hooks([StopAfter(3)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    caplog.clear()
    processor(not slow_first)
    found = train(toy_config(resumed, *HALF, *dtype), resume=True)
    assert same_weights(straight["model"], found["model"])
    assert found["trainer"]["precision"] == straight["trainer"]["precision"]
    began = "float32 instead of float16, as it began" if slow_first else "float16, as it began"
    assert f"the training goes on in {began}" in caplog.text


class StopAfter(HookBase):
    def __init__(self, steps):
        self.steps = steps

    def after_step(self):
        if self.trainer.iter + 1 == self.steps:
            raise KeyboardInterrupt


def test_what_is_asked_for_now_counts_more_than_how_it_began(tmp_path, processor, caplog):
    toy_data(tmp_path)
    processor(False)
    train(toy_config(tmp_path, *HALF, "SOLVER.MAX_ITER", 2))
    found = train(toy_config(tmp_path, "SOLVER.MAX_ITER", 4), resume=True)
    assert found["trainer"]["precision"] == {"asked": "float32", "taken": "float32"}
    assert "the training goes on in float32; it began in bfloat16" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_slow_is_measured(monkeypatch, dtype):
    """By a clock of our own: a thousand times slower, or twice as fast, in half precision."""
    precision.speed_of.cache_clear()
    for half, slower in ((1000.0, True), (0.5, False), (1.1, False), (1.6, True)):
        now = [0.0]

        def call(half=half, now=now):
            now[0] += half if torch.is_autocast_enabled("cpu") else 1.0

        monkeypatch.setattr(precision, "_probes", lambda call=call: {"product": call})
        monkeypatch.setattr(precision.time, "perf_counter", lambda now=now: now[0])
        speed = precision.speed_of.__wrapped__(dtype, "cpu")
        assert speed.is_slower == slower
        assert speed.reason == f"a product takes {half:.1f} times as long as in float32"


def test_emulation_is_recognised():
    """On this machine, if PyTorch says that it has no instructions for the type."""
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has them")
    speed = precision.speed_of(torch.bfloat16, "cpu")
    assert speed.is_slower and "a convolution takes" in speed.reason


@pytest.mark.parametrize(
    ("capability", "dtype", "slower"),
    [
        ((7, 5), torch.bfloat16, True),
        ((8, 0), torch.bfloat16, False),
        ((6, 1), torch.float16, True),
        ((7, 0), torch.float16, False),
    ],
)
def test_gpus_are_known_by_their_capability(monkeypatch, capability, dtype, slower):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert precision.speed_of.__wrapped__(dtype, "cuda").is_slower == slower
