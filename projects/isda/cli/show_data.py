"""Draw a data set as it is annotated, or as the model gets it after augmentation.

isda show data --source annotation --config-file FILE --output-dir pictures
isda show data --source dataloader --config-file FILE --output-dir pictures
isda show data --source dataloader --config-file FILE --dataset FOLDER
"""

import argparse
import itertools
from pathlib import Path

from isda.cli.arguments import config_file
from isda.cli.registering import add_import_argument, import_named
from isda.errors import UsageError

EXPECTED = (ImportError, OSError, ValueError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", choices=["annotation", "dataloader"], required=True)
    parser.add_argument("--config-file", type=config_file, required=True, metavar="FILE")
    parser.add_argument("--dataset", default="", metavar="PATH", help="as of isda train")
    parser.add_argument("--output-dir", default="visualized")
    parser.add_argument("--limit", type=int, default=50, help="pictures; 0: all (default: 50)")
    parser.add_argument("--no-labels", action="store_true", help="masks alone")
    add_import_argument(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")


def run(args: argparse.Namespace) -> None:
    if args.source == "dataloader" and args.limit == 0:
        raise UsageError("--source dataloader never ends: give --limit a number above 0")
    from isda.engine.custom_data import use_custom_data
    from isda.engine.setup import load_config
    from isda.inspection.datasets import annotated, loaded
    from isda.visualization import write_image

    import_named(args)
    cfg = load_config(args.config_file, args.opts)
    for note in use_custom_data(cfg, args.dataset):
        print(note)
    cfg.SEED = max(cfg.SEED, 0)  # -1 lets a training choose one; a picture needs none
    source = annotated if args.source == "annotation" else loaded
    folder, count = Path(args.output_dir), 0
    for file_name, image in itertools.islice(source(cfg, not args.no_labels), args.limit or None):
        # Numbered: the loader repeats images, and folders repeat names.
        write_image(folder / f"{count:05d}_{Path(file_name).stem}.png", image)
        count += 1
    print(f"{count} pictures in {folder}")
