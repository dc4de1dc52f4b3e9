"""A folder that stands for the checkout of a user, with what the pages take for granted."""

import json
import shutil
import venv
from pathlib import Path

import cv2
import examples_of_datasets
import numpy as np
import tifffile
import torch
import torchvision
from commands import ROOT, Command
from examples_of_formats import SQUARE, labelme, photo, shape
from typist import type_command

__all__ = ["Trainings", "prepare"]

# A training's OUTPUT_DIR in the pages: the configuration, and what follows it.
TRAININGS = {
    "output/demo/isda": "configs/nuclei/isda_boxes_tiny.yaml",
    "output/shapes": "configs/shapes/isda_tiny.yaml",
    "output/isda": "configs/shapes/isda_tiny.yaml",
    "output/istr": "configs/shapes/istr_tiny.yaml",
    "output/mask_rcnn": "configs/shapes/isda_tiny.yaml",  # only its metrics are read
    "output/nuclei": "configs/nuclei/isda_boxes_mobilenet_v2.yaml",
    "output/mine": "configs/finetune/isda_mobilenet_v2.yaml --dataset mine",
}
# Photographs, and folders of them.
PHOTOS = ("a.jpg", "a.png", "b.png", "cells.png", "my_photo.jpg", "photo.jpg", "photo.png")
PHOTOS += ("folder/1.png", "my/1.png", "my/2.png", "photos/1.jpg", "photos/2.jpg")
NUCLEI = ROOT / "datasets" / "nuclei_mini"


class Trainings:
    """Each is made once, when a page first needs it, and copied."""

    def __init__(self, folder: Path):
        self.folder = folder

    def copy(self, output: str) -> None:
        """Into the working directory."""
        words = TRAININGS[output]
        made = self.folder / words.replace("/", "_")
        if not made.is_dir():
            text = f"python train_net.py --config-file {words} OUTPUT_DIR {output}"
            type_command(Command("a page's training", 0, text), {})
            shutil.copytree(output, made)
            # Two steps are too few for their time to be noted.
            with (made / "metrics.json").open("a") as metrics:
                metrics.write('{"iteration": 19, "total_loss": 1.0, "time": 0.5}\n')
                metrics.write('{"iteration": 19, "segm/AP": 5.0}\n')
        shutil.copytree(made, output, dirs_exist_ok=True)


def prepare(place: Path, page: str, trainings: Trainings) -> None:
    """Makes the working directory what the page's commands expect."""
    for name in ("benchmarks", "configs", "demo", "tools", "train_net.py"):
        (place / name).symlink_to(ROOT / name)
    few_nuclei(place / "datasets" / "nuclei_mini")
    for seed, name in enumerate(PHOTOS):
        photo(place / name, (48, 64), seed)
    examples_of_datasets.write(place / "mine")
    for make in OF_PAGE.get(page, ()):
        make(place)
    for output in PRESUPPOSED.get(page, ()):
        trainings.copy(output)


def few_nuclei(folder: Path) -> None:
    """Four images of the embedded set for each split."""
    (folder / "images").mkdir(parents=True)
    for split in ("train", "val"):
        content = json.loads((NUCLEI / f"instances_{split}.json").read_text())
        content["images"] = sorted(content["images"], key=lambda x: x["width"] * x["height"])[:4]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
        for image in content["images"]:
            (folder / "images" / image["file_name"]).symlink_to(
                NUCLEI / "images" / image["file_name"]
            )


def own_data(folder: Path) -> None:
    """``train.json`` and ``val.json`` beside ``images``."""
    (folder / "images").mkdir(parents=True)
    for split, start in (("train", 1), ("val", 101)):
        content = examples_of_datasets.content(start)
        (folder / f"{split}.json").write_text(json.dumps(content))
        for image in content["images"]:
            photo(folder / "images" / image["file_name"], seed=image["id"])


def coco(place: Path) -> None:
    """A stand-in with COCO's 80 classes."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    things = [c for c in COCO_CATEGORIES if c["isthing"]]
    categories = [{"id": c["id"], "name": c["name"]} for c in things]
    folder = place / "datasets" / "coco"
    (folder / "annotations").mkdir(parents=True)
    for split, start in (("train", 1), ("val", 101)):
        content = examples_of_datasets.content(start) | {"categories": categories}
        for annotation in content["annotations"]:
            x, y = annotation["segmentation"][0][:2]
            annotation |= {"bbox": [x, y, 8, 20], "area": 160}
        file = folder / "annotations" / f"instances_{split}2017.json"
        file.write_text(json.dumps(content))
        for image in content["images"]:
            photo(folder / f"{split}2017" / image["file_name"], seed=image["id"])


def annotations_alone(place: Path) -> None:
    for split, start in (("train", 1), ("val", 101)):
        content = json.dumps(examples_of_datasets.content(start))
        (place / f"instances_{split}2017.json").write_text(content)
        (place / f"instances_{split}.json").write_text(content)


def stacks(place: Path) -> None:
    """Three pages, and two channels."""
    pixels = np.random.default_rng(0).integers(0, 4096, (3, 48, 64)).astype(np.uint16)
    tifffile.imwrite(place / "stack.tif", pixels, photometric="minisblack")
    axes = {"axes": "CYX"}
    tifffile.imwrite(place / "two_channels.tif", pixels[:2], imagej=True, metadata=axes)


def labelme_files(place: Path) -> None:
    for name in ("a", "b", "c"):
        labelme(place / "my_labelme_files" / f"{name}.json", [shape(points=SQUARE)])


def bowl(place: Path) -> None:
    """Two folders of the Data Science Bowl's."""
    for name in ("1" * 20, "2" * 20, "3" * 20):
        folder = place / "kaggle-dsbowl-2018-dataset-fixes/stage1_train" / name
        photo(folder / "images" / f"{name}.png")
        (folder / "masks").mkdir()
        mask = np.zeros((40, 60), np.uint8)
        mask[4:12, 6:20] = 255
        cv2.imwrite(str(folder / "masks" / "1.png"), mask)


def resnets(place: Path) -> None:
    """Files in torchvision's names."""
    torch.save(torchvision.models.resnet50().state_dict(), place / "THEIRS.pth")
    shutil.copy(place / "THEIRS.pth", place / "resnet50.pth")
    torch.save(torchvision.models.resnext50_32x4d().state_dict(), place / "resnext50_32x4d.pth")


def video(place: Path) -> None:
    writer = cv2.VideoWriter(str(place / "in.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, (64, 48))
    for level in (60, 120):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()


def sources(place: Path) -> None:
    """What ``pip install`` needs of a checkout, to be written to."""
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, place)
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", "weights")
    shutil.copytree(ROOT / "projects", place / "projects", ignore=ignored)


def environment(place: Path) -> None:
    venv.create(place / ".venv", with_pip=False, symlinks=True)


OF_PAGE = {
    "demo/README.md": (video,),
    "datasets/README.md": (
        bowl,
        lambda place: own_data(place / "cells"),
        lambda place: shutil.copytree(place / "mine", place / "my_data"),
    ),
    "docs/GETTING_STARTED.md": (
        coco,
        labelme_files,
        lambda place: shutil.rmtree(place / "mine"),  # which the page makes
    ),
    "docs/INSTALL.md": (environment, sources),
    "docs/MODEL_ZOO.md": (lambda place: few_nuclei(place / "datasets" / "nuclei"),),
    "docs/MASK_EMBEDDING.md": (annotations_alone,),
    "docs/RESULTS.md": (stacks,),
    "docs/WEIGHTS.md": (resnets,),
    "projects/isda/weights/README.md": (annotations_alone,),
}
PRESUPPOSED = {
    "demo/README.md": ("output/demo/isda",),
    "tools/README.md": ("output/shapes", "output/istr"),
    "docs/BENCHMARK.md": ("output/isda", "output/istr", "output/mask_rcnn"),
    "docs/GETTING_STARTED.md": ("output/demo/isda",),
    "docs/MODEL_ZOO.md": ("output/mine", "output/nuclei"),
}
