"""A small training's folder: two classes, four images, and predictions whose fate is known."""

import json
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util

from isda.engine.setup import load_config

HEIGHT, WIDTH = 60, 90
CATEGORIES = [{"id": 3, "name": "cell <b>"}, {"id": 7, "name": "debris & dust"}]
# Image: (category, x, y, width, height) of its instances.
INSTANCES = {
    1: [(3, 5, 5, 20, 20), (7, 50, 10, 20, 30)],
    2: [(3, 5, 5, 20, 20), (3, 26, 5, 20, 20), (3, 60, 30, 10, 10)],
    3: [(3, 10, 10, 30, 30), (7, 60, 10, 20, 20)],
    4: [],
}
# Image: (score, category, x, y, width, height) of what is predicted there.
PREDICTIONS = {
    1: [(0.9, 3, 5, 5, 20, 20), (0.8, 7, 50, 10, 20, 30)],  # both exactly
    2: [(0.9, 3, 5, 5, 41, 20)],  # two in one, and nothing for the third
    3: [(0.9, 3, 10, 10, 30, 30), (0.6, 3, 10, 10, 30, 27), (0.85, 3, 60, 10, 20, 20)],
    4: [],
}


def rectangle(x, y, width, height):
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def coco_content() -> dict:
    annotations = []
    for image, instances in INSTANCES.items():
        for category, *box in instances:
            annotation = {"id": len(annotations) + 1, "image_id": image, "iscrowd": 0}
            annotation |= {"category_id": category, "bbox": box, "area": box[2] * box[3]}
            annotations.append(annotation | {"segmentation": rectangle(*box)})
    images = [
        {"id": i, "file_name": f"image_{i}.png", "height": HEIGHT, "width": WIDTH}
        for i in INSTANCES
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def coco_results() -> list[dict]:
    return [
        {
            "image_id": image,
            "category_id": category,
            "score": score,
            "bbox": box,
            "segmentation": rle(*box, HEIGHT, WIDTH),
        }
        for image, predictions in PREDICTIONS.items()
        for score, category, *box in predictions
    ]


METRICS = [
    {"iteration": 19, "total_loss": 4.0, "loss_cls": 1.0, "loss_mask": 2.0, "loss_mask_0": 1.0}
    | {"lr": 1e-4, "time": 0.5, "data_time": 0.1, "grad_norm": 12.0},
    {"iteration": 39, "total_loss": 3.0, "loss_cls": 0.9, "loss_mask": 1.6, "loss_mask_0": 0.5}
    | {"lr": 1e-4, "time": 0.5, "data_time": 0.1, "grad_norm": 8.0},
    {"iteration": 49, "segm/AP": 71.25, "bbox/AP": 60.5},
    {"iteration": 59, "total_loss": 2.5, "loss_cls": 0.8, "loss_mask": 1.5, "loss_mask_0": 0.2}
    | {"lr": 1e-5, "time": 0.5, "data_time": 0.1, "grad_norm": 6.0},
]
LOG = """\
[01/02 03:00:00] isda.data.registration WARNING: an older training in this folder
[01/02 03:04:05] isda.engine.setup WARNING: MODEL.DEVICE is cpu: no CUDA device can be used
[01/02 03:04:06] isda.engine.trainer INFO: nothing to worry about
[01/02 03:04:07] isda.data.images WARNING: <script>alert("deep")</script> images
[01/02 03:04:08] isda.data.images WARNING: <script>alert("deep")</script> images
"""
ENVIRONMENT = {
    "started": "2026-01-02T03:04:00",
    "first_iteration": 0,
    "planned_iterations": 60,
    "command": "train_net.py --config-file configs/x.yaml SOLVER.MAX_ITER 60",
    "folder": ".",
    "commit": "abc1234-dirty",
    "machine": {"system": "Linux", "cpu": "Some CPU", "cores": 2, "threads": 2, "memory": 8.0}
    | {"gpus": [], "processes": 1},
    "versions": {"python": "3.11.2", "torch": "2.14.1"},
    "ended": "2026-01-02T03:05:05",
    "seconds": 65.0,
    "iterations": 60,
    "peak_memory": {"host": 1.5},
}


def make_training(folder: Path) -> Path:
    """An OUTPUT_DIR with everything in it."""
    data, output = folder / "data", folder / "run <one>"
    data.mkdir()
    (output / "inference").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for image in INSTANCES:
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        cv2.imwrite(str(data / f"image_{image}.png"), pixels)
    (data / "val.json").write_text(json.dumps(coco_content()))
    source = {"name": "toy_val", "json_file": str(data / "val.json"), "image_root": str(data)}
    environment = {"sessions": [ENVIRONMENT], "data": {"train": [source], "test": [source]}}
    (output / "environment.json").write_text(json.dumps(environment))
    (output / "metrics.json").write_text("".join(json.dumps(r) + "\n" for r in METRICS))
    results = json.dumps(coco_results())
    (output / "inference" / "coco_instances_results.json").write_text(results)
    words = ["SOLVER.MAX_ITER", "60", "DATASETS.TEST", "('toy_val',)", "SOLVER.EPOCHS", "6"]
    (output / "config.yaml").write_text(load_config("", words).dump())
    (output / "log.txt").write_text(LOG)
    (output / "last_checkpoint").write_text("model_final.pth")
    return output


def random_case(seed, num_images=6):
    """Boxes of all sizes, their masks in the left half, and predictions near them."""
    rng = np.random.default_rng(seed)
    images = [{"id": i, "height": 300, "width": 300, "file_name": ""} for i in range(num_images)]
    annotations, predictions = [], []
    for image in range(num_images):
        for _ in range(8):
            x, y = rng.integers(0, 150, 2).tolist()
            w, h = rng.integers(5, 140, 2).tolist()
            category = int(rng.integers(1, 4))
            common = {"image_id": image, "category_id": category}
            annotation = common | {"id": len(annotations) + 1, "bbox": [x, y, w, h]}
            annotation["area"] = w // 2 * h
            crowd = int(rng.random() < 0.1)
            annotations.append(
                annotation | {"iscrowd": crowd, "segmentation": rle(x, y, w // 2, h)}
            )
            for _ in range(int(rng.integers(0, 3))):
                box = [max(0, v + int(rng.integers(-6, 7))) for v in (x, y, w, h)]
                prediction = common | {"score": float(rng.random()), "bbox": box}
                mask = rle(box[0], box[1], box[2] // 2, box[3])
                predictions.append(prediction | {"segmentation": mask})
    categories = [{"id": i, "name": f"class {i}"} for i in (1, 2, 3)]
    return {"images": images, "annotations": annotations, "categories": categories}, predictions


def rle(x, y, w, h, height=300, width=300):
    """As Detectron2's evaluator writes it."""
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[y : y + max(h, 1), x : x + max(w, 1)] = 1
    encoded = mask_util.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}
