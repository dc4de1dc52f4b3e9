#!/usr/bin/env python3
"""Generates overlapping, touching and identical shapes as a data set in COCO format.

    python tools/make_shapes.py --output DIR --images 1000 --size 256x320 --seed 7

DIR gets images/*.png and instances.json. Register it with isda.data.register_coco_json.
Image number i depends on the seed and the options, not on the number of images.
"""

import argparse
import json
import sys
from pathlib import Path

from isda import console
from isda.cli import guarded
from isda.data.shapes import SHAPE_NAMES, ShapesParameters, write_shapes
from isda.errors import UserError

DEFAULTS = ShapesParameters()


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) out of "128" or "HEIGHTxWIDTH"."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdigit() for side in sides):
        raise argparse.ArgumentTypeError(f"'{text}' is neither SIDE nor HEIGHTxWIDTH in pixels")
    return int(sides[0]), int(sides[-1])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--images", type=int, required=True, metavar="N")
    parser.add_argument(
        "--size",
        type=parse_size,
        default=DEFAULTS.size,
        metavar="SIDE|HEIGHTxWIDTH",
        help="in pixels (default 128)",
    )
    parser.add_argument("--seed", type=int, default=DEFAULTS.seed)
    parser.add_argument(
        "--classes",
        nargs="+",
        choices=SHAPE_NAMES,
        default=DEFAULTS.classes,
        help="category ids count from 1 in this order (default: %(default)s)",
    )
    parser.add_argument(
        "--instances",
        nargs=2,
        type=int,
        default=DEFAULTS.instances,
        metavar=("FEWEST", "MOST"),
        help="per image (default: %(default)s)",
    )
    parser.add_argument(
        "--diameters",
        nargs=2,
        type=float,
        default=DEFAULTS.diameters,
        metavar=("SMALLEST", "LARGEST"),
        help="as a share of the image's shorter side (default: %(default)s)",
    )
    parser.add_argument(
        "--crowd-share",
        type=float,
        default=DEFAULTS.crowd_share,
        help="share of images with a crowd (default: %(default)s)",
    )
    parser.add_argument(
        "--empty-share",
        type=float,
        default=DEFAULTS.empty_share,
        help="share of images without annotations (default: %(default)s)",
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    return guarded(lambda: write(args), expected=(ValueError, OSError))


def write(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: the options do not go together.
        UserError: the folder is taken.
    """
    if (args.output / "instances.json").exists():
        raise UserError(f"{args.output} holds a data set already: choose another folder")
    parameters = ShapesParameters(
        size=args.size,
        classes=tuple(args.classes),
        instances=tuple(args.instances),
        diameters=tuple(args.diameters),
        crowd_share=args.crowd_share,
        empty_share=args.empty_share,
        seed=args.seed,
    )
    write_shapes(args.output, args.images, parameters)
    content = json.loads((args.output / "instances.json").read_text(encoding="utf-8"))
    num_images, num_annotations = len(content["images"]), len(content["annotations"])
    print(f"{num_images} images, {num_annotations} annotations: {args.output / 'instances.json'}")


if __name__ == "__main__":
    console.start()
    sys.exit(main())
