"""Which modules make a component, and whose time is whose."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from isda.benchmarking.components import (
    InferenceTimer,
    TrainingTimer,
    component_of,
    first_modules,
    tensor_bytes,
)
from isda.benchmarking.timing import Timeline
from isda.benchmarking.workload import Training, load_config


class Clock:
    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


class Sleeper(nn.Module):
    """Takes its own time before and after that of the modules inside it."""

    def __init__(self, clock, seconds, **inner):
        super().__init__()
        self.clock, self.seconds = clock, seconds
        for name, module in inner.items():
            self.add_module(name, module)

    def forward(self, *args):
        self.clock.time += self.seconds
        for module in self.children():
            module(*args)
        self.clock.time += self.seconds
        return args


class Toy(nn.Module):
    """What takes how long: 0.5 before and between, 7 afterwards."""

    device = torch.device("cpu")

    def __init__(self, clock, with_criterion):
        super().__init__()
        self.clock = clock
        self.backbone = Sleeper(clock, 1.0)
        step = Sleeper(clock, 3.0, class_tower=Sleeper(clock, 10.0))
        self.refinement = Sleeper(clock, 2.0, steps=nn.ModuleList([step]))
        self.refinement.forward = lambda *args: step(*args)
        self.heads = Sleeper(clock, 4.0)
        if with_criterion:
            self.criterion = Sleeper(clock, 20.0)
        self.weight = nn.Parameter(torch.ones(3))

    def targets(self, inputs):
        self.clock.time += 40.0

    def forward(self, inputs):
        self.clock.time += 0.5
        if self.training and hasattr(self, "criterion"):
            self.targets(inputs)
        self.backbone(inputs)
        self.clock.time += 0.5
        self.heads(self.refinement(inputs))
        self.clock.time += 7.0
        if not self.training:
            return [{"instances": [0] * 5}]
        if hasattr(self, "criterion"):
            self.criterion(inputs)
        return {"loss": (self.weight * self.weight).sum(), "other": self.weight.sum()}


@pytest.fixture
def clock():
    return Clock()


def test_components_take_their_own_time_and_add_up(clock):
    toy = Toy(clock, with_criterion=False).eval()
    timer = InferenceTimer(toy, Timeline(toy.device, clock), [{}])
    expected = {
        "other": 1.0,
        "backbone": 2.0,
        "transformer": 6.0,
        "heads": 28.0,  # the tower inside the refinement, and the module of this name
        "postprocessing": 7.0,
    }
    for _ in range(2):
        before = clock.time
        seconds = timer()
        assert seconds == pytest.approx(expected)
        assert sum(seconds.values()) == pytest.approx(clock.time - before)
    assert timer.instances == 5
    timer.remove()
    timer()
    assert timer.timeline.seconds() == {"postprocessing": 44.0}


@pytest.mark.parametrize("with_criterion", [True, False])
def test_phases_of_a_training_step(clock, with_criterion):
    toy = Toy(clock, with_criterion).train()

    def clip(parameters):
        assert [p.grad.tolist() for p in parameters] == [[3.0] * 3]  # of w² + w at 1
        clock.time += 0.25

    training = Training(toy, torch.optim.AdamW(toy.parameters(), lr=1.0), clip, None)
    toy.weight.register_hook(lambda grad: setattr(clock, "time", clock.time + 100.0))
    timer = TrainingTimer(training, Timeline(toy.device, clock), [{}])
    seconds = timer()
    forward = {"forward": 37.0, "criterion": 87.0} if with_criterion else {"forward": 44.0}
    assert seconds == pytest.approx({**forward, "backward": 100.0, "optimiser": 0.25})
    assert toy.weight.tolist() == [1.0] * 3  # steps cost the same, because nothing is learnt
    assert toy.weight.grad is None


def test_the_optimiser_has_its_state_before_the_first_step(clock):
    toy = Toy(clock, with_criterion=True)
    optimizer = torch.optim.AdamW(toy.parameters())
    assert tensor_bytes(toy, optimizer) == 12
    TrainingTimer(Training(toy, optimizer, lambda _: None, None), Timeline(toy.device, clock), [{}])
    assert tensor_bytes(toy, optimizer) == 12 + 2 * 12 + 4  # two moments and a step's number


FIRST_MODULES = {
    "shapes/isda_tiny": {
        "backbone": "backbone",
        "neck": "neck",
        "transformer": "transformer",
        "instance_head": "heads",
        "mask_feature_head": "heads",
    },
    "nuclei/isda_boxes_tiny": {
        "backbone": "backbone",
        "neck": "neck",
        "transformer": "transformer",
        "denoising": "transformer",
        "instance_head": "heads",
        "mask_feature_head": "heads",
    },
    "shapes/mask_rcnn_tiny": {
        "backbone": "neck",
        "backbone.bottom_up": "backbone",
        "proposal_generator": "heads",
        "roi_heads": "heads",
    },
}


@pytest.mark.parametrize("config", FIRST_MODULES)
def test_every_model_has_components(config):
    model = build_model(load_config(config, ["MODEL.DEVICE", "cpu"]))
    assert first_modules(model) == FIRST_MODULES[config]


def test_components_of_istr():
    model = build_model(load_config("shapes/istr_tiny", ["MODEL.DEVICE", "cpu"]))
    first = first_modules(model)
    parts = {
        "backbone.fpn_lateral2.weight": "neck",
        "backbone.bottom_up.stem.conv1.weight": "backbone",
        "queries.boxes.weight": "transformer",
        "refinement.steps.1.self_attn.in_proj_weight": "transformer",
        "refinement.steps.1.mask_tower.0.weight": "heads",
        "refinement.steps.1.masks.bias": "heads",
    }
    names = dict(model.named_parameters())
    assert all(name in names for name in parts)
    assert {name: component_of(name, first) for name in parts} == parts
    assert "other" not in {component_of(name, first) for name in names}
