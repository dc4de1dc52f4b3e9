#!/usr/bin/env python3
"""Large images, made of small ones that lie side by side at their own scale.

    python tools/make_mosaics.py --annotations datasets/nuclei_mini/instances_val.json \
        --images datasets/nuclei_mini/images --output datasets/nuclei_mosaics

For each of --sides a COCO JSON, mosaics_SIDE.json, and its images. Square images of --tile pixels
are drawn in rounds, each once before one comes again, so that a seed decides everything.
Annotations are moved and otherwise kept: where two images meet, instances of both are cut and
touch. Each image of the JSON has "tiles": file_name, x and y of what it was made of.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from isda import strict_json
from isda.files import write_bytes, write_text
from isda.structures import encode_window

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO JSON")
    parser.add_argument("--images", type=Path, required=True, help="folder")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--tile", type=int, default=256, help="side of the images to take")
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--all-kinds", action="store_true", help="not only grey photographs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    source = json.loads(args.annotations.read_text(encoding="utf-8"))
    tiles = usable_images(source, args.images, args.tile, grey=not args.all_kinds)
    if not tiles:
        raise SystemExit(f"{args.annotations} has no such image of {args.tile}x{args.tile} pixels")
    annotations = defaultdict(list)
    for annotation in source["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    (args.output / "images").mkdir(parents=True, exist_ok=True)
    for side in args.sides:
        if side % args.tile:
            raise SystemExit(f"--sides {side}: not a multiple of --tile {args.tile}")
        mosaics = Mosaics(tiles, annotations, args.tile, side, args.seed)
        for file_name, pixels in mosaics.pictures(args.images):
            write_bytes(args.output / "images" / file_name, cv2.imencode(".png", pixels)[1])
        content = {"categories": source["categories"]} | mosaics.content
        text = strict_json.dumps(content, separators=(",", ":"))
        write_text(args.output / f"mosaics_{side}.json", text)
        images, instances = len(content["images"]), len(content["annotations"])
        print(f"{side}x{side}: {images} images of {len(tiles)}, {instances} instances")


def usable_images(source: dict, folder: Path, side: int, grey: bool) -> list[dict]:
    """The square images of ``side`` pixels, grey ones alone if so wished."""
    square = [i for i in source["images"] if (i["height"], i["width"]) == (side, side)]
    return [i for i in square if not grey or _read(folder / i["file_name"]).ndim == 2]


class Mosaics:
    """As many mosaics of one size as it takes to show every image at least once."""

    def __init__(self, tiles: list[dict], annotations: dict, tile: int, side: int, seed: int):
        self.tile, self.side = tile, side
        self.content: dict[str, list] = {"images": [], "annotations": []}
        drawn = rounds(tiles, np.random.default_rng(seed))
        per_mosaic = (side // tile) ** 2
        for number in range(1, -(-len(tiles) // per_mosaic) + 1):
            places = []
            for index in range(per_mosaic):
                image = next(drawn)
                y, x = (tile * k for k in divmod(index, side // tile))
                places.append({"file_name": image["file_name"], "x": x, "y": y})
                for annotation in annotations[image["id"]]:
                    moved = self._moved(annotation["segmentation"], y, x)
                    identity = {"id": len(self.content["annotations"]) + 1, "image_id": number}
                    self.content["annotations"].append({**annotation, **moved, **identity})
            name = {"id": number, "file_name": f"mosaic_{side}_{number}.png"}
            self.content["images"].append(name | {"height": side, "width": side, "tiles": places})

    def _moved(self, segmentation: dict | list, y: int, x: int) -> dict:
        if isinstance(segmentation, list):  # polygons
            segmentation = mask_util.merge(
                mask_util.frPyObjects(segmentation, self.tile, self.tile)
            )
        elif isinstance(segmentation["counts"], list):
            segmentation = mask_util.frPyObjects(segmentation, self.tile, self.tile)
        mask = torch.from_numpy(mask_util.decode(segmentation)).bool()
        rle = encode_window(mask, (y, x), (self.side, self.side))
        box = [int(value) for value in mask_util.toBbox(rle)]
        return {"segmentation": rle, "bbox": box, "area": int(mask_util.area(rle))}

    def pictures(self, folder: Path) -> Iterator[tuple[str, np.ndarray]]:
        """Name and pixels of each mosaic."""
        for image in self.content["images"]:
            tiles = {t["file_name"]: _read(folder / t["file_name"]) for t in image["tiles"]}
            if len({pixels.ndim for pixels in tiles.values()}) > 1:
                tiles = {name: _in_color(pixels) for name, pixels in tiles.items()}
            canvas = np.zeros(
                (self.side, self.side, *next(iter(tiles.values())).shape[2:]), np.uint8
            )
            for place in image["tiles"]:
                y, x = place["y"], place["x"]
                canvas[y : y + self.tile, x : x + self.tile] = tiles[place["file_name"]]
            yield image["file_name"], canvas


def rounds(tiles: list[dict], generator: np.random.Generator) -> Iterator[dict]:
    """Without end: all images in a random order, then all in another one."""
    while True:
        yield from (tiles[index] for index in generator.permutation(len(tiles)))


def _read(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise SystemExit(f"{path}: no such image, or none that OpenCV reads")
    return pixels


def _in_color(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR) if pixels.ndim == 2 else pixels


if __name__ == "__main__":
    main()
