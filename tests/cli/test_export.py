"""The command that exports, what it compares, and the runner that needs none of this package."""

import ast
import json
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tifffile
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from isda import cli
from isda import exported as exported_runner
from isda.data.images import ImageOptions, read_image
from isda.engine.setup import load_config
from isda.prediction import export, predictor
from isda.prediction import parity as comparison

ROOT = Path(__file__).resolve().parents[2]
NUCLEI = ROOT / "datasets/nuclei_mini/images"
OPTS = [
    *("MODEL.ISDA.NUM_CLASSES", "1", "MODEL.ISDA.NUM_QUERIES", "12", "MODEL.ISDA.HIDDEN_DIM", "32"),
    *("MODEL.ISDA.DECODER_LAYERS", "1", "MODEL.ISDA.ENCODER_LAYERS", "1", "MODEL.DEVICE", "cpu"),
    *("MODEL.ISDA.MASK_HEAD_DIM", "32", "MODEL.ISDA.MASK_DIM", "32"),
    *(
        "TEST.DETECTIONS_PER_IMAGE",
        "10",
        "INPUT.MIN_SIZE_TEST",
        "130",
        "INPUT.MAX_SIZE_TEST",
        "150",
    ),
    *("MODEL.BACKBONE.NAME", "build_basic_resnet_backbone", "MODEL.RESNETS.DEPTH", "10"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "MODEL.RESNETS.NORM", "BN"),
    *("DATASETS.TRAIN", "()", "DATASETS.TEST", "()"),
]


# --- the comparison


def instances(*, scores=(0.9, 0.5, 0.01), shift=0) -> dict:
    """Three squares of 100 pixels, one beside the other."""
    masks = np.zeros((3, 40, 60), bool)
    for index, mask in enumerate(masks):
        left = 15 * index + shift
        mask[5:15, left : left + 10] = True
    classes = np.array([0, 1, 0])
    return {"scores": np.float32(scores), "classes": classes, "masks": masks}


def as_expected(found: dict) -> Instances:
    return Instances(
        (40, 60),
        scores=torch.tensor(found["scores"]),
        pred_classes=torch.tensor(found["classes"]),
        pred_masks=torch.tensor(found["masks"]),
    )


def parity(found: dict) -> comparison.Parity:
    result = comparison.Parity()
    result.add(as_expected(instances()), found)
    return result


def test_the_same_instances_agree_whatever_their_order():
    turned = {name: values[[1, 0, 2]] for name, values in instances().items()}
    assert parity(turned) == comparison.Parity(instances=2)
    assert parity(turned).holds


def test_other_masks_do_not():
    moved = parity(instances(shift=1))
    assert moved.worst_iou == pytest.approx(90 / 110)
    assert not moved.holds


def test_other_scores_do_not():
    other = parity(instances(scores=(0.9, 0.502, 0.01)))
    assert other.worst_score == pytest.approx(0.002, abs=1e-6)
    assert not other.holds
    assert parity(instances(scores=(0.9, 0.5005, 0.04))).holds


@pytest.mark.parametrize("kept", [[0], [0, 2]])
def test_missing_instances_do_not(kept):
    result = parity({name: values[kept] for name, values in instances().items()})
    assert result.missing == 1
    assert not result.holds


def test_instances_of_another_class_or_that_the_model_lacks_do_not():
    found = instances()
    found["classes"] = np.array([0, 0, 0])
    assert parity(found).missing == 1
    assert parity(instances(scores=(0.9, 0.5, 0.3))).missing == 1


@pytest.mark.parametrize(("moved", "holds"), [(1, True), (2, False)])
def test_a_few_of_many_may_differ_where_contents_can_be_exchanged(moved, holds):
    masks = np.zeros((20, 40, 60), bool)
    for index, mask in enumerate(masks):
        mask[8 * (index // 5) : 8 * (index // 5) + 6, 12 * (index % 5) : 12 * (index % 5) + 10] = (
            True
        )
    classes = np.zeros(20, int)
    found = {"scores": np.linspace(0.9, 0.5, 20, dtype=np.float32), "classes": classes}
    other = found | {"masks": masks}
    other["scores"] = found["scores"] - np.float32(0.002) * (np.arange(20) < moved)
    tolerant, strict = comparison.Parity(tolerated=0.05), comparison.Parity()
    for result in (tolerant, strict):
        result.add(as_expected(found | {"masks": masks}), other)
    assert tolerant.apart == strict.apart == moved
    assert (tolerant.holds, strict.holds) == (holds, False)
    assert f"{moved} with an IoU below 0.99 or scores more than 0.001 apart" in str(strict)


def test_models_that_choose_their_queries_may_differ():
    model = nn.Module()
    assert comparison.tolerated_share(model) == 0  # such as an ISTR
    model.transformer = nn.Module()
    model.transformer.query_selection = None
    assert comparison.tolerated_share(model) == 0
    model.transformer.query_selection = nn.Identity()
    assert comparison.tolerated_share(model) == 0.05


# --- the command and the runner


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> SimpleNamespace:
    """A small model that finds something, exported by the command and compared on photographs."""
    folder = tmp_path_factory.mktemp("export")
    config = str(ROOT / "configs/nuclei/isda_tiny.yaml")
    torch.manual_seed(0)
    model = build_model(load_config(config, OPTS))
    nn.init.normal_(model.instance_head.classes.weight, std=0.5)
    nn.init.normal_(model.instance_head.kernels[-1].weight, std=0.5)
    classes = {"names": ["nucleus"], "ids": [1]}
    torch.save({"model": model.state_dict(), "classes": classes}, folder / "model.pth")
    photos = sorted(NUCLEI.glob("*.png"))[:3]
    arguments = ["--config-file", config, "--output", str(folder / "small.pt2"), "--check"]
    arguments += [*map(str, photos), "--opts", *OPTS, "MODEL.WEIGHTS", str(folder / "model.pth")]
    status = cli.main(["export", *arguments])
    return SimpleNamespace(
        file=folder / "small.pt2", status=status, photos=photos, arguments=arguments
    )


@pytest.mark.slow
def test_exported_model_agrees_on_photographs(exported, capsys):
    assert exported.status == 0
    model = exported_runner.ExportedModel(exported.file)
    assert model.info["names"] == ["nucleus"]
    photo = Image.open(exported.photos[0]).convert("RGB")
    found = model(photo, threshold=0.05)
    assert len(found["scores"]) > 1
    assert found["masks"].shape[1:] == photo.size[::-1]
    for box, mask in zip(found["boxes"], found["masks"]):
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(box - tight).max() < 3  # the box's pixels are those of the resized image


@pytest.mark.slow
def test_runner_prints_and_draws(exported, tmp_path, capsys):
    photos = [str(photo) for photo in exported.photos[:2]]
    options = ["--output", str(tmp_path / "masks"), "--confidence-threshold", "0.05"]
    assert exported_runner.main([str(exported.file), *photos, *options]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == photos
    assert {found["class"] for line in lines for found in line["instances"]} == {"nucleus"}
    for photo in exported.photos[:2]:
        original = np.asarray(Image.open(photo).convert("RGB"))
        drawn = np.asarray(Image.open(tmp_path / "masks" / f"{photo.stem}.png"))
        assert drawn.shape == original.shape and (drawn != original).any()


@pytest.mark.slow
def test_difference_is_an_error(exported, monkeypatch, capsys):
    """The graph stays as it was, its model has other thresholds for masks by now."""
    monkeypatch.setattr(export, "save", lambda *_: None)  # leaves the file of before
    original = predictor.Predictor

    def other(*args, **options):
        changed = original(*args, **options)
        changed.model.mask_threshold = 0.8
        return changed

    monkeypatch.setattr(predictor, "Predictor", other)
    monkeypatch.setattr(export, "export_program", lambda module: None)
    assert cli.main(["export", *exported.arguments]) == 1
    assert "the exported model differs from the original" in capsys.readouterr().err


def test_runner_needs_nothing_of_this_package():
    imported = set()
    for node in ast.walk(ast.parse(Path(exported_runner.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    foreign = imported - {"argparse", "contextlib", "json", "os", "pickle", "sys", "pathlib"}
    assert foreign == {"numpy", "PIL", "onnxruntime", "torch"}


@pytest.mark.parametrize("size", [(400, 300), (1000, 200), (50, 80), (333, 500), (7, 5)])
def test_images_are_resized_as_detectron2_does(size):
    from detectron2.data.transforms import ResizeShortestEdge

    model = exported_runner.ExportedModel.__new__(exported_runner.ExportedModel)
    model.info = {"min_size": 200, "max_size": 300}
    resize = ResizeShortestEdge.get_output_shape(size[1], size[0], 200, 300)
    assert model._size(Image.new("RGB", size)) == resize[::-1]


@pytest.mark.parametrize("rule", ["percentile", "percentile 5 95", "range", "100 3000"])
def test_runner_scales_deep_images_as_the_model_does(tmp_path, rule):
    pixels = (np.arange(2400).reshape(40, 60) ** 1.1).astype(np.uint16)
    for name, numbers in (("a.png", pixels), ("a.tif", pixels), ("b.tif", pixels / 7e3)):
        Image.fromarray(numbers.astype(np.float32 if name == "b.tif" else np.uint16)).save(
            tmp_path / name
        )
        found = np.asarray(exported_runner.read_image(tmp_path / name, rule))
        expected = read_image(str(tmp_path / name), "RGB", ImageOptions(intensity=rule))
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_runner_refuses_what_pillow_alone_changes(tmp_path):
    deep = np.full((4, 5, 3), 4095, np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    cv2.imwrite(str(tmp_path / "b.tif"), deep)
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((4, 5), np.int8))
    tifffile.imwrite(tmp_path / "d.tif", np.zeros((2, 4, 5), np.uint8), photometric="minisblack")
    for name in ("a.png", "b.tif", "c.tif", "d.tif"):
        with pytest.raises(ValueError, match="Pillow changes the numbers|has 2 pages"):
            exported_runner.read_image(tmp_path / name, "percentile")


def test_runner_names_what_it_cannot_read(tmp_path, capsys):
    assert exported_runner.main([str(tmp_path / "model.pth"), "a.jpg"]) == 1
    assert "model.pth: the name of an exported model ends in .onnx or .pt2" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.pb", "model.pb: the name must end in .pt2 or .onnx"),
        ("folder.pt2", "folder.pt2 is a folder, and the graph is written into a file"),
        ("file/model.pt2", "file cannot be made (File exists): give another one"),
        ("model.onnx", "model.onnx: writing ONNX needs onnx and onnxscript: pip install onnx onnx"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_model_is_exported(
    name, message, tmp_path, monkeypatch, capsys
):
    """Tracing takes a minute or two, and the reading of a model seconds."""
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("isda.prediction.predictor.Predictor.__init__", None)  # is not called
    words = ["export", "--model", "nuclei/isda_boxes_mobilenet_v2", "--output"]
    assert cli.main([*words, str(tmp_path / "good.pt2"), str(tmp_path / name)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "good.pt2").exists()


def test_settings_go_with_a_config_only(capsys):
    with pytest.raises(SystemExit):
        cli.main(["export", "--model", "x", "--output", "m.onnx", "--opts", "A", "1"])
    assert "--opts go with --config-file" in capsys.readouterr().err


@pytest.mark.slow
def test_program_of_the_page_runs(exported, tmp_path, monkeypatch):
    """The one for .pt2; tests/test_export.py runs the one for ONNX."""
    text = (ROOT / "docs/EXPORT.md").read_text()
    (program,) = [p for p in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if ".pt2" in p]
    (tmp_path / "isda.pt2").write_bytes(exported.file.read_bytes())
    (tmp_path / "photo.png").write_bytes(exported.photos[0].read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(program, names)
    assert names["masks"].shape[1:] == names["image"].shape[:2]
    assert names["info"]["names"] == ["nucleus"]
