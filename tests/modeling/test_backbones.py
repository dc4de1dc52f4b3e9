"""Backbone builders: what they give, what they load, what they freeze, what they say."""

import hashlib
import importlib.util
import logging
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import nn

from isda import add_isda_config
from isda.modeling.backbone.layers import pad_like_tensorflow

WEIGHTS = Path(importlib.util.find_spec("isda").submodule_search_locations[0]) / "weights"
needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is optional and not installed"
)

SMALL_SWIN = ["MODEL.SWIN.EMBED_DIM", 24, "MODEL.SWIN.DEPTHS", [1, 1, 2, 1]]
SMALL_VIT = [
    *("MODEL.VIT.IMG_SIZE", 96, "MODEL.VIT.EMBED_DIM", 48, "MODEL.VIT.DEPTH", 2),
    *("MODEL.VIT.NUM_HEADS", 4, "MODEL.VIT.GLOBAL_BLOCKS", [1], "MODEL.VIT.WINDOW_SIZE", 4),
    *("INPUT.MAX_SIZE_TRAIN", 96, "INPUT.MAX_SIZE_TEST", 96),
]

SMALL_RESNET = [
    *("MODEL.RESNETS.DEPTH", 10, "MODEL.RESNETS.STEM_OUT_CHANNELS", 16),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 24, "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
]


def make_config(*overrides):
    cfg = get_cfg()
    add_isda_config(cfg)
    cfg.merge_from_list(["MODEL.BACKBONE.FREEZE_AT", 0, *overrides])
    return cfg


def make_backbone(builder, *overrides):
    return build_backbone(make_config("MODEL.BACKBONE.NAME", builder, *overrides))


def make_torch_backbone(name="resnet18", *overrides, **options):
    keys = [x for k, v in options.items() for x in (f"MODEL.TORCH_BACKBONE.{k}", v)]
    return make_backbone(
        "build_torch_backbone", "MODEL.TORCH_BACKBONE.NAME", name, *keys, *overrides
    )


C2_TO_C5 = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
P2_TO_P6 = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}


@pytest.mark.parametrize(
    ("builder", "overrides", "strides"),
    [
        ("build_swin_backbone", SMALL_SWIN, C2_TO_C5),
        ("build_swin_fpn_backbone", SMALL_SWIN, P2_TO_P6),
        pytest.param("build_vit_backbone", SMALL_VIT, P2_TO_P6, marks=needs_timm),
        ("build_torch_backbone", [], C2_TO_C5),
        ("build_torch_fpn_backbone", [], P2_TO_P6),
        ("build_basic_resnet_backbone", SMALL_RESNET, C2_TO_C5),
        ("build_basic_resnet_fpn_backbone", SMALL_RESNET, P2_TO_P6),
    ],
)
def test_outputs_have_the_shapes_they_announce(builder, overrides, strides):
    fpn_inputs = ["MODEL.FPN.IN_FEATURES", list(C2_TO_C5)]
    backbone = make_backbone(builder, *overrides, *fpn_inputs)
    features = backbone(torch.rand(2, 3, 64, 96))
    announced = backbone.output_shape()
    assert {name: shape.stride for name, shape in announced.items()} == strides
    assert {name: tuple(feature.shape) for name, feature in features.items()} == {
        name: (2, shape.channels, 64 // shape.stride, -(-96 // shape.stride))
        for name, shape in announced.items()
    }


@pytest.mark.parametrize(
    ("name", "channels"),
    [  # of the blocks before each downsampling, from the papers' tables
        ("resnet50", [256, 512, 1024, 2048]),
        ("mobilenet_v2", [24, 32, 96, 1280]),
        ("convnext_tiny", [96, 192, 384, 768]),
        ("shufflenet_v2_x0_5", [24, 48, 96, 1024]),
        ("densenet121", [256, 512, 1024, 1024]),
    ],
)
def test_last_feature_of_each_stride_in_torchvision(name, channels):
    shapes = make_torch_backbone(name).output_shape()
    assert [shape.channels for shape in shapes.values()] == channels


@needs_timm
@pytest.mark.parametrize(
    ("name", "channels"),
    [("mobilenetv2_100", [24, 32, 96, 320]), ("convnext_atto", [40, 80, 160, 320])],
)
def test_last_feature_of_each_stride_in_timm(name, channels):
    backbone = make_torch_backbone(name, LIBRARY="timm")
    assert [shape.channels for shape in backbone.output_shape().values()] == channels
    features = backbone(torch.rand(1, 3, 64, 64))
    assert [features[k].shape[1] for k in C2_TO_C5] == channels


def trained_classifier(name):
    """A classifier whose batch norms have statistics and parameters that matter."""
    torch.manual_seed(0)
    net = getattr(torchvision.models, name)(weights=None)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net.eval()


def folded_state(net):
    """Batch norm folded by its definition: y = (w·x − mean) / sqrt(var + eps) · gamma + beta."""
    layers = [x for x in net.named_modules() if isinstance(x[1], (nn.Conv2d, nn.BatchNorm2d))]
    state = {}
    for (name, conv), (_, norm) in zip(layers[::2], layers[1::2], strict=True):
        state[f"{name}.weight"] = torch.stack(
            [
                weight * gamma / (variance + norm.eps) ** 0.5
                for weight, gamma, variance in zip(conv.weight, norm.weight, norm.running_var)
            ]
        ).detach()
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        state[f"{name}.bias"] = (norm.bias - norm.running_mean * scale).detach()
    return state


def resnet_features(net, x):
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    features = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        features.append(x := stage(x))
    return features


def test_folded_weights_give_the_unfolded_features(tmp_path):
    net = trained_classifier("resnet18")
    torch.save(folded_state(net), tmp_path / "folded.pth")
    backbone = make_torch_backbone("resnet18", WEIGHTS=str(tmp_path / "folded.pth"))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    image = torch.randn(2, 3, 64, 96)
    features = backbone.train()(image)
    for feature, expected in zip(features.values(), resnet_features(net, image)):
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)


def test_plain_weights_load_below_each_wrapping(tmp_path):
    net = trained_classifier("resnet18")
    torch.save({"model": net.state_dict()}, tmp_path / "plain.pth")
    backbone = make_torch_backbone("resnet18", WEIGHTS=str(tmp_path / "plain.pth"), NORM="FrozenBN")
    image = torch.randn(2, 3, 64, 64)
    for feature, expected in zip(
        backbone.train()(image).values(), resnet_features(net, image), strict=True
    ):
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)


def test_layers_that_a_file_lacks_start_fresh_and_are_named(tmp_path, caplog):
    state = folded_state(trained_classifier("resnet18"))
    state = {key: value for key, value in state.items() if not key.startswith("layer4")}
    torch.save(state, tmp_path / "part.pth")
    with caplog.at_level(logging.WARNING):
        backbone = make_torch_backbone("resnet18", WEIGHTS=str(tmp_path / "part.pth"), NORM="GN")
    assert "layer4.0.conv1.weight" in caplog.text
    assert "layer3" not in caplog.text
    # Folded norms are gone; only the fresh stage still has any.
    names = [name for name, m in backbone.named_modules() if isinstance(m, nn.GroupNorm)]
    assert len(names) == 5
    assert all(".layer4." in name for name in names)


def test_shipped_weights_are_the_ones_described():
    content = (WEIGHTS / "mobilenetv2_imagenet.pth").read_bytes()
    readme = (WEIGHTS / "README.md").read_text()
    assert hashlib.sha256(content).hexdigest() == re.search(r"`([0-9a-f]{64})`", readme)[1]


def mobilenet_features(state, x):
    """MobileNetV2 from its paper's table 2 and TensorFlow's definition of SAME, by hand."""
    state = {key: value.float() for key, value in state.items()}

    def conv(x, name, stride=1, relu=True):
        weight = state[f"{name}.weight"]
        padding = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + weight.shape[2] - size, 0)
            padding += [total // 2, total - total // 2]
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        x = F.conv2d(F.pad(x, padding), weight, state[f"{name}.bias"], stride, groups=groups)
        return x.clamp(0, 6) if relu else x

    features = [x := conv(x, "features.0.0", stride=2)]
    block_strides = [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    for index, stride in enumerate(block_strides, start=1):
        name, y = f"features.{index}.conv", x
        if index == 1:
            y = conv(conv(y, f"{name}.0.0"), f"{name}.1", relu=False)
        else:
            y = conv(conv(y, f"{name}.0.0"), f"{name}.1.0", stride)
            y = conv(y, f"{name}.2", relu=False)
        x = x + y if y.shape == x.shape else y
        features.append(x)
    features.append(conv(x, "features.18.0"))
    return [features[i] for i in (3, 6, 13, 18)]


def test_shipped_mobilenet_computes_what_its_paper_says():
    options = {"WEIGHTS": "isda://mobilenetv2_imagenet.pth"}
    state = torch.load(WEIGHTS / "mobilenetv2_imagenet.pth", weights_only=True)
    backbone = make_torch_backbone("mobilenet_v2", SAME_PADDING=True, **options)
    assert len(backbone.state_dict()) == len(state) == 104
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = mobilenet_features(state, image)
    for feature, reference in zip(backbone(image).values(), expected):
        torch.testing.assert_close(feature, reference, rtol=1e-4, atol=1e-4)
    symmetric = make_torch_backbone("mobilenet_v2", **options)(image)
    assert (symmetric["res3"] - expected[1]).abs().mean() > 0.1 * expected[1].abs().mean()


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 5), (1, 2)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (1, 2), (7, 4), (2, 2)])
def test_same_padding_by_its_definition(size, kernel, stride):
    conv = nn.Conv2d(1, 1, kernel, stride, padding=kernel // 2, bias=False).double()
    pad_like_tensorflow(nn.Sequential(conv))
    x = torch.randn(1, 1, *size, dtype=torch.float64)
    (height, width), rows, columns = size, -(-size[0] // stride), -(-size[1] // stride)
    top = max((rows - 1) * stride + kernel - height, 0) // 2
    left = max((columns - 1) * stride + kernel - width, 0) // 2
    expected = torch.zeros(rows, columns, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            for a in range(kernel):
                for b in range(kernel):
                    y, z = i * stride + a - top, j * stride + b - left
                    if 0 <= y < height and 0 <= z < width:
                        expected[i, j] += conv.weight[0, 0, a, b].item() * x[0, 0, y, z]
    torch.testing.assert_close(conv(x)[0, 0].detach(), expected)


@pytest.mark.parametrize(
    ("freeze_at", "frozen"),
    [
        (0, ()),
        (1, ("conv1", "bn1")),
        (2, ("conv1", "bn1", "layer1")),
        (4, ("conv1", "bn1", "layer1", "layer2", "layer3")),
    ],
)
def test_freezing_takes_parameters_and_statistics(freeze_at, frozen):
    backbone = make_torch_backbone("resnet18", "MODEL.BACKBONE.FREEZE_AT", freeze_at)
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    sum(f.mean() for f in backbone.train()(torch.randn(2, 3, 64, 64)).values()).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != (name.split(".")[1] in frozen), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
    for name, buffer in backbone.named_buffers():
        if name.endswith("running_mean"):
            assert torch.equal(buffer, before[name]) == (name.split(".")[1] in frozen), name


@needs_timm
def test_freezing_in_timm():
    backbone = make_torch_backbone(
        "resnet18", "MODEL.BACKBONE.FREEZE_AT", 2, LIBRARY="timm", NORM="FrozenBN"
    )
    frozen = {n.split(".")[2] for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}


def test_norms_do_what_their_names_say():
    images = torch.randn(2, 3, 64, 64)

    def depends_on_the_batch(norm):
        torch.manual_seed(0)
        backbone = make_torch_backbone("mobilenet_v2", NORM=norm).train()
        both, alone = backbone(images)["res4"], backbone(images[:1])["res4"]
        return not torch.allclose(both[:1], alone, atol=1e-4)

    assert {norm: depends_on_the_batch(norm) for norm in ("BN", "FrozenBN", "GN")} == {
        "BN": True,
        "FrozenBN": False,
        "GN": False,
    }


def test_swin_is_detectron2s_under_other_names():
    backbone = make_backbone("build_swin_backbone", *SMALL_SWIN).eval()
    original = SwinTransformer(embed_dim=24, depths=(1, 1, 2, 1), drop_path_rate=0.0).eval()
    original.load_state_dict(backbone.state_dict())
    image = torch.randn(1, 3, 70, 90)
    expected = original(image)
    for name, theirs in zip(C2_TO_C5, ("p0", "p1", "p2", "p3"), strict=True):
        assert torch.equal(backbone(image)[name], expected[theirs])
    rates = [block.drop_path.p for layer in backbone.layers for block in layer.blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize(
    ("freeze_at", "frozen"),
    [(0, set()), (1, {"patch_embed"}), (3, {"patch_embed", "layers.0", "layers.1"})],
)
def test_swin_freezes_stage_by_stage(freeze_at, frozen):
    overrides = [*SMALL_SWIN, "MODEL.BACKBONE.FREEZE_AT", freeze_at]
    backbone = make_backbone("build_swin_backbone", *overrides)
    for name, parameter in backbone.named_parameters():
        expected = any(name.startswith(f"{prefix}.") for prefix in frozen)
        assert parameter.requires_grad != expected, name


def test_swin_with_checkpointing_gives_the_same_gradients_behind_a_frozen_stage():
    overrides = [*SMALL_SWIN, "MODEL.BACKBONE.FREEZE_AT", 2, "MODEL.SWIN.DROP_PATH_RATE", 0.0]
    plain = make_backbone("build_swin_backbone", *overrides)
    key = "MODEL.SWIN.GRADIENT_CHECKPOINTING"
    recomputing = make_backbone("build_swin_backbone", *overrides, key, True)
    recomputing.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 64, 64)
    for backbone in (plain, recomputing):
        sum(feature.square().sum() for feature in backbone.train()(image).values()).backward()
    for ours, theirs in zip(recomputing.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None) == (not ours.requires_grad)
        torch.testing.assert_close(ours.grad, theirs.grad)


@needs_timm
def test_vit_pads_to_its_square():
    backbone = make_backbone("build_vit_backbone", *SMALL_VIT)
    assert backbone.padding_constraints == {"size_divisibility": 32, "square_size": 96}


def test_every_trained_parameter_receives_a_gradient():
    backbone = make_torch_backbone("mobilenet_v2", NORM="GN")
    sum(f.square().mean() for f in backbone(torch.randn(1, 3, 64, 64)).values()).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"LIBRARY": "keras"}, "LIBRARY must be one of .*timm.*torchvision.*keras"),
        ("resnet81", {}, "'resnet81' is no network of torchvision; similar ones are resnet18"),
        ("alexnet", {}, r"'alexnet' has no features of stride \[4, 8, 16, 32\]"),
        ("vit_b_16", {}, "'vit_b_16' cannot serve as a backbone"),
        ("resnet18", {"NORM": "LN"}, r"NORM must be one of \['BN', 'FrozenBN', 'GN'\], got 'LN'"),
        ("resnet18", {"WEIGHTS": "no_such.pth"}, "there is no file no_such.pth"),
        (
            "resnet18",
            {"WEIGHTS": "isda://mobilenetv2_imagenet.pth"},
            "has no key of this backbone: it has features.0.0.weight",
        ),
    ],
)
def test_errors_name_the_key_and_the_remedy(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        make_torch_backbone(name, **options)
    assert "MODEL.TORCH_BACKBONE." in str(error.value)


def test_weights_that_do_not_fit(tmp_path):
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), tmp_path / "r50.pth")
    with pytest.raises(ValueError, match=r"of another network: layer1.0.conv1.weight is \(64, 64"):
        make_torch_backbone("resnet18", WEIGHTS=str(tmp_path / "r50.pth"))
    (tmp_path / "cut.pth").write_bytes((tmp_path / "r50.pth").read_bytes()[:1000])
    with pytest.raises(ValueError, match="cut.pth is cut off or damaged"):
        make_torch_backbone("resnet18", WEIGHTS=str(tmp_path / "cut.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="list.pth holds a list instead of tensors"):
        make_torch_backbone("resnet18", WEIGHTS=str(tmp_path / "list.pth"))


def test_freeze_at_beyond_the_network():
    with pytest.raises(
        ValueError, match=r"FREEZE_AT must be 0 or one of \[1, 2, 3, 4, 5\].* got 6"
    ):
        make_torch_backbone("resnet18", "MODEL.BACKBONE.FREEZE_AT", 6)


def test_missing_timm_is_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install timm"):
        make_torch_backbone("resnet18", LIBRARY="timm")
    with pytest.raises(ImportError, match="pip install timm"):
        make_backbone("build_vit_backbone", *SMALL_VIT)


@needs_timm
def test_errors_of_timm(tmp_path):
    with pytest.raises(ValueError, match="'resnettt' is no network of timm; similar ones are"):
        make_torch_backbone("resnettt", LIBRARY="timm")
    with pytest.raises(ValueError, match="NORM GN cannot replace a BatchNormAct2d"):
        make_torch_backbone("mobilenetv2_100", LIBRARY="timm", NORM="GN")


@needs_timm
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.BACKBONE.FREEZE_AT", 2], "FREEZE_AT is 2, but ViT has no stages.*set it to 0"),
        (["INPUT.MAX_SIZE_TEST", 128], "INPUT.MAX_SIZE_TEST is 128.*squares of 96"),
        (["INPUT.MAX_SIZE_TRAIN", 128], "INPUT.MAX_SIZE_TRAIN is 128.*squares of 96"),
    ],
)
def test_errors_of_vit(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_backbone("build_vit_backbone", *SMALL_VIT, *overrides)


def test_swin_needs_four_stages():
    with pytest.raises(ValueError, match="MODEL.SWIN.DEPTHS and MODEL.SWIN.NUM_HEADS need"):
        make_backbone("build_swin_backbone", "MODEL.SWIN.DEPTHS", [2, 2, 2])


@pytest.mark.parametrize("depth", [18, 34])
def test_basic_resnet_of_full_width_is_detectron2s(depth):
    overrides = ["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    overrides += ["MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.OUT_FEATURES", list(C2_TO_C5)]
    overrides += ["MODEL.BACKBONE.FREEZE_AT", 2]
    ours = make_backbone("build_basic_resnet_backbone", *overrides)
    theirs = make_backbone("build_resnet_backbone", *overrides)
    ours.load_state_dict(theirs.state_dict())  # strictly: the names are the same too
    frozen = [name for name, p in theirs.named_parameters() if not p.requires_grad]
    assert [name for name, p in ours.named_parameters() if not p.requires_grad] == frozen
    image = torch.rand(1, 3, 64, 96)
    expected = theirs.eval()(image)
    for name, feature in ours.eval()(image).items():
        assert torch.equal(feature, expected[name])


def test_basic_resnet_of_unknown_depth():
    with pytest.raises(ValueError, match=r"MODEL.RESNETS.DEPTH .* 10, 18, 34 .* got 50"):
        make_backbone("build_basic_resnet_backbone", "MODEL.RESNETS.DEPTH", 50)
