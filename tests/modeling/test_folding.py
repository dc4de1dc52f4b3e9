"""Norms folded into convolutions for inference."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from torch import nn

from isda.modeling.backbone.basic_resnet import build_basic_resnet_backbone
from isda.modeling.folding import FoldedConv2d, fold_norms


def randomise(norm):
    for tensor in (norm.weight.data, norm.running_var):
        tensor.uniform_(0.5, 2)
    for tensor in (norm.bias.data, norm.running_mean):
        tensor.normal_()


def resnet(norm="FrozenBN"):
    """With statistics that matter."""
    torch.manual_seed(0)
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NORM = 18, norm
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res5"]
    net = build_basic_resnet_backbone(cfg, ShapeSpec(channels=3))
    for module in net.modules():
        if isinstance(module, FrozenBatchNorm2d | nn.modules.batchnorm._BatchNorm):
            randomise(module)
    return net.eval()


@torch.no_grad()
def outputs(net):
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    return torch.cat([feature.flatten() for feature in net(image).values()])


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "SyncBN", "naiveSyncBN"])
def test_outputs_and_state_dict_stay(norm):
    net = resnet(norm)
    expected, state = outputs(net), copy.deepcopy(net.state_dict())
    assert fold_norms(net) is net
    folded = [module for module in net.modules() if isinstance(module, FoldedConv2d)]
    assert len(folded) == 20
    assert_same(outputs(net), expected)
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())


def test_no_norm_runs_where_nothing_is_differentiated():
    net = fold_norms(resnet())
    ran = []
    for module in net.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.register_forward_hook(lambda *_: ran.append(1))
    outputs(net)
    assert ran == []
    net(torch.rand(1, 3, 64, 64))  # with gradients
    assert len(ran) == 20


def test_training_is_as_without():
    plain, folded = resnet("BN"), fold_norms(resnet("BN"))
    outputs(folded)
    for net in (plain, folded):
        net.train()
        image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
        sum(feature.square().mean() for feature in net(image).values()).backward()
        torch.optim.SGD(net.parameters(), lr=0.01).step()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(folded.state_dict()[name], tensor), name
    assert not any("folded" in name for name, _ in folded.named_buffers())
    assert_same(outputs(folded.eval()), outputs(plain.eval()))


def test_folded_weights_follow_loaded_and_copied_ones():
    net, other = fold_norms(resnet()), resnet()
    for parameter in other.parameters():
        parameter.data.mul_(1.1)
    before = outputs(net)
    net.load_state_dict(other.state_dict())
    assert not torch.allclose(outputs(net), before, rtol=1e-2)
    assert_same(outputs(net), outputs(other))
    assert_same(outputs(copy.deepcopy(net)), outputs(other))
    assert_same(outputs(net.double().float()), outputs(other))


def test_other_norms_and_biases():
    torch.manual_seed(0)
    biased = Conv2d(3, 4, 3, norm=FrozenBatchNorm2d(4), activation=torch.relu)
    randomise(biased.norm)
    grouped = Conv2d(4, 4, 1, norm=nn.GroupNorm(2, 4))
    net = nn.Sequential(biased, grouped, Conv2d(4, 2, 1)).eval()
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        expected = net(image)
        fold_norms(net)
        assert [isinstance(conv, FoldedConv2d) for conv in net] == [True, False, False]
        assert_same(net(image), expected)
