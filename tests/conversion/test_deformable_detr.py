import foreign_networks
import pytest
import torch
from converting import IMAGE_SIZES, converted_model, padded_images
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.structures import ImageList
from foreign_names import (
    SMALL,
    SMALL_OPTIONS,
    authors,
    filled,
    hugging_face,
    hugging_face_5,
    hugging_face_resnet,
    mmdetection,
)

from isda import cli
from isda.engine.setup import load_config
from isda.model_zoo import get_config_file

CONFIG = get_config_file("configs/COCO-InstanceSegmentation/isda_R_50_42ep.yaml")
COCO_IDS = [c["id"] for c in COCO_CATEGORIES if c["isthing"]]


@pytest.mark.parametrize(
    ("shapes", "layout", "rows"),
    [
        (authors(SMALL), foreign_networks.AUTHORS, COCO_IDS),
        (hugging_face(SMALL), foreign_networks.HUGGING_FACE, COCO_IDS),
        (mmdetection(SMALL), foreign_networks.MMDETECTION, list(range(80))),
        (mmdetection(SMALL, version=3), foreign_networks.MMDETECTION_3, list(range(80))),
    ],
    ids=["authors", "hugging_face", "mmdetection_2", "mmdetection_3"],
)
@torch.no_grad()
def test_scores_are_those_of_the_original(shapes, layout, rows, tmp_path, capsys):
    """From pixels to class logits, in a batch of two images of different sizes."""
    weights = filled(shapes)
    model, _ = converted_model(weights, tmp_path, capsys)
    images = padded_images()
    (prediction,) = model.predict(ImageList(images, IMAGE_SIZES))
    expected = foreign_networks.deformable_detr(weights, layout, images, IMAGE_SIZES, SMALL.heads)
    assert expected.std() > 0.3  # queries and classes differ, so a swap would show
    torch.testing.assert_close(
        prediction.class_logits.double(), expected[..., rows], rtol=1e-3, atol=1e-3
    )


def test_names_of_transformers_5_are_those_that_differ():
    """Their number is that of a state dict of version 5.23."""
    renamed = hugging_face_5(hugging_face())
    assert sum(old != new for old, new in renamed.items()) == 325
    assert len(set(renamed.values())) == len(renamed)
    assert renamed["model.decoder.layers.0.self_attn.out_proj.bias"] == (
        "model.decoder.layers.0.self_attn.o_proj.bias"
    )


@pytest.mark.parametrize("own_resnet", [False, True], ids=["timm", "own ResNet"])
@pytest.mark.parametrize("saved_by", ["torch.save", "save_pretrained"])
def test_names_of_transformers_5(saved_by, own_resnet, tmp_path, capsys):
    """The converted weights are those of the same file in the names of version 4, in each bit."""
    weights = filled(hugging_face(SMALL))
    expected, _ = converted_model(weights, tmp_path, capsys)
    if saved_by == "torch.save":
        names = hugging_face_5(weights, own_resnet)
    else:
        names = {n: hugging_face_resnet(n) if own_resnet else n for n in weights}
    model, cfg = converted_model({names[n]: w for n, w in weights.items()}, tmp_path, capsys)
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS) == (10, 8)
    ours = model.state_dict()
    fresh = ("mask_feature_head", "instance_head.kernels", "neck.projections.0")
    for name, weight in expected.state_dict().items():
        if not name.startswith(fresh):
            assert torch.equal(ours[name], weight), name


def test_settings_that_the_weights_need_are_printed(tmp_path, capsys):
    model, cfg = converted_model(filled(authors(SMALL)), tmp_path, capsys)
    assert cfg.MODEL.ISDA.NECK_BIAS
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS) == (10, 8)
    _, cfg = converted_model(filled(mmdetection(SMALL)), tmp_path, capsys)
    assert not cfg.MODEL.ISDA.NECK_BIAS


def test_images_are_read_as_the_weights_were_trained(tmp_path, capsys):
    options = ["--config-file", CONFIG.replace("R_50", "R_101")]  # MSRA's: BGR, no division
    _, cfg = converted_model(filled(authors(SMALL)), tmp_path, capsys, options)
    recipe = load_config(CONFIG)
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == recipe.MODEL.PIXEL_MEAN
    assert cfg.MODEL.PIXEL_STD == recipe.MODEL.PIXEL_STD
    assert not cfg.MODEL.RESNETS.STRIDE_IN_1X1


def test_what_the_command_line_says_otherwise(tmp_path, capsys):
    torch.save(filled(authors(SMALL)), tmp_path / "theirs.pth")
    ours = tmp_path / "ours.pth"
    words = [
        str(tmp_path / "theirs.pth"),
        str(ours),
        *SMALL_OPTIONS,
        "MODEL.ISDA.NECK_BIAS",
        "False",
    ]
    assert cli.main(["convert", "weights", *words]) == 1
    error = capsys.readouterr().err
    assert "with MODEL.ISDA.NECK_BIAS True, the command line says False" in error
    assert not ours.exists()
    assert cli.main(["convert", "weights", "--partial", *words]) == 0
    assert "input_proj.0.0.bias: would be neck.projections.1.bias" in capsys.readouterr().out
    assert "neck.projections.1.bias" not in torch.load(ours)["model"]
