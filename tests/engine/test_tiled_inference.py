"""Windows from the image to the instances, with a model that sees bright blobs."""

import json
import logging
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask
from scipy import ndimage
from small_models import small_config, small_model
from torch import nn

from isda import Predictor, cli
from isda.data import window_reading
from isda.engine.setup import load_config
from isda.engine.tiled_inference import TiledModel
from isda.engine.trainer import Trainer
from isda.modeling import postprocessing
from isda.structures import RLEMasks
from isda.tiles.errors import TilesError

LIMIT = 40


@META_ARCH_REGISTRY.register()
class BlobProbe(nn.Module):
    """Finds connected bright pixels, at most LIMIT of them; bright in red, or it sees nothing."""

    config_node = "ISDA"

    def __init__(self, cfg):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.is_rgb = cfg.INPUT.FORMAT == "RGB"
        self.seen = []

    def forward(self, batched_inputs):
        self.seen.append([tuple(x["image"].shape[1:]) for x in batched_inputs])
        return [{"instances": self.find(x)} for x in batched_inputs]

    def find(self, x):
        red = x["image"][0 if self.is_rgb else 2].numpy()
        parts, count = ndimage.label(red > 127)
        size = (x["height"], x["width"])
        single = [(parts == n).astype(np.uint8) for n in range(1, count + 1)]
        masks = [cv2.resize(mask, size[::-1]) > 0 for mask in single]
        masks = torch.from_numpy(np.array(masks, bool).reshape(-1, *size))
        scores = 1 - 1 / (1 + masks.flatten(1).sum(dim=1).float())
        best = scores.argsort(descending=True, stable=True)[:LIMIT]
        return Instances(
            size,
            pred_masks=masks[best],
            pred_boxes=Boxes(postprocessing.masks_to_boxes(masks[best]).tensor),
            scores=scores[best],
            pred_classes=torch.zeros(len(best), dtype=torch.int64),
        )


def probe_config(folder, *opts):
    path = folder / "probe.pth"
    torch.save({"model": {"weight": torch.zeros(1)}}, path)
    keys = {"MODEL.META_ARCHITECTURE": "BlobProbe", "MODEL.ISDA.NUM_CLASSES": 1}
    keys |= {"MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": str(path), "DATALOADER.NUM_WORKERS": 0}
    keys |= {"INPUT.MIN_SIZE_TEST": 64, "INPUT.MAX_SIZE_TEST": 96, "TEST.TILES.IMAGE_SIZE": 64}
    keys |= {"TEST.DETECTIONS_PER_IMAGE": LIMIT, "OUTPUT_DIR": str(folder / "output")}
    return load_config("", [item for pair in keys.items() for item in pair] + list(opts))


def blobs(height, width, count, seed=0):
    """``(H, W, 3)`` RGB with red discs that do not touch."""
    generator = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    for _ in range(count):
        centre = (int(generator.integers(0, width)), int(generator.integers(0, height)))
        free = np.zeros((height, width), np.uint8)
        cv2.circle(free, centre, 8, 1, -1)
        if not (image[..., 0][free > 0] > 0).any():
            cv2.circle(image, centre, int(generator.integers(2, 6)), (255, 0, 0), -1)
    return image


def true_masks(image) -> Iterator[bytes]:
    parts, count = ndimage.label(image[..., 0] > 127)
    return sorted((parts == n).tobytes() for n in range(1, count + 1))


def found_masks(prediction):
    return sorted(mask.numpy().tobytes() for mask in prediction.pred_masks)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_blob_of_a_large_image_is_found_once(tmp_path, image_format, batch_size):
    image = blobs(210, 330, 400)
    cfg = probe_config(tmp_path, "INPUT.FORMAT", image_format)
    predictor = Predictor(cfg, tiles="on", batch_size=batch_size)
    found = predictor(image)
    assert len(found) > 2 * LIMIT  # more than the model finds in an image
    assert found_masks(found) == true_masks(image)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    np.testing.assert_array_equal(found.image, image)
    assert {size for batch in predictor.model.seen for size in batch} == {(64, 64)}
    assert max(map(len, predictor.model.seen)) == batch_size


def test_masks_that_would_be_too_large_stay_encoded(tmp_path, monkeypatch):
    image = blobs(150, 150, 60)
    predictor = Predictor(probe_config(tmp_path), tiles="on")
    dense = predictor(image)
    assert isinstance(dense.pred_masks, torch.Tensor)
    monkeypatch.setattr(postprocessing, "_DENSE_PIXELS", 70 * 70 * LIMIT)
    encoded = predictor(image)
    assert isinstance(encoded.pred_masks, RLEMasks)
    assert found_masks(encoded) == found_masks(dense) == true_masks(image)


@pytest.mark.parametrize("size", [(64, 64), (30, 64), (1, 5)])
def test_an_image_no_larger_than_a_window_is_predicted_as_ever(tmp_path, size):
    cfg = small_config("isda")
    path = tmp_path / "weights.pth"
    torch.save({"model": small_model("isda").state_dict()}, path)
    cfg.merge_from_list(["MODEL.WEIGHTS", str(path), "INPUT.MIN_SIZE_TEST", 64])
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    plain, tiled = Predictor(cfg)(image), Predictor(cfg, tiles="on")(image)
    assert plain.get_fields().keys() == tiled.get_fields().keys()
    for name, value in plain.get_fields().items():
        other = tiled.get(name)
        is_boxes = isinstance(value, Boxes)
        assert torch.equal(*(x.tensor if is_boxes else x for x in (value, other)))


def test_lists_mix_large_and_small_images(tmp_path):
    predictor = Predictor(probe_config(tmp_path), tiles="auto", batch_size=3)
    sizes = [(64, 64), (200, 180), (64, 64), (300, 64)]
    images = [blobs(*size, 30, seed) for seed, size in enumerate(sizes)]
    for image, found in zip(images, predictor(images), strict=True):
        assert found_masks(found) == true_masks(image)


def test_auto_is_told_once_for_a_size(tmp_path, caplog):
    predictor = Predictor(probe_config(tmp_path), tiles="auto")
    with caplog.at_level(logging.INFO, "isda"):
        predictor([blobs(200, 180, 3), blobs(200, 180, 3), blobs(64, 64, 3)])
    (line,) = [r.message for r in caplog.records if "windows" in r.message]
    assert line == (
        "an image of 200 x 180 pixels (height x width) is seen in 4 x 4 windows of 64 x 64 pixels, "
        "scaled by 1; as a whole it would be seen 2.8 times smaller than it should"
    )


def test_what_windows_would_serve_is_warned_of_once(tmp_path, caplog):
    predictor = Predictor(probe_config(tmp_path))
    predictor([blobs(200, 180, 3), blobs(200, 180, 3), blobs(120, 90, 3)])
    (line,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert line == (
        "an image of 200 x 180 pixels (height x width) is shrunk 2.8 times before the model sees "
        "it, so small things are lost; tiles='auto' (--tiles) cuts such images into windows"
    )


def test_as_many_instances_as_the_model_can_find_are_warned_of(tmp_path, caplog):
    grid = np.zeros((64, 64, 3), np.uint8)
    grid[::6, ::6] = 255
    predictor = Predictor(probe_config(tmp_path))
    predictor([grid, grid])
    (line,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert line.startswith("an image has 40 instances, as many as the model can find: there may")
    assert line.endswith("tiles='on' (--tiles on) finds more in windows")


def test_a_large_file_is_never_read_as_a_whole(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    monkeypatch.setattr(window_reading, "_LARGE", 0)
    image = blobs(300, 200, 100)
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, image, photometric="rgb", tile=(64, 64), compression="zlib")
    monkeypatch.setattr("isda.data.images.reading.read_pixels", None)
    found = Predictor(probe_config(tmp_path), tiles="on")(path)
    assert found_masks(found) == true_masks(image)
    assert found.image is None
    assert found[:3].image is None
    with pytest.raises(ValueError, match="window by window, as it is too large to be drawn"):
        found.draw()
    assert found.draw(image).shape == image.shape
    found.save(tmp_path / "found.json")
    assert len(json.loads((tmp_path / "found.json").read_text())) == len(found)


def test_models_of_boxes_are_refused(tmp_path):
    cfg = load_config("", ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.WEIGHTS", "none.pth"])
    with pytest.raises(TilesError, match="RetinaNet predicts boxes only"):
        Predictor(cfg, tiles="auto")


@pytest.fixture
def mosaic(tmp_path):
    """A registered data set of one image with more than 100 instances."""
    image = blobs(230, 260, 320)
    cv2.imwrite(str(tmp_path / "mosaic.png"), image[..., ::-1])
    parts, count = ndimage.label(image[..., 0] > 127)
    annotations = []
    for number in range(1, count + 1):
        rle = coco_mask.encode(np.asfortranarray(parts == number, np.uint8))
        box, area = coco_mask.toBbox(rle).tolist(), float(coco_mask.area(rle))
        rle["counts"] = rle["counts"].decode()
        ids = {"id": number, "image_id": 7, "category_id": 1, "iscrowd": 0}
        annotations.append(ids | {"bbox": box, "area": area, "segmentation": rle})
    size = {"height": 230, "width": 260}
    content = {
        "images": [{"id": 7, "file_name": "mosaic.png"} | size],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "blob"}],
    }
    (tmp_path / "mosaic.json").write_text(json.dumps(content))
    register_coco_instances("tiles_mosaic", {}, str(tmp_path / "mosaic.json"), str(tmp_path))
    yield count
    DatasetCatalog.remove("tiles_mosaic")
    MetadataCatalog.remove("tiles_mosaic")


def test_evaluation_in_windows_counts_all_detections(tmp_path, mosaic, caplog):
    assert mosaic > 100
    cfg = probe_config(tmp_path, "DATASETS.TEST", '("tiles_mosaic",)')
    model = BlobProbe(cfg).eval()
    whole = Trainer.test(cfg, model)["segm"]["AP"]
    cfg.TEST.TILES.MODE = "auto"
    with caplog.at_level(logging.INFO, "isda"):
        tiled = Trainer.test(cfg, model)
    assert whole < 50 < 100 == tiled["segm"]["AP"] == tiled["bbox"]["AP"]
    assert f"AP counts the best {mosaic} detections of each image and class" in caplog.text
    predictions = json.loads(
        (tmp_path / "output/inference/coco_instances_results.json").read_text()
    )
    assert len(predictions) == mosaic


def test_evaluation_leaves_images_as_large_as_a_window_alone(tmp_path):
    """To the bit what the model itself gives after the loader's resize."""
    cfg = probe_config(tmp_path, "TEST.TILES.MODE", "on")
    image = blobs(50, 64, 9)
    model = BlobProbe(cfg).eval()
    inputs = [{"image": torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)}]
    (output,) = TiledModel(cfg, model)(inputs)
    found = output["instances"]
    assert found.image_size == (50, 64)
    assert model.seen == [[(64, 82)]]


def test_the_command_line_cuts_and_tells(tmp_path, capsys, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    image = blobs(300, 200, 100)
    tifffile.imwrite(tmp_path / "slide.tif", image, photometric="rgb")
    cfg = probe_config(tmp_path)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    command = ["predict", "--config-file", str(tmp_path / "config.yaml")]
    command += ["--input", str(tmp_path / "slide.tif"), "--output", str(tmp_path / "found.json")]
    command += ["--confidence-threshold", "0"]
    count = len(true_masks(image))
    for large in (2**26, 0):
        monkeypatch.setattr(window_reading, "_LARGE", large)
        assert cli.main([*command, "--tiles"]) == 0
        assert f"{count} instances" in capsys.readouterr().out
        assert len(json.loads((tmp_path / "found.json").read_text())["annotations"]) == count
    # A picture of what is never in the memory cannot be drawn.
    picture = [*command[:6], str(tmp_path / "drawn.png"), "--tiles", "64"]
    assert cli.main(picture) == 1
    assert "too large to be drawn or measured: give --output FILE.json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*command, "--tiles", "sometimes"])
    assert "auto, on, off or a number of pixels, got 'sometimes'" in capsys.readouterr().err
