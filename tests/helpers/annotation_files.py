"""Small annotation files in COCO's format."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util

SIZE = (40, 60)  # height, width
ASSETS = Path(__file__).parents[1] / "assets"
NUCLEI = Path(__file__).parents[2] / "datasets" / "nuclei_mini"


def box_polygon(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def compressed(mask: np.ndarray) -> dict:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def annotation(segmentation, bbox=(5, 6, 20, 10), **keys) -> dict:
    """Without the keys whose value is None."""
    record = {"iscrowd": 0, "bbox": None if bbox is None else list(bbox), "area": 100}
    record |= {"segmentation": segmentation, **keys}
    return {key: value for key, value in record.items() if value is not None}


def write(path: Path, annotations: list[dict], size: tuple[int, int] = SIZE) -> str:
    """One image, one category."""
    ids = [{"id": i + 1, "image_id": 1, "category_id": 1} for i in range(len(annotations))]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": size[0], "width": size[1]}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [first | second for first, second in zip(ids, annotations)],
    }
    path.write_text(json.dumps(content))
    return str(path)


def random_polygons(count: int, seed: int = 0) -> list[dict]:
    """Irregular stars, with their tight boxes."""
    rng = np.random.default_rng(seed)
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    annotations = []
    for _ in range(count):
        radii = rng.uniform(4, 15, 12)
        points = np.stack([30 + radii * np.cos(angles), 20 + radii * np.sin(angles)], axis=1)
        low, high = points.min(axis=0), points.max(axis=0)
        annotations.append(annotation([points.reshape(-1).tolist()], [*low, *(high - low)]))
    return annotations
