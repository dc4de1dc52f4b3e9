"""SOLO's published checkpoints: names at full size, and numbers against the original's formulas."""

import pytest
import torch
import torch.nn.functional as F
from foreign_names import (
    Sizes,
    adelaidet_solov2,
    decoupled_solo,
    solo,
    solov2,
)

from isda.conversion import SOURCES, adapting, convert, detect
from isda.engine.setup import load_config
from isda.model_zoo import get_config_file
from isda.modeling.grid_head import SOLOv2Head

FILES = {
    "mmdetection's SOLO": ("solo", lambda: solo(Sizes())),
    "the authors' SOLO": ("solo", lambda: solo(Sizes(), later=False)),
    "Decoupled SOLO": ("decoupled-solo", lambda: decoupled_solo(Sizes())),
    "mmdetection's SOLOv2": ("solov2", lambda: solov2(Sizes())),
    "the authors' SOLOv2": ("solov2", lambda: solov2(Sizes(), later=False)),
}


def expected_weights(source, weights):
    cfg = load_config(get_config_file(SOURCES[source].config))
    for key, value in SOURCES[source].settings(weights).items():
        cfg.merge_from_list([key, value])
    return adapting.expected_weights(cfg)


@pytest.fixture(scope="module")
def models():
    """Names and shapes of our models, made once."""
    return {}


@pytest.mark.parametrize("name", FILES)
def test_every_name_is_accounted_for(name, models):
    source, shapes = FILES[name]
    weights = {n: torch.zeros(()).expand(shape) for n, shape in shapes().items()}
    assert detect(weights) == source
    if source not in models:
        models[source] = expected_weights(source, weights)
    result = convert(weights, source, models[source])
    assert result.is_complete, str(result)
    assert not result.fresh
    assert set(result.weights) == set(models[source])
    assert all("num_batches_tracked" in name for name in result.left_over)


def test_adelaidet(models):
    ours = models.get("solov2") or expected_weights("solov2", {})
    backbone = {n: tuple(x.shape) for n, x in ours.items() if n.startswith("backbone.")}
    shapes = adelaidet_solov2(backbone, Sizes())
    weights = {n: torch.zeros(()).expand(shape) for n, shape in shapes.items()}
    assert detect(weights) == "adelaidet-solov2"
    result = convert(weights, "adelaidet-solov2", ours)
    assert result.is_complete, str(result)
    assert set(result.weights) == set(ours)
    assert SOURCES["adelaidet-solov2"].settings(weights)["INPUT.FORMAT"] == "BGR"


def test_an_unknown_name_is_reported():
    weights = {"bbox_head.solo_kernel.weight": torch.zeros(1), "bbox_head.extra": torch.zeros(1)}
    result = convert(weights, "solov2", {"head.kernels.weight": torch.zeros(1)})
    assert result.unplaced == {"bbox_head.extra": "no such name is known"}


def test_kernels_are_those_of_the_original():
    """Every tensor of a converted kernel tower takes part, in the right place."""
    torch.manual_seed(0)
    theirs = {}
    for index, entering in enumerate((34, 64)):
        theirs[f"kernel_convs.{index}.conv.weight"] = torch.randn(64, entering, 3, 3) / 9
        theirs[f"kernel_convs.{index}.gn.weight"] = torch.rand(64) + 0.5
        theirs[f"kernel_convs.{index}.gn.bias"] = torch.randn(64)
    theirs |= {"solo_kernel.weight": torch.randn(8, 64, 3, 3), "solo_kernel.bias": torch.randn(8)}
    sizes = {"in_channels": 32, "num_classes": 2, "head_dim": 64, "num_convs": 2}
    head = SOLOv2Head(**sizes, kernel_dim=8, grid_sizes=[4])
    for name, tensor in theirs.items():
        _, ours = SOURCES["solov2"].rule(f"bbox_head.{name}")
        head.get_parameter(ours.removeprefix("head.")).data.copy_(tensor)
    level = torch.randn(1, 32, 6, 9)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 6), torch.linspace(-1, 1, 9), indexing="ij")
    on_grid = F.interpolate(
        torch.cat([level, x[None, None], y[None, None]], 1), (4, 4), mode="bilinear"
    )
    for index in range(2):
        on_grid = F.conv2d(on_grid, theirs[f"kernel_convs.{index}.conv.weight"], padding=1)
        norm = [theirs[f"kernel_convs.{index}.gn.{kind}"] for kind in ("weight", "bias")]
        on_grid = F.group_norm(on_grid, 32, *norm).relu()
    expected = F.conv2d(
        on_grid, theirs["solo_kernel.weight"], theirs["solo_kernel.bias"], padding=1
    )
    _, (masks,) = head([level], torch.zeros(1, 8, 4, 4))
    torch.testing.assert_close(
        masks.kernels, expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4
    )
