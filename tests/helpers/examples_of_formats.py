"""Small annotation files of other tools, as these write them."""

import base64
import csv
import io
import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

SIZE = (40, 60)  # height, width
SQUARE = [[10, 5], [30, 5], [30, 25], [10, 25]]  # 20 x 20 pixels


def photo(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def png(pixels: np.ndarray) -> str:
    """Base64 of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def shape(label="nut", points=SQUARE, kind="polygon", **keys) -> dict:
    record = {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}}
    return record | keys


def labelme(path: Path, shapes: list, image: str | None = None, **keys) -> Path:
    """A file of labelme 5; its photo beside it unless ``image`` names one."""
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imageData": None}
    content |= {"imagePath": image or path.with_suffix(".jpg").name}
    content |= {"imageHeight": SIZE[0], "imageWidth": SIZE[1]} | keys
    if image is None:
        photo(path.with_suffix(".jpg"), seed=sum(map(ord, path.name)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
    return path


def polygon_region(points=SQUARE, name="polygon", **attributes) -> dict:
    xs, ys = zip(*points)
    region = {"name": name, "all_points_x": list(xs), "all_points_y": list(ys)}
    return {"shape_attributes": region, "region_attributes": attributes}


def via_content(regions: dict[str, list[dict]]) -> dict:
    """An export of VIA 2: ``{file name: regions}``."""
    return {
        f"{name}1234": {
            "filename": name,
            "size": 1234,
            "regions": listed,
            "file_attributes": {},
        }
        for name, listed in regions.items()
    }


def via_csv(path: Path, regions: dict[str, list[dict]]) -> Path:
    columns = ["filename", "file_size", "file_attributes", "region_count", "region_id"]
    columns += ["region_shape_attributes", "region_attributes"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for name, listed in regions.items():
            for index, region in enumerate(listed or [None]):
                shape = json.dumps(region["shape_attributes"] if region else {})
                attributes = json.dumps(region["region_attributes"] if region else {})
                writer.writerow([name, 1234, "{}", len(listed), index, shape, attributes])
    return path


def drawn(segmentation, size=SIZE) -> np.ndarray:
    """The pixels of a COCO segmentation, ``(H, W)`` bool."""
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, *size))
    return mask_util.decode(segmentation).astype(bool)


def grid(size=SIZE) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the centres of pixels."""
    ys, xs = np.mgrid[: size[0], : size[1]] + 0.5
    return xs, ys


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()
