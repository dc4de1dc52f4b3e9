"""Files of results, read back by other programs."""

import csv
import importlib.util
import json

import cv2
import numpy as np
import pytest
import tifffile
from examples_of_results import awkward_masks, filled, prediction_of

from isda.prediction.errors import MissingPackageError
from isda.prediction.files import format_of
from isda.prediction.results import label_image as label_images
from isda.structures import RLEMasks

MASKS = np.stack([*awkward_masks().values()])
needs_roifile = pytest.mark.skipif(
    importlib.util.find_spec("roifile") is None, reason="needs roifile"
)
needs_skimage = pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None, reason="needs scikit-image"
)


@pytest.fixture(params=["dense", "encoded"])
def prediction(request):
    found = prediction_of(MASKS, classes=[0, 1] * 7 + [0])
    if request.param == "encoded":
        masks = RLEMasks.encode(found.pred_masks)
        found.remove("pred_masks")
        found.pred_masks = masks
    return found


def test_the_suffix_says_what_a_file_holds():
    names = {
        "a.png a.jpg a.webp a_masks.png with_masks.png": "picture",
        "a.tif A.TIFF a.masks.png a.masks.tif a.ome.tif": "labels",
        "a.zip a.rois.zip": "rois",
        "a.geojson": "geojson",
        "a.json": "coco",
        "a.txt": "yolo",
        "a.csv": "table",
    }
    for words, form in names.items():
        assert {format_of(word) for word in words.split()} == {form}


@pytest.mark.parametrize("name", ["a.tif", "a.masks.png"])
def test_in_a_label_image_the_higher_score_wins(tmp_path, name):
    masks = np.zeros((4, 6, 8), bool)
    masks[0, :4, :4] = masks[1, 2:, 2:] = masks[2, 0:2, 5:8] = True
    masks[3, 0, 0] = True  # wholly below the first
    found = prediction_of(masks, scores=[0.8, 0.9, 0.3, 0.1])
    found.save(tmp_path / "new" / name)
    path = tmp_path / "new" / name
    labels = tifffile.imread(path) if name == "a.tif" else cv2.imread(str(path), -1)
    expected = np.zeros((6, 8), int)
    expected[masks[2]], expected[masks[0]], expected[masks[1]] = 3, 1, 2
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(found.label_image(), expected)


def test_label_images_of_many_instances(tmp_path, monkeypatch):
    monkeypatch.setattr(label_images, "_LARGEST", 3)
    found = prediction_of(MASKS[:4])
    found.save(tmp_path / "a.tif")
    assert tifffile.imread(tmp_path / "a.tif").dtype == np.uint32
    with pytest.raises(OSError, match="numbers up to 3, and there are 4 instances: use .tif"):
        found.save(tmp_path / "a.masks.png")
    assert not (tmp_path / "a.masks.png").exists()


def test_geojson_is_exact(prediction, tmp_path):
    prediction.save(tmp_path / "a.geojson")
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    assert len(content["features"]) == len(MASKS)
    for feature, mask, index in zip(content["features"], MASKS, range(len(MASKS))):
        geometry = feature["geometry"]
        parts = geometry["coordinates"]
        parts = [parts] if geometry["type"] == "Polygon" else parts
        assert geometry["type"] == ("Polygon" if len(parts) == 1 else "MultiPolygon")
        rings = [ring for part in parts for ring in part]
        assert all(ring[0] == ring[-1] for ring in rings)
        np.testing.assert_array_equal(filled(rings, mask.shape), mask)
        properties = feature["properties"]
        assert feature["type"] == "Feature" and properties["objectType"] == "detection"
        assert properties["classification"] == {"name": ("nucleus", "cell/2")[index % 2]}
        assert properties["measurements"]["score"] == prediction.scores[index].item()


@needs_roifile
def test_rois_of_imagej_are_exact(prediction, tmp_path):
    import roifile

    prediction.save(tmp_path / "a.zip")
    regions = roifile.roiread(tmp_path / "a.zip")
    assert len(regions) == len(MASKS)
    assert [region.name for region in regions[:2]] == ["0001 nucleus 0.90", "0002 cell_2 0.87"]
    kinds = set()
    for region, mask in zip(regions, MASKS):
        kinds.add(region.composite)
        if region.composite:
            rings = rings_of_segments(np.asarray(region.multi_coordinates))
        else:
            rings = [region.coordinates()]
            assert region.roitype == roifile.ROI_TYPE.POLYGON
        np.testing.assert_array_equal(filled(rings, mask.shape), mask)
        y, x = mask.nonzero()
        assert (region.left, region.top) == (x.min(), y.min())
        assert (region.right, region.bottom) == (x.max() + 1, y.max() + 1)
    assert kinds == {True, False}


def rings_of_segments(numbers):
    """Of a composite region, as ImageJ's ShapeRoi reads them: 0 moves, 1 draws, 4 closes."""
    rings, numbers = [], numbers.tolist()
    while numbers:
        kind = numbers.pop(0)
        if kind == 0:
            rings.append([])
        if kind in (0, 1):
            rings[-1].append((numbers.pop(0), numbers.pop(0)))
        else:
            assert kind == 4
    return rings


@needs_roifile
def test_regions_of_imagej_end_somewhere(tmp_path):
    found = prediction_of(np.ones((1, 1, 32768), bool))
    with pytest.raises(OSError, match="32767 pixels, and the image has 32768x1.*use .geojson"):
        found.save(tmp_path / "a.zip")


def test_yolo_is_exact(prediction, tmp_path):
    prediction.save(tmp_path / "a.txt")
    lines = (tmp_path / "a.txt").read_text().splitlines()
    assert len(lines) == len(MASKS)
    height, width = MASKS.shape[1:]
    for line, mask, number in zip(lines, MASKS, prediction.pred_classes.tolist()):
        klass, *values = line.split()
        points = np.array(values, float).reshape(-1, 2)
        assert int(klass) == number
        assert points.min() >= 0 and points.max() <= 1 and len(points) >= 3
        np.testing.assert_array_equal(filled([points * (width, height)], mask.shape), mask)


@needs_skimage
def test_measurements_are_of_the_numbers_that_the_image_came_in(tmp_path):
    y, x = np.mgrid[:60, :80]
    ellipse = ((x - 40) / 20) ** 2 + ((y - 30) / 10) ** 2 <= 1
    found = prediction_of(np.stack([ellipse, np.zeros_like(ellipse)]))
    found._pixels = (x * 100 + y).astype(np.uint16)
    found.save(tmp_path / "a.csv")
    row, empty = csv.DictReader((tmp_path / "a.csv").open())
    assert (row["label"], row["class"], row["score"]) == ("1", "nucleus", "0.9")
    assert int(row["area"]) == ellipse.sum() == pytest.approx(np.pi * 200, rel=0.02)
    assert float(row["centroid_x"]) == pytest.approx(40)
    assert float(row["centroid_y"]) == pytest.approx(30)
    assert float(row["axis_major_length"]) == pytest.approx(40, rel=0.02)
    assert float(row["axis_minor_length"]) == pytest.approx(20, rel=0.03)
    assert float(row["eccentricity"]) == pytest.approx(np.sqrt(0.75), rel=0.01)
    assert float(row["intensity_mean"]) == pytest.approx(4030)
    assert (empty["area"], empty["centroid_x"]) == ("0", "")
    assert [m["area"] for m in found.measurements()] == [ellipse.sum(), 0]


@needs_skimage
def test_colours_are_measured_each(tmp_path):
    image = np.zeros((12, 17, 3), np.uint8)
    image[..., 1], image[..., 2] = 50, 200
    rows = prediction_of(MASKS, image=image).measurements()
    assert [row["area"] for row in rows] == MASKS.sum(axis=(1, 2)).tolist()
    names = [f"intensity_mean_{colour}" for colour in ("red", "green", "blue")]
    assert [[row[name] for name in names] for row in rows] == [[0, 50, 200]] * len(rows)


@pytest.mark.parametrize("end", ["tif", "masks.png", "zip", "geojson", "txt", "csv", "json", "png"])
def test_nothing_found_is_no_special_case(tmp_path, end):
    needed = {"zip": "roifile", "csv": "skimage"}.get(end)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"needs {needed}")
    prediction_of(MASKS[:0]).save(tmp_path / f"a.{end}")
    assert (tmp_path / f"a.{end}").is_file()


@pytest.mark.parametrize(("end", "package"), [("zip", "roifile"), ("csv", "scikit-image")])
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, end, package):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("isda.prediction.errors.import_module", missing)
    with pytest.raises(MissingPackageError, match=f"needs {package}: pip install {package}"):
        prediction_of(MASKS).save(tmp_path / f"a.{end}")


def test_a_model_of_boxes_alone_has_no_masks_to_write(tmp_path):
    found = prediction_of(MASKS)
    found.remove("pred_masks")
    with pytest.raises(ValueError, match="predicts no masks"):
        found.save(tmp_path / "a.tif")


def test_supervision_takes_it_in_one_call():
    supervision = pytest.importorskip("supervision")
    found = prediction_of(MASKS, classes=[0, 1] * 7 + [0])
    detections = found.to_supervision()
    assert isinstance(detections, supervision.Detections) and len(detections) == len(MASKS)
    np.testing.assert_array_equal(detections.mask, MASKS)
    assert detections.data["class_name"][:2].tolist() == ["nucleus", "cell/2"]
    other = supervision.Detections.from_detectron2({"instances": found})
    np.testing.assert_array_equal(other.mask, detections.mask)
    np.testing.assert_array_equal(other.confidence, detections.confidence)
    assert len(prediction_of(MASKS[:0]).to_supervision()) == 0
