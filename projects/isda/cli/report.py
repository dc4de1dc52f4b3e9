"""Write the report of a training: curves, AP, errors, best and worst images, in one HTML file.

isda report output/shapes
"""

import argparse

from isda.errors import UsageError

EXPECTED = (OSError, ValueError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="OUTPUT_DIR of a training, finished or not")
    parser.add_argument("--output", help="the page (default: report.html in the folder)")
    parser.add_argument(
        "--images", type=int, default=4, help="of the best and of the worst each (default: 4)"
    )


def run(args: argparse.Namespace) -> None:
    if args.images < 0:
        raise UsageError(f"--images must be at least 0, got {args.images}")
    from isda.prediction.files import make_folders

    make_folders([args.output] if args.output else [])
    from isda.report import write_report

    print(f"wrote {write_report(args.folder, args.output, num_images=args.images)}")
