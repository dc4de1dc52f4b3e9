"""Projects of Supervisely: bitmaps of all kinds, polygons with holes, bound figures."""

import base64
import io
import json
import zlib

import cv2
import numpy as np
import pytest
from examples_of_formats import drawn, iou
from known_truth import CLASSES, NAMES, SIZE, compare, instances, write_images
from PIL import Image

from isda.data.formats import Report, detect_format, read_annotations


def bitmap(label, mask, mode="palette", **keys) -> dict:
    """A PNG of the mask in its box, packed; as the SDK writes it, or with alpha."""
    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    buffer = io.BytesIO()
    if mode == "palette":
        image = Image.fromarray(part.astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 255, 255, 255])
        image.save(buffer, "PNG", transparency=0, optimize=0)
    elif mode == "alpha":
        Image.fromarray(
            np.dstack([np.full((*part.shape, 3), 255), part * 255]).astype(np.uint8)
        ).save(buffer, "PNG")
    else:
        Image.fromarray(part).save(buffer, "PNG")
    data = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    origin = [int(columns[0]), int(rows[0])]
    record = {"classTitle": label, "geometryType": "bitmap", "tags": []}
    return record | {"bitmap": {"data": data, "origin": origin}} | keys


def polygon(label, mask, **keys) -> list[dict]:
    """Through the outermost pixels, as the labelling tool stores them."""
    contours, levels = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    shapes = []
    for contour, level in zip(contours, levels[0]):
        if level[3] >= 0:
            continue
        points = {"exterior": contour[:, 0].tolist(), "interior": []}
        record = {"classTitle": label, "geometryType": "polygon", "points": points}
        shapes.append(record | keys)
    return shapes


def objects(number, mode="palette") -> list[dict]:
    shapes = []
    for label, mask in instances(number):
        if label in ("block", "dot"):
            shapes += polygon(label, mask)
        elif label == "pair":
            shapes += polygon(label, mask, instance="abc")
        else:
            shapes.append(bitmap(label, mask, mode))
    return shapes


def write(folder, shapes=objects):
    classes = [{"title": name, "shape": "any", "color": "#123456"} for name in CLASSES]
    (folder / "meta.json").write_text(json.dumps({"classes": classes, "tags": []}))
    for number, name in enumerate(NAMES):
        dataset = folder / ("train" if number < 4 else "val")
        (dataset / "ann").mkdir(parents=True, exist_ok=True)
        content = {"description": "", "tags": [], "size": {"height": SIZE[0], "width": SIZE[1]}}
        content["objects"] = shapes(number)
        (dataset / "ann" / f"{name}.json").write_text(json.dumps(content))
    for path, number in zip(write_images(folder / "all"), range(6)):
        place = folder / ("train" if number < 4 else "val") / "img"
        place.mkdir(exist_ok=True)
        path.rename(place / path.name)
    (folder / "all").rmdir()
    return folder


@pytest.mark.parametrize("mode", ["palette", "alpha", "1 bit"])
def test_the_truth(tmp_path, mode):
    folder = write(tmp_path, lambda number: objects(number, mode))
    report = Report()
    assert detect_format(folder).name == "supervisely"
    images = read_annotations(folder, report)
    compare(images)
    assert (report.skipped, report.refused) == ([], []) and report.classes == list(CLASSES)
    assert sorted(i.split for i in images) == ["train"] * 4 + ["val"] * 2


def test_polygons_are_drawn_as_its_sdk_draws_them(tmp_path):
    """By cv2.fillPoly, the outline first, then the holes, borders included."""
    exterior = [[20, 20], [130, 30], [110, 100], [60, 90], [15, 70]]
    interior = [[50, 40], [80, 45], [70, 70]]
    points = {"exterior": exterior, "interior": [interior]}
    shape = {"classTitle": "ring", "geometryType": "polygon", "points": points}
    expected = np.zeros(SIZE, np.uint8)
    cv2.fillPoly(expected, [np.array(exterior)], 1)
    cv2.fillPoly(expected, [np.array(interior)], 0)
    image, *_ = read_annotations(write(tmp_path, lambda number: [shape]), Report())
    (instance,) = image.instances
    assert iou(drawn(instance.segmentation, SIZE), expected.astype(bool)) > 0.995


def test_what_is_skipped(tmp_path):
    def shape(kind, points, **keys):
        return {"classTitle": "dot", "geometryType": kind, "points": {"exterior": points}} | keys

    shapes = [
        shape("point", [[3, 4]]),
        shape("bitmap", [], bitmap={"data": "abc", "origin": [0, 0]}),
        shape("polygon", [[3, 4], [9, 4], [9, 9]], classTitle=None),
        shape("rectangle", [[3, 4], [5, 6]]),
    ]
    report = Report()
    image, *_ = read_annotations(write(tmp_path, lambda number: shapes), report)
    (instance,) = image.instances
    assert drawn(instance.segmentation, SIZE)[4:7, 3:6].all()
    assert report.reasons() == {
        "of type point, which has no mask": 6,
        "malformed": 6,
        "without a class": 6,
    }
