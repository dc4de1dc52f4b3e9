"""A small data set in COCO's layout, in order, for tests to spoil."""

import copy
import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (40, 60)  # height, width


def box(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def annotation(id: int, image_id: int, category_id: int, segmentation, **keys) -> dict:
    record = {"id": id, "image_id": image_id, "category_id": category_id, "iscrowd": 0}
    return record | {"segmentation": segmentation} | keys


def content(start: int) -> dict:
    """Ten images with two instances each; ``start`` is the number of the first image."""
    numbers = range(start, start + 10)
    return {
        "images": [
            {"id": n, "file_name": f"{n}.png", "height": SIZE[0], "width": SIZE[1]} for n in numbers
        ],
        "categories": [{"id": 1, "name": "fig"}, {"id": 2, "name": "nut"}],
        "annotations": [
            annotation(2 * n + c, n, c, box(10 * c + 0.3 * n, 5, 8, 20))
            for n in numbers
            for c in (1, 2)
        ],
    }


def write(folder: Path, train: dict | None = None, val: dict | None = None) -> Path:
    """The folder with what is given, its images drawn; returns it."""
    for split, part in (("train", train or content(1)), ("val", val or content(101))):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for image in copy.deepcopy(part["images"]):
            generator = np.random.default_rng(image["id"])
            pixels = generator.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / image["file_name"])
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(part))
    return folder
