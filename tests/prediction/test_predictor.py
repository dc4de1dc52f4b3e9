"""isda.Predictor on every kind of source and image; test_demo.py has what the demo needs of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from detectron2.config import get_cfg
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import Instances
from PIL import Image
from small_models import small_config, small_model
from torch import nn

from isda import Predictor, add_config, model_zoo
from isda.checkpoint import WeightsError
from isda.data.dataset_mapper import InstanceDatasetMapper
from isda.data.errors import ImageError
from isda.engine.inference import saved_classes
from isda.engine.setup import load_config
from isda.modeling import postprocessing
from isda.modeling.postprocessing import select_instances
from isda.prediction.prediction import Prediction
from isda.structures import RLEMasks, SetPrediction
from isda.visualization import draw_predictions

NAMES, IDS = ["bolt", "nut", "washer"], [2, 5, 11]


@META_ARCH_REGISTRY.register()
class SquaresProbe(nn.Module):
    """Finds a square in each of 8 × 8 fields of every image, less and less surely.

    ``self.seen`` keeps the shapes and the mean colours of what came.
    """

    config_node = "ISDA"

    def __init__(self, cfg):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.num_classes = cfg.MODEL.ISDA.NUM_CLASSES
        self.seen = []

    def forward(self, batched_inputs):
        self.seen.append([tuple(x["image"].shape) for x in batched_inputs])
        self.colors = [x["image"].mean(dim=(1, 2)).tolist() for x in batched_inputs]
        return [{"instances": self.find(x)} for x in batched_inputs]

    def find(self, inputs):
        size = tuple(inputs["image"].shape[1:])
        logits = torch.full((1, 64, 32, 32), -9.0)
        for index in range(64):
            y, x = 4 * (index // 8), 4 * (index % 8)
            logits[0, index, y + 1 : y + 3, x + 1 : x + 3] = 9.0
        class_logits = torch.full((1, 64, self.num_classes), -20.0)
        numbers = torch.arange(64)
        class_logits[0, numbers, numbers % self.num_classes] = torch.linspace(3, -3, 64)
        prediction = SetPrediction(class_logits, torch.eye(64)[None], logits)
        output = (inputs["height"], inputs["width"])
        return select_instances(
            prediction, 0, image_size=size, padded_size=size, output_size=output
        )


def probe_config(folder, *opts):
    """Of the probe, with a checkpoint that knows its classes."""
    path = folder / "model_final.pth"
    if not path.exists():
        classes = {"names": NAMES, "ids": IDS}
        torch.save({"model": {"weight": torch.zeros(1)}, "classes": classes}, path)
    keys = {"MODEL.META_ARCHITECTURE": "SquaresProbe", "MODEL.DEVICE": "cpu"}
    keys |= {"MODEL.WEIGHTS": str(path), "INPUT.MIN_SIZE_TEST": 64, "INPUT.MAX_SIZE_TEST": 128}
    keys |= {"INPUT.FORMAT": "RGB", "DATASETS.TEST": ("unknown",), "DATASETS.TRAIN": ()}
    return load_config("", [item for pair in keys.items() for item in pair] + list(opts))


@pytest.fixture
def predictor(tmp_path):
    return Predictor(probe_config(tmp_path), threshold=0.5)


def photo(height=80, width=120):
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (height, width, 3), np.uint8)


def test_classes_come_from_the_checkpoint(predictor):
    assert predictor.class_names == NAMES
    assert predictor.model.num_classes == 3
    prediction = predictor(photo())
    assert prediction.class_names == NAMES
    assert prediction.names[:4] == ["bolt", "nut", "washer", "bolt"]
    assert prediction.pred_classes[:4].tolist() == [0, 1, 2, 0]


def test_a_prediction_is_instances_at_the_images_size(predictor):
    image = photo()
    prediction = predictor(image)
    assert isinstance(prediction, Instances)
    assert prediction.image_size == (80, 120)
    assert prediction.pred_masks.shape == (len(prediction), 80, 120)
    best = prediction.pred_masks[0]
    ys, xs = best.nonzero(as_tuple=True)
    assert (ys.float().mean().item(), xs.float().mean().item()) == pytest.approx(
        (80 / 16 - 0.5, 120 / 16 - 0.5), abs=1
    )
    assert str(prediction[:5]) == "Prediction(2 bolt, 2 nut, 1 washer in 80x120 pixels)"
    few = prediction[prediction.scores > 0.9]
    assert isinstance(few, Prediction)
    assert 0 < len(few) < len(prediction)
    assert few.names == prediction.names[: len(few)]
    assert isinstance(few.to("cpu"), Prediction)
    assert few.image is prediction.image


def test_threshold_filters_and_a_config_alone_gives_all(tmp_path):
    cfg = probe_config(tmp_path)
    everything = Predictor(cfg)(photo())
    assert len(everything) == 100
    for threshold in (0.2, 0.5, 0.9):
        prediction = Predictor(cfg, threshold=threshold)(photo())
        assert len(prediction) == int((everything.scores >= threshold).sum())
        assert prediction.scores.min() >= threshold


@pytest.mark.parametrize("kind", ["path", "Path", "pillow", "array", "tensor", "float tensor"])
def test_kinds_of_images_give_one_result(predictor, tmp_path, kind):
    image = photo()
    path = tmp_path / "photo.png"
    Image.fromarray(image).save(path)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    kinds = {
        "path": str(path),
        "Path": path,
        "pillow": Image.fromarray(image),
        "array": image,
        "tensor": tensor,
        "float tensor": tensor / 255,
    }
    prediction = predictor(kinds[kind])
    np.testing.assert_array_equal(prediction.image, image)
    assert predictor.model.colors[0] == pytest.approx(image.mean(axis=(0, 1)), abs=1)


@pytest.mark.parametrize("rule", ["percentile", "0 65535"])
def test_16_bits_reach_the_model_by_the_configs_rule(tmp_path, rule):
    """From a file, an array and a tensor alike; the training reads files by the same function."""
    pixels = np.arange(80 * 120, dtype=np.uint16).reshape(80, 120)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    cfg = probe_config(tmp_path, "INPUT.INTENSITY", rule)
    predictor = Predictor(cfg)
    low, high = np.percentile(pixels, [1, 99.8]) if rule == "percentile" else (0, 65535)
    expected = 255 * ((pixels - low) / (high - low)).clip(0, 1).mean()
    for image in (str(tmp_path / "a.tif"), pixels, torch.from_numpy(pixels)):
        prediction = predictor(image)
        assert prediction.image.mean() == pytest.approx(expected, abs=0.6)
    record = {"file_name": str(tmp_path / "a.tif")}
    mapped = InstanceDatasetMapper(cfg, is_train=False)(record)["image"]
    assert mapped.float().mean().item() == pytest.approx(expected, abs=0.8)


def test_a_page_and_a_channel_are_named(predictor, tmp_path):
    pixels = np.arange(2 * 3 * 80 * 120, dtype=np.uint16).reshape(2, 3, 80, 120)
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": "ZCYX"})
    np.testing.assert_array_equal(predictor(path, page=1, channel=2).pixels, pixels[1, 2])
    (one,) = predictor([path], page=0, channel=1)
    np.testing.assert_array_equal(one.pixels, pixels[0, 1])
    with pytest.raises(ImageError, match="has 2 pages"):
        predictor(path)


def test_another_rule_than_that_of_the_training_is_told(tmp_path, caplog):
    path = tmp_path / "model_final.pth"
    torch.save({"model": {"weight": torch.zeros(1)}, "intensity": "range"}, path)
    cfg = probe_config(tmp_path, "MODEL.ISDA.NUM_CLASSES", 3)
    with caplog.at_level("WARNING", logger="isda"):
        Predictor(cfg)
    assert "trained with INPUT.INTENSITY 'range', and it is 'percentile' here" in caplog.text
    caplog.clear()
    cfg.INPUT.INTENSITY = "range"
    Predictor(cfg)
    assert "INTENSITY" not in caplog.text


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_channels_reach_the_model_in_its_order(tmp_path, image_format, channels):
    predictor = Predictor(probe_config(tmp_path, "INPUT.FORMAT", image_format))
    red = np.zeros((70, 70, 3), np.uint8) + np.array([250, 40, 10], np.uint8)
    image = red if channels == "RGB" else red[..., ::-1]
    expected = [250, 40, 10] if image_format == "RGB" else [10, 40, 250]
    for prediction in (predictor(image, channels=channels), *predictor([image], channels=channels)):
        assert predictor.model.colors[0] == pytest.approx(expected)
        assert prediction.image[0, 0].tolist() == [250, 40, 10]


def test_lists_run_in_batches_in_order(tmp_path):
    predictor = Predictor(probe_config(tmp_path), batch_size=2)
    sizes = [(80, 120), (64, 64), (100, 50), (40, 90), (90, 90)]
    predictions = predictor([photo(*size) for size in sizes])
    assert [prediction.image_size for prediction in predictions] == sizes
    # 80x120 and 64x64 become 64x96 and 64x64, 100x50 and 40x90 differ as well
    assert [len(shapes) for shapes in predictor.model.seen] == [1] * 5
    assert predictor([]) == []
    predictor.model.seen.clear()
    predictor([photo(*size) for size in [(64, 64), (90, 90), (64, 64), (80, 120)]])
    assert [len(shapes) for shapes in predictor.model.seen] == [2, 1, 1]


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, "4", None, True])
def test_a_batch_is_a_whole_number_of_images(tmp_path, batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be .*, got {batch_size!r}"):
        Predictor(probe_config(tmp_path), batch_size=batch_size)


@pytest.mark.parametrize("threshold", [50, -0.1, 1.5, float("nan"), "0.5"])
def test_a_threshold_is_a_score(tmp_path, threshold):
    with pytest.raises(ValueError, match=f"threshold is a score, from 0 to 1, got {threshold!r}"):
        Predictor(probe_config(tmp_path), threshold=threshold)


@pytest.mark.parametrize("device", ["gpu", "", 0, "CUDA", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_named(tmp_path, device):
    with pytest.raises(ValueError, match=f"no device '{device}'.*give cpu"):
        Predictor(probe_config(tmp_path), device=device)
    with pytest.raises(ValueError, match="no device 'gpu': give cpu"):
        Predictor(probe_config(tmp_path, "MODEL.DEVICE", "gpu"))


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (2, 20000), (20000, 2), (1, 1)])
def test_the_thinnest_images_have_results(predictor, size):
    prediction = predictor(photo(*size))
    assert prediction.image_size == size
    assert min(predictor.model.seen[-1][0]) >= 1
    assert prediction.pred_masks.shape[1:] == size
    assert prediction.draw().shape == (*size, 3)


@pytest.mark.parametrize("name", ["isda", "istr", "mask_rcnn"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_image_does_not_depend_on_its_company(tmp_path, name, batch_size):
    """To the last bit alone; in batches but for rounding."""
    if name == "mask_rcnn":
        cfg = model_zoo.get_config("nuclei/mask_rcnn_mobilenet_v2", trained=True)
        cfg.defrost()
        cfg.TEST.DETECTIONS_PER_IMAGE = 12
    else:
        cfg = small_config(name)
        cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
        torch.save({"model": small_model(name).state_dict()}, cfg.MODEL.WEIGHTS)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.MODEL.DEVICE = 96, 160, "cpu"
    predictor = Predictor(cfg, batch_size=batch_size)
    photos = [photo(64, 64), photo(64, 100)[:, ::-1], photo(64, 64)[::-1], photo(90, 50)]
    for image, together in zip(photos, predictor(photos), strict=True):
        alone = predictor(image)
        assert len(alone) == len(together) > 0
        tolerance = 0 if batch_size == 1 else 1e-5
        torch.testing.assert_close(together.scores, alone.scores, atol=tolerance, rtol=0)
        differing = (together.pred_masks != alone.pred_masks).float().mean()
        assert differing <= (0 if batch_size == 1 else 1e-3)


def test_what_is_no_image_is_named(predictor, tmp_path):
    with pytest.raises(ImageError, match="no such image"):
        predictor(tmp_path / "none.png")
    with pytest.raises(ImageError, match="type dict: give a path, a picture of Pillow"):
        predictor({"image": photo()})
    with pytest.raises(ValueError, match="channels must be 'RGB' or 'BGR', got 'GBR'"):
        predictor(photo(), channels="GBR")


def test_draws_on_its_own_image_or_on_another(predictor):
    image = photo()
    prediction = predictor(image)
    drawn = prediction.draw()
    np.testing.assert_array_equal(
        drawn, draw_predictions(image, prediction, NAMES, with_labels=False)
    )
    few = prediction[:2]
    np.testing.assert_array_equal(few.draw(), draw_predictions(image, few, NAMES))
    black = np.zeros((80, 120), np.uint8)
    touched = few.draw(black, with_labels=False).any(axis=2)
    covered = few.pred_masks.any(dim=0).numpy()
    assert touched[covered].mean() > 0.95
    assert touched[~covered].mean() < 0.1
    assert few.draw(scale=0.5).shape == (40, 60, 3)
    with pytest.raises(ValueError, match="has 80x121 pixels .*, the predicted one has 80x120"):
        few.draw(photo(80, 121))


def test_coco_results_have_the_ids_of_the_data(predictor, tmp_path):
    prediction = predictor(photo())
    results = prediction.to_coco(7)
    assert [result["category_id"] for result in results[:4]] == [2, 5, 11, 2]
    assert {result["image_id"] for result in results} == {7}
    assert [result["score"] for result in results] == prediction.scores.tolist()
    masks = RLEMasks([result["segmentation"] for result in results], prediction.image_size)
    assert torch.equal(masks.dense(), prediction.pred_masks)
    left, top, width, height = results[0]["bbox"]
    assert [left, top, left + width, top + height] == prediction.pred_boxes.tensor[0].tolist()
    prediction.save(tmp_path / "new" / "found.json")
    assert json.loads((tmp_path / "new" / "found.json").read_text()) == prediction.to_coco(0)
    prediction.save(tmp_path / "found.png")
    with Image.open(tmp_path / "found.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), prediction.draw())
    with pytest.raises(OSError, match="'.docx' is no image format"):
        prediction.save(tmp_path / "found.docx")


def test_without_names_numbers_serve(tmp_path):
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "model_final.pth")
    predictor = Predictor(probe_config(tmp_path, "MODEL.ISDA.NUM_CLASSES", 3))
    prediction = predictor(photo())
    assert predictor.class_names is None
    assert prediction.class_names is None
    assert prediction.names[:3] == ["class 0", "class 1", "class 2"]
    assert [result["category_id"] for result in prediction.to_coco()[:3]] == [1, 2, 3]


def test_nothing_found_is_no_special_case(tmp_path):
    prediction = Predictor(probe_config(tmp_path), threshold=1.0)(photo())
    assert len(prediction) == 0
    assert prediction.to_coco() == prediction.names == []
    assert str(prediction) == "Prediction(nothing in 80x120 pixels)"
    np.testing.assert_array_equal(prediction.draw(), prediction.image)


def test_the_folder_of_a_training_is_enough(training_folder):
    predictor = Predictor(str(training_folder))
    assert predictor.class_names == NAMES
    assert predictor.threshold == 0.5
    assert predictor.model.weight.item() == 2.0  # the best
    (training_folder / "model_best.pth").unlink()
    assert Predictor(training_folder).model.weight.item() == 1.0
    assert Predictor(training_folder / "model_0000009.pth").model.weight.item() == 3.0


@pytest.fixture
def training_folder(tmp_path):
    folder = tmp_path / "training"
    folder.mkdir()
    classes = {"names": NAMES, "ids": IDS}
    for name, value in (("final", 1.0), ("best", 2.0), ("0000009", 3.0)):
        contents = {"model": {"weight": torch.full((1,), value)}, "classes": classes}
        torch.save(contents, folder / f"model_{name}.pth")
    cfg = probe_config(folder)
    cfg.MODEL.WEIGHTS = "where/training/started.pth"
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def test_folders_that_are_no_training_are_named(tmp_path, training_folder):
    with pytest.raises(ValueError, match="has no config.yaml: give the OUTPUT_DIR"):
        Predictor(tmp_path)
    for file in training_folder.glob("model_*.pth"):
        file.unlink()
    with pytest.raises(ValueError, match="has no model_best.pth nor model_final.pth: let the"):
        Predictor(training_folder)
    with pytest.raises(ValueError, match="has no model_0000019.pth"):
        Predictor(training_folder / "model_0000019.pth")
    with pytest.raises(ValueError, match="there is no model 'nuclei/isda_tni': did you mean"):
        Predictor("nuclei/isda_tni")


@pytest.mark.parametrize("classes", [None, "circle", {"names": 3}, {"names": [1], "ids": [1]}])
def test_a_checkpoint_that_says_nothing_of_classes(tmp_path, classes):
    path = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.zeros(1)}, "classes": classes}, path)
    assert saved_classes(str(path)) is None


@pytest.mark.parametrize("number", [2, 4])
def test_a_checkpoint_for_another_number_of_classes(tmp_path, number):
    """Its names would run out, or stand for other classes."""
    cfg = probe_config(tmp_path, "MODEL.ISDA.NUM_CLASSES", str(number))
    message = r"model_final.pth is for 3 classes \(bolt, nut, washer\), and MODEL.ISDA.NUM_CLASSES "
    with pytest.raises(ValueError, match=f"{message}is {number}: give the config"):
        Predictor(cfg)


def test_a_checkpoint_that_cannot_be_read_is_named_before_a_model_is_built(tmp_path):
    with pytest.raises(WeightsError, match="there is no file"):
        saved_classes(str(tmp_path / "model.pth"))
    (tmp_path / "model.pth").write_bytes(b"no checkpoint")
    with pytest.raises(WeightsError, match="model.pth is a text file: download the file itself"):
        saved_classes(str(tmp_path / "model.pth"))


def test_a_backbones_download_is_spared(tmp_path, monkeypatch):
    asked = []

    def features(name, pretrained):
        asked.append(pretrained)
        raise KeyboardInterrupt

    monkeypatch.setattr("isda.modeling.backbone.torch_backbone._torchvision_features", features)
    opts = ["MODEL.META_ARCHITECTURE", "ISDA", "MODEL.BACKBONE.NAME", "build_torch_backbone"]
    cfg = probe_config(tmp_path, *opts, "MODEL.TORCH_BACKBONE.WEIGHTS", "pretrained")
    with pytest.raises(KeyboardInterrupt):
        Predictor(cfg)
    assert asked == [False]


def peak_memory():
    """Largest resident size so far, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is read and reset as Linux does"
)
def test_a_large_image_costs_little_more_than_itself(predictor):
    """Its 100 masks would take 3.6 GB."""
    image = np.zeros((6000, 6000, 3), np.uint8)
    predictor(photo())
    predictor.threshold = 0.0
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak_memory()
    prediction = predictor(image)
    assert peak_memory() - before < 400e6
    assert isinstance(prediction.pred_masks, RLEMasks)
    assert prediction.pred_masks.shape == (100, 6000, 6000)
    areas = prediction.pred_masks.areas()
    assert areas.float().mean().item() == pytest.approx(
        (6000 / 16) ** 2, rel=0.2
    )  # rounded corners
    results = prediction.to_coco()
    assert peak_memory() - before < 400e6
    assert len(results) == 100


@pytest.mark.parametrize("architecture", ["SquaresProbe", "GeneralizedRCNN"])
def test_encoded_and_dense_masks_are_the_same(tmp_path, monkeypatch, architecture):
    if architecture == "SquaresProbe":
        predictor = Predictor(probe_config(tmp_path))
    else:
        predictor = mask_rcnn_predictor(tmp_path)
    dense = predictor(photo(150, 210))
    pixels = photo(150, 210)[..., :: 1 if predictor.format == "RGB" else -1]
    seen = predictor.resize.get_transform(pixels).apply_image(pixels).transpose(2, 0, 1)
    inputs = {"image": torch.from_numpy(seen.astype(np.float32)), "height": 150, "width": 210}
    (plain,) = predictor.model([inputs])
    assert torch.equal(plain["instances"].pred_masks, dense.pred_masks)
    assert torch.equal(plain["instances"].pred_boxes.tensor, dense.pred_boxes.tensor)
    monkeypatch.setattr(postprocessing, "_DENSE_PIXELS", 10_000)
    encoded = predictor(photo(150, 210))
    assert len(dense) > 5
    assert isinstance(encoded.pred_masks, RLEMasks)
    assert torch.equal(encoded.pred_masks.dense(), dense.pred_masks)
    assert torch.equal(encoded.pred_boxes.tensor, dense.pred_boxes.tensor)
    assert torch.equal(encoded.scores, dense.scores)
    assert encoded.to_coco() == dense.to_coco()
    # As the evaluation does it.
    assert instances_to_coco_json(encoded, 1) == instances_to_coco_json(dense, 1)


def mask_rcnn_predictor(folder):
    cfg = get_cfg()
    add_config(cfg)
    cfg.merge_from_file(Path(__file__).parents[2] / "configs" / "nuclei" / "mask_rcnn_tiny.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", str(folder / "model.pth")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 12
    cfg.INPUT.MIN_SIZE_TEST = 96
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    return Predictor(cfg)
