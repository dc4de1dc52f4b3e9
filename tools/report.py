"""Write the report of a training: curves, AP, errors, best and worst images, in one HTML file.

python tools/report.py output/shapes
"""

import argparse
import sys

from isda import console
from isda.data.images import read_image  # noqa: F401  (before Detectron2: makes it silent)

# isort: split
from isda.report import write_report


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="OUTPUT_DIR of a training, finished or not")
    parser.add_argument("--output", help="the page (default: report.html in the folder)")
    parser.add_argument(
        "--images", type=int, default=4, help="of the best and of the worst each (default: 4)"
    )
    args = parser.parse_args(arguments)
    if args.images < 0:
        parser.error(f"--images must be at least 0, got {args.images}")
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        path = write_report(args.folder, args.output, num_images=args.images)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    console.start()
    sys.exit(main())
