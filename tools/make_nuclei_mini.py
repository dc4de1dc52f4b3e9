#!/usr/bin/env python3
"""Cuts datasets/nuclei_mini out of the whole Data Science Bowl 2018 set in COCO format.

    python tools/make_nuclei_mini.py --source DIR [--output datasets/nuclei_mini]

DIR holds images/, instances_train.json and instances_val.json. Which images are taken depends on
DIR alone: of every kind of image half the places go to the images with the most touching nuclei,
half to a draw by SHA-1 of the file name. Large fields are cut to the window with the most nuclei.
"""

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from pathlib import Path

from isda import console
from isda.cli import guarded
from isda.errors import UserError
from isda.files import write_bytes, write_text

import cv2
import numpy as np
import pycocotools.mask as mask_util

WINDOW = 256
MAX_NUCLEI = 100  # COCO evaluates 100 predictions per image
# Places per kind of image and split: about the source's shares, but fewer in colour (90 kB each).
KINDS = ("gray 256x256", "gray 360x360", "gray 696x520", "color 320x256")
PLACES = {"train": (88, 17, 15, 5), "val": (24, 6, 6, 3)}
MAX_BYTES = 6_000_000


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="folder of the whole set")
    parser.add_argument("--output", type=Path, default=Path("datasets/nuclei_mini"))
    args = parser.parse_args()
    return guarded(lambda: make(args), expected=(OSError,))


def make(args: argparse.Namespace) -> None:
    """
    Raises:
        UserError: the source is not what it should be.
    """
    (args.output / "images").mkdir(parents=True, exist_ok=True)
    for split, places in PLACES.items():
        print(write_split(args.source, args.output, split, dict(zip(KINDS, places))))
    total = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file())
    print(f"{total:,} bytes in {args.output}")
    if total > MAX_BYTES:
        raise UserError(f"more than the {MAX_BYTES:,} bytes that a clone should carry")


def write_split(source: Path, output: Path, split: str, places: dict[str, int]) -> str:
    """Writes one split and returns a line that describes it."""
    content = json.loads((source / f"instances_{split}.json").read_text(encoding="utf-8"))
    fields = nuclei_fields(source, content)
    chosen = [f for kind in KINDS for f in choose(fields[kind], places[kind])]
    images, annotations = [], []
    for field in sorted(chosen, key=lambda field: field["file_name"]):
        best_on_noise = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
        _, content = cv2.imencode(".png", field["pixels"], best_on_noise)
        write_bytes(output / "images" / field["file_name"], content)
        height, width = field["pixels"].shape[:2]
        image = {"id": len(images) + 1, "file_name": field["file_name"]}
        images.append(image | {"height": height, "width": width})
        for mask in field["masks"]:
            ids = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": 1}
            annotations.append(ids | segmentation(mask))
    result = {
        "info": {"description": "Part of Data Science Bowl 2018, stage 1", "licence": "CC0 1.0"},
        "licenses": content["licenses"],
        "categories": content["categories"],
        "images": images,
        "annotations": annotations,
    }
    write_text(output / f"instances_{split}.json", json.dumps(result, separators=(",", ":")))
    touching = sum(field["touching"] for field in chosen)
    return f"{split}: {len(images)} images, {len(annotations)} nuclei, {touching} of them touching"


def nuclei_fields(source: Path, content: dict) -> dict[str, list[dict]]:
    """Pixels, masks ``(G, H, W)`` and number of touching nuclei per image, by kind of image."""
    annotations = defaultdict(list)
    for annotation in content["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    fields = defaultdict(list)
    for image in content["images"]:
        pixels = cv2.imread(str(source / "images" / image["file_name"]), cv2.IMREAD_UNCHANGED)
        kind = f"{'gray' if pixels.ndim == 2 else 'color'} {image['width']}x{image['height']}"
        if kind not in KINDS:
            continue
        rles = [annotation["segmentation"] for annotation in annotations[image["id"]]]
        field = {
            "file_name": image["file_name"],
            "pixels": pixels,
            "masks": mask_util.decode(rles).transpose(2, 0, 1).astype(bool),
        }
        if max(pixels.shape[:2]) > 360 or kind.startswith("color"):
            field = cut(field)
        if 0 < len(field["masks"]) <= MAX_NUCLEI:
            fields[kind].append(field | {"touching": num_touching(field["masks"])})
    return fields


def cut(field: dict) -> dict:
    """The window, on a grid of 16 pixels, that shows the most nuclei."""
    height, width = field["pixels"].shape[:2]
    corners = [
        (top, left)
        for top in range(0, height - WINDOW + 1, 16)
        for left in range(0, width - WINDOW + 1, 16)
    ]

    def shown(corner: tuple[int, int]) -> np.ndarray:
        top, left = corner
        return field["masks"][:, top : top + WINDOW, left : left + WINDOW]

    top, left = max(corners, key=lambda corner: shown(corner).any(axis=(1, 2)).sum())
    masks = shown((top, left))
    return {
        "file_name": f"{Path(field['file_name']).stem}_x{left}_y{top}.png",
        "pixels": field["pixels"][top : top + WINDOW, left : left + WINDOW],
        "masks": masks[masks.any(axis=(1, 2))],
    }


def num_touching(masks: np.ndarray) -> int:
    """How many nuclei have a pixel of another one among their eight neighbours."""
    counts = masks.sum(axis=0)
    near = [cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))) > 0 for mask in masks]
    return sum(bool((counts > mask)[grown].any()) for mask, grown in zip(masks, near))


def choose(fields: list[dict], places: int) -> list[dict]:
    """Half by most touching nuclei, the rest by a draw that names alone decide."""
    if len(fields) < places:
        raise UserError(f"the source has {len(fields)} images where {places} are to be chosen")
    by_touching = sorted(fields, key=lambda field: (-field["touching"], field["file_name"]))
    first, rest = by_touching[: places // 2], by_touching[places // 2 :]
    rest.sort(key=lambda field: hashlib.sha1(field["file_name"].encode()).hexdigest())
    return first + rest[: places - len(first)]


def segmentation(mask: np.ndarray) -> dict:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "iscrowd": 0,
        "bbox": [int(value) for value in mask_util.toBbox(rle)],
        "area": int(mask_util.area(rle)),
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
    }


if __name__ == "__main__":
    console.start()
    sys.exit(main())
