import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone
from foreign_names import Sizes, hugging_face_resnet, resnet

from isda import cli
from isda.checkpoint import Checkpointer, WeightsError
from isda.conversion import SOURCES
from isda.engine.setup import load_config
from isda.model_zoo import get_config_file

FPN = "configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"


def with_random_statistics(net):
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.weight.data.uniform_(0.5, 1, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
    return net.eval()


def features(net, image, stages=4):
    x = net.maxpool(net.relu(net.bn1(net.conv1(image))))
    outputs = {}
    for stage in range(1, stages + 1):
        x = getattr(net, f"layer{stage}")(x)
        outputs[f"res{stage + 1}"] = x
    return outputs


def convert_file(tmp_path, weights, *options, name="theirs.pth", opts=()):
    if weights is not None:
        torch.save(weights, tmp_path / name)
    files = [str(tmp_path / name), str(tmp_path / "ours.pth")]
    return cli.main(["convert", "weights", *options, *files, *opts])


def backbone(printed, tmp_path):
    """The one that the printed words describe, with the converted weights."""
    config_file, *opts = printed.split("--config-file ")[1].replace("'", "").split()
    opts = " ".join(opts).replace(", ", ",").split()
    cfg = load_config(config_file, opts)
    weights = torch.load(tmp_path / "ours.pth")["model"]
    net = build_backbone(cfg).eval()
    net.load_state_dict({n.removeprefix("backbone."): w for n, w in weights.items()}, strict=False)
    return net, weights, cfg


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_features_are_those_of_torchvision(name, tmp_path, capsys):
    theirs = with_random_statistics(torchvision.models.get_model(name))
    assert convert_file(tmp_path, theirs.state_dict()) == 0
    ours, weights, cfg = backbone(capsys.readouterr().out, tmp_path)
    assert set(weights) == {f"backbone.{n}" for n in ours.state_dict()}
    assert (18 if name == "resnet18" else 50) == cfg.MODEL.RESNETS.DEPTH
    assert cfg.INPUT.FORMAT == "RGB"
    image = torch.rand(1, 3, 64, 96)
    expected = features(theirs, image)
    for stage, feature in ours(image).items():
        torch.testing.assert_close(feature, expected[stage], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["resnet.", ""])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_features_of_hugging_faces_resnet(name, prefix, tmp_path, capsys):
    theirs = with_random_statistics(torchvision.models.get_model(name))
    weights = {
        f"classifier.1.{n[3:]}" if n.startswith("fc.") else prefix + hugging_face_resnet(n): w
        for n, w in theirs.state_dict().items()
    }
    assert f"{prefix}encoder.stages.3.layers.1.layer.0.convolution.weight" in weights
    assert f"{prefix}embedder.embedder.normalization.running_var" in weights
    assert convert_file(tmp_path, weights) == 0
    out = capsys.readouterr().out
    assert out.startswith("ResNet of Hugging Face transformers: ")
    ours, converted, cfg = backbone(out, tmp_path)
    assert set(converted) == {f"backbone.{n}" for n in ours.state_dict()}
    assert int(name[6:]) == cfg.MODEL.RESNETS.DEPTH
    image = torch.rand(1, 3, 64, 64)
    expected = features(theirs, image)
    for stage, feature in ours(image).items():
        torch.testing.assert_close(feature, expected[stage], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (Sizes(), (50, 64, 256, 1, 64)),
        (Sizes(blocks=(3, 4, 23, 3)), (101, 64, 256, 1, 64)),
        (Sizes(blocks=(3, 8, 36, 3)), (152, 64, 256, 1, 64)),
        (Sizes(blocks=(3, 4, 6, 3), bottleneck=False), (34, 64, 64, 1, 64)),
        (Sizes(blocks=(2, 2, 2), bottleneck=False), (18, 64, 64, 1, 64)),  # no layer4
    ],
)
def test_what_a_resnet_looks_like_is_read_from_its_shapes(sizes, expected):
    weights = {name: torch.zeros(()).expand(shape) for name, shape in resnet(sizes).items()}
    cfg = load_config(get_config_file(SOURCES["torchvision"].config))
    for key, value in SOURCES["torchvision"].settings(weights).items():
        cfg.merge_from_list([key, value])
    r = cfg.MODEL.RESNETS
    found = (r.DEPTH, r.STEM_OUT_CHANNELS, r.RES2_OUT_CHANNELS, r.NUM_GROUPS, r.WIDTH_PER_GROUP)
    assert found == expected


def folded(net):
    """torchvision's names, batch norm inside the convolutions: up to layer3."""
    pairs = [("conv1", "bn1")]
    for name, module in net.named_modules():
        if name.startswith("layer") and name.count(".") == 1:
            pairs += [(f"{name}.conv{i}", f"{name}.bn{i}") for i in (1, 2)]
            if module.downsample is not None:
                pairs.append((f"{name}.downsample.0", f"{name}.downsample.1"))
    weights = {}
    for conv, norm in pairs:
        if conv.startswith("layer4"):
            continue
        norm = net.get_submodule(norm)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weights[f"{conv}.weight"] = net.get_submodule(conv).weight * scale[:, None, None, None]
        weights[f"{conv}.bias"] = norm.bias - norm.running_mean * scale
    return weights


@torch.no_grad()
def test_folded_batch_norm_up_to_the_third_stage(tmp_path, capsys):
    """As the ResNet-18 of 30 tensors that is known to be redistributed."""
    theirs = with_random_statistics(torchvision.models.resnet18())
    weights = folded(theirs)
    assert len(weights) == 30
    assert convert_file(tmp_path, weights) == 0
    out = capsys.readouterr().out
    assert "30 tensors of the file are 75 of the model" in out
    assert "25 of the model start fresh (the file ends before layer4): backbone.res5." in out
    ours, converted, cfg = backbone(out, tmp_path)
    assert cfg.MODEL.RESNETS.NORM == "FrozenBN"
    assert len(converted) == 15 * 5
    image = torch.rand(1, 3, 64, 96)
    expected, found = features(theirs, image, stages=3), ours(image)
    for stage, feature in expected.items():
        torch.testing.assert_close(found[stage], feature, rtol=1e-4, atol=1e-4)


def test_folded_batch_norm_wants_frozen_norms(tmp_path, capsys):
    weights = folded(with_random_statistics(torchvision.models.resnet18()))
    assert convert_file(tmp_path, weights, opts=["MODEL.RESNETS.NORM", "BN"]) == 1
    error = capsys.readouterr().err
    assert "were trained with MODEL.RESNETS.NORM FrozenBN, the command line says BN" in error
    assert not (tmp_path / "ours.pth").exists()


@torch.no_grad()
def test_a_backbone_below_a_feature_pyramid(tmp_path, capsys):
    theirs = with_random_statistics(torchvision.models.resnet18())
    config = get_config_file(FPN)
    assert convert_file(tmp_path, theirs.state_dict(), "--config-file", config) == 0
    out = capsys.readouterr().out
    ours, weights, cfg = backbone(out, tmp_path)
    assert all(name.startswith("backbone.bottom_up.") for name in weights)
    assert "an ImageNet classifier has no feature pyramid" in out
    # The config has MSRA's: BGR, no division, and the stride of a stage in its 1x1 convolution.
    assert (cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_STD) == ("RGB", [58.395, 57.12, 57.375])
    assert not cfg.MODEL.RESNETS.STRIDE_IN_1X1
    image = torch.rand(1, 3, 64, 64)
    expected = features(theirs, image)["res5"]
    torch.testing.assert_close(ours.bottom_up(image)["res5"], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_resnet_of_timm_as_safetensors(tmp_path, capsys):
    timm = pytest.importorskip("timm")
    safetensors = pytest.importorskip("safetensors.torch")
    theirs = with_random_statistics(timm.create_model("resnet18"))
    safetensors.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    assert convert_file(tmp_path, None, "--from", "timm", name="model.safetensors") == 0
    ours, _, cfg = backbone(capsys.readouterr().out, tmp_path)
    assert cfg.MODEL.RESNETS.DEPTH == 18
    image = torch.rand(1, 3, 64, 64)
    expected = theirs.forward_features(image)
    torch.testing.assert_close(ours(image)["res5"], expected, rtol=1e-4, atol=1e-4)


def test_a_resnet_of_timm_that_detectron2_does_not_have(tmp_path, capsys):
    timm = pytest.importorskip("timm")
    assert convert_file(tmp_path, timm.create_model("resnet18d").state_dict()) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("ResNet of timm: ")
    assert "conv1.0.weight: of a ResNet with another stem or other blocks" in captured.out
    assert "MODEL.TORCH_BACKBONE.LIBRARY timm" in captured.out
    assert "is not written" in captured.err


def test_backbones_that_read_the_file_themselves(tmp_path, capsys):
    config = get_config_file("configs/COCO-InstanceSegmentation/isda_R_18_42ep.yaml")
    weights = torchvision.models.resnet18().state_dict()
    assert convert_file(tmp_path, weights, "--config-file", config) == 1
    assert "as it is: MODEL.TORCH_BACKBONE.WEIGHTS" in capsys.readouterr().err


def test_loading_an_unconverted_file_names_the_remedy(tmp_path):
    weights = folded(with_random_statistics(torchvision.models.resnet18()))
    torch.save(weights, tmp_path / "theirs.pth")
    model = torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 2)})
    with pytest.raises(WeightsError) as error:
        Checkpointer(model, min_matched=0.5).load(str(tmp_path / "theirs.pth"))
    assert str(error.value).endswith(
        "The file has other names than this project's (ResNet of torchvision): "
        "isda convert weights converts it"
    )
