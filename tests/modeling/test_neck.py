import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec

from isda.modeling.neck import Neck

NAMES = ["res2", "res3", "res4", "res5"]


def plain_shapes(channels=(8, 12, 16, 20)):
    return {
        name: ShapeSpec(channels=c, stride=4 * 2**i)
        for i, (name, c) in enumerate(zip(NAMES, channels, strict=True))
    }


def pyramid_shapes():
    return {f"p{i}": ShapeSpec(channels=256, stride=2**i) for i in range(2, 7)}


def random_features(shapes, height=64, width=128, batch=2):
    torch.manual_seed(0)
    return {
        name: torch.randn(batch, s.channels, height // s.stride, width // s.stride)
        for name, s in shapes.items()
    }


def test_parameter_count_on_resnet50():
    neck = Neck(plain_shapes((256, 512, 1024, 2048)), in_features=NAMES, hidden_dim=256)
    assert sum(p.numel() for p in neck.parameters()) == 5_704_192


def test_initialisation():
    neck = Neck(plain_shapes((256, 512, 1024, 2048)), in_features=NAMES, hidden_dim=256)
    for conv in [*neck.projections, neck.extra]:
        assert conv.bias is None
        fan_in, fan_out = conv.weight[0].numel(), conv.weight[:, 0].numel()
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert conv.weight.abs().max() <= bound
        assert conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_levels_of_a_plain_backbone():
    shapes = plain_shapes()
    neck = Neck(shapes, in_features=NAMES, hidden_dim=64)
    features = random_features(shapes)
    levels = neck(features)
    weights = [conv.weight for conv in neck.projections]
    for level, name, weight in zip(levels, NAMES, weights, strict=False):
        expected = torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], features[name])
        torch.testing.assert_close(level, F.group_norm(expected, 32), rtol=1e-4, atol=1e-5)
    from_c5 = F.conv2d(features["res5"], neck.extra.weight, stride=2, padding=1)
    torch.testing.assert_close(levels[4], F.group_norm(from_c5, 32), rtol=1e-4, atol=1e-5)
    assert [tuple(level.shape[-2:]) for level in levels] == [
        (16, 32),
        (8, 16),
        (4, 8),
        (2, 4),
        (1, 2),
    ]


def test_biases_start_at_zero_and_shift_the_level():
    shapes = plain_shapes()
    neck = Neck(shapes, in_features=NAMES, hidden_dim=64, bias=True)
    for conv in [*neck.projections, neck.extra]:
        assert conv.bias.count_nonzero() == 0
        torch.nn.init.normal_(conv.bias)
    features = random_features(shapes)
    weight, bias = neck.projections[0].weight[:, :, 0, 0], neck.projections[0].bias
    expected = torch.einsum("oc,bchw->bohw", weight, features["res2"]) + bias[:, None, None]
    torch.testing.assert_close(neck(features)[0], F.group_norm(expected, 32), rtol=1e-4, atol=1e-5)


def test_an_fpn_has_all_levels_already():
    shapes = pyramid_shapes()
    neck = Neck(shapes, in_features=list(shapes), hidden_dim=64)
    features = random_features(shapes)
    levels = neck(features)
    assert neck.extra is None
    assert len(levels) == 5
    weight = neck.projections[4].weight[:, :, 0, 0]
    expected = F.group_norm(torch.einsum("oc,bchw->bohw", weight, features["p6"]), 32)
    torch.testing.assert_close(levels[4], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("in_features", "hidden_dim", "message"),
    [
        (NAMES, 48, "hidden_dim must be a positive multiple of 32, .*got 48"),
        (NAMES, -32, "hidden_dim must be a positive multiple of 32, .*got -32"),
        (
            ["res2", "res3", "res4", "p5"],
            64,
            r"in_features names \['p5'\], but the backbone gives \['res2', 'res3'",
        ),
        (NAMES[1:], 64, r"have the strides \[8, 16, 32\]; they must be \[4, 8, 16, 32\]"),
        (NAMES[::-1], 64, r"have the strides \[32, 16, 8, 4\]"),
    ],
)
def test_messages(in_features, hidden_dim, message):
    with pytest.raises(ValueError, match=message):
        Neck(plain_shapes(), in_features=in_features, hidden_dim=hidden_dim)
