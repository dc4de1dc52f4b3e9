"""Datumaro's JSON and Darwin's: the truth by both, and shapes that are none."""

import json

import numpy as np
import pycocotools.mask as mask_util
from known_truth import (
    CLASSES,
    NAMES,
    SIZE,
    compare,
    instances,
    outlines,
    parts_and_holes,
    write_images,
)

from isda.data.formats import Report, detect_format, read_annotations


def annotations(number: int) -> list[dict]:
    result = []
    for index, (label, mask) in enumerate(instances(number), start=1):
        outer, holes = parts_and_holes(mask)
        shared = {"id": index, "label_id": CLASSES.index(label), "attributes": {}, "z_order": 0}
        if holes:
            rle = mask_util.encode(np.asfortranarray(mask, np.uint8))
            rle = {"counts": rle["counts"].decode(), "size": list(SIZE)}
            result.append(shared | {"type": "mask", "group": 0, "rle": rle})
            continue
        group = index if len(outer) > 1 else 0
        for path in outer:
            points = [float(value) for point in path for value in point]
            result.append(shared | {"type": "polygon", "group": group, "points": points})
    return [*result, {"id": 9, "type": "points", "label_id": 0, "group": 0, "points": [1, 2]}]


def test_datumaro(tmp_path):
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        items = []
        for number in numbers:
            image = {"path": NAMES[number], "size": list(SIZE)}
            item = {"id": NAMES[number][:-4], "annotations": annotations(number), "image": image}
            items.append(item)
        labels = [{"name": name, "parent": "", "attributes": []} for name in CLASSES]
        content = {"info": {}, "categories": {"label": {"labels": labels}}, "items": items}
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/{split}.json").write_text(json.dumps(content))
        for path in write_images(tmp_path / "images" / split):
            if int(path.stem[2]) not in numbers:
                path.unlink()
    report = Report()
    assert detect_format(tmp_path).name == "datumaro"
    images = read_annotations(tmp_path, report)
    compare(images)
    assert report.reasons() == {"of type points, which has no mask": 6} and not report.refused
    assert report.classes == list(CLASSES)
    assert [image.split for image in images] == ["train"] * 4 + ["val"] * 2


def paths_of(mask) -> list[list[dict]]:
    return [[{"x": float(x), "y": float(y)} for x, y in path] for path in outlines(mask)]


def test_darwin_2(tmp_path):
    write_images(tmp_path / "images")
    for number, name in enumerate(NAMES):
        slot = {"slot_name": "0", "width": SIZE[1], "height": SIZE[0], "source_files": []}
        item = {"name": name, "path": "/", "slots": [slot]}
        shapes = [
            {"name": label, "polygon": {"paths": paths_of(mask)}, "slot_names": ["0"]}
            for label, mask in instances(number)
        ]
        shapes.append({"name": "dot", "keypoint": {"x": 1, "y": 2}})
        content = {"version": "2.0", "item": item, "annotations": shapes}
        (tmp_path / name.replace("png", "json")).write_text(json.dumps(content))
    report = Report()
    assert detect_format(tmp_path).name == "darwin"
    compare(read_annotations(tmp_path, report))
    assert report.reasons() == {"without a polygon or a box": 6} and not report.refused


def test_darwin_1(tmp_path):
    write_images(tmp_path)
    for number, name in enumerate(NAMES):
        shapes = []
        for label, mask in instances(number):
            paths = paths_of(mask)
            if len(paths) == 1:
                shapes.append({"name": label, "polygon": {"path": paths[0]}})
            else:
                shapes.append({"name": label, "complex_polygon": {"path": paths}})
        image = {"filename": name, "width": SIZE[1], "height": SIZE[0], "path": "/"}
        content = {"image": image, "annotations": shapes}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    compare(read_annotations(tmp_path, Report()))
