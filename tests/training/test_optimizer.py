import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from isda import add_isda_config
from isda.training.optimizer import build_gradient_clipper, build_optimizer


class Model(nn.Module):
    def __init__(self, with_fpn=False):
        super().__init__()
        body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.backbone = nn.ModuleDict({"bottom_up": body, "fpn": nn.Conv2d(4, 4, 1)})
        if not with_fpn:
            self.backbone = body
        self.attention = nn.ModuleDict(
            {"sampling_offsets": nn.Linear(4, 8), "value": nn.Linear(4, 4)}
        )
        self.reference_points = nn.Linear(4, 2)
        self.norm = nn.LayerNorm(4)
        self.shared = self.attention["value"]  # a second name for the same parameters
        self.norm.bias.requires_grad_(False)

    @property
    def bottom_up(self):
        return self.backbone["bottom_up"]


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_isda_config(cfg)
    cfg.SOLVER.BASE_LR = 1.0
    cfg.SOLVER.WEIGHT_DECAY = cfg.SOLVER.WEIGHT_DECAY_NORM = 0.01
    cfg.SOLVER.BACKBONE_MULTIPLIER, cfg.SOLVER.SAMPLING_MULTIPLIER = 0.1, 0.25
    return cfg


def settings(optimizer, model, key):
    """The setting of each parameter, by name."""
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: g[key] for g in optimizer.param_groups for p in g["params"]}


@pytest.mark.parametrize("name", ["ADAMW", "SGD"])
def test_each_trained_parameter_is_in_one_group(cfg, name):
    cfg.SOLVER.OPTIMIZER = name
    model = Model()
    optimizer = build_optimizer(cfg, model)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(grouped) == len(trained)
    assert set(grouped) == set(trained)


def test_learning_rates_of_backbone_and_sampling(cfg):
    model = Model()
    rates = settings(build_optimizer(cfg, model), model, "lr")
    expected = {"backbone": 0.1, "attention.sampling_offsets": 0.25, "reference_points": 0.25}
    for name, rate in rates.items():
        factor = [f for prefix, f in expected.items() if name.startswith(prefix)] or [1.0]
        assert rate == pytest.approx(factor[0]), name


def test_layers_of_an_fpn_learn_at_the_full_rate(cfg):
    model = Model(with_fpn=True)
    model.backbone.bottom_up = model.backbone["bottom_up"]
    rates = settings(build_optimizer(cfg, model), model, "lr")
    assert rates["backbone.fpn.weight"] == 1.0
    assert rates["backbone.bottom_up.0.weight"] == pytest.approx(0.1)


def test_weight_decay_of_norms_and_biases(cfg):
    cfg.SOLVER.WEIGHT_DECAY_NORM, cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.5, 0.25
    model = Model()
    decay = settings(build_optimizer(cfg, model), model, "weight_decay")
    assert decay["norm.weight"] == decay["backbone.1.weight"] == 0.5
    assert decay["reference_points.bias"] == 0.25
    assert decay["reference_points.weight"] == 0.01


def test_unknown_optimizer(cfg):
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER must be ADAMW or SGD, got 'LION'"):
        build_optimizer(cfg, Model())


def gradients(clip_type):
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([-4.0])
    norm = build_gradient_clipper(clip_type, 0.5)([*parameters, nn.Parameter(torch.zeros(1))])
    assert norm.item() == pytest.approx(5)  # before clipping, over everything
    return [g for p in parameters for g in p.grad.tolist()]


@pytest.mark.parametrize(
    ("clip_type", "expected"),
    [
        ("full_model", [0.3, 0, -0.4]),
        ("norm", [0.5, 0, -0.5]),
        ("value", [0.5, 0, -0.5]),
        (None, [3, 0, -4]),
    ],
)
def test_clipping(clip_type, expected):
    assert gradients(clip_type) == pytest.approx(expected, rel=1e-4)


def test_clipping_by_norm_looks_at_each_parameter_and_by_value_at_each_element():
    for clip_type, expected in (("norm", [0.3, 0.4]), ("value", [0.5, 0.5])):
        parameter = nn.Parameter(torch.zeros(2))
        parameter.grad = torch.tensor([3.0, 4.0])
        build_gradient_clipper(clip_type, 0.5)([parameter])
        assert parameter.grad.tolist() == pytest.approx(expected, rel=1e-4)


def test_unknown_clipping():
    with pytest.raises(ValueError, match="CLIP_TYPE must be one of full_model, norm, value"):
        build_gradient_clipper("global")
