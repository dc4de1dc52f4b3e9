"""The arguments of a training: Detectron2's, and ours. Importing them takes no PyTorch."""

import argparse
import os

from isda.model_zoo.catalog import ModelZooError, find_config_file

__all__ = [
    "add_crowds_argument",
    "add_run_arguments",
    "add_training_arguments",
    "argument_parser",
    "config_file",
]


def argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Detectron2's flags, ``--dataset``, and trailing KEY VALUE pairs."""
    parser = argparse.ArgumentParser(
        epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_training_arguments(parser)
    return parser


def config_file(text: str) -> str:
    """What ``--config-file`` names: a file of the user's, else one that the package has."""
    try:
        return find_config_file(text)
    except ModelZooError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_crowds_argument(parser: argparse.ArgumentParser) -> None:
    """``--crowds-are-instances``, for data whose tool sets ``iscrowd`` for every RLE."""
    parser.add_argument(
        "--crowds-are-instances",
        action="store_true",
        help="take annotations with iscrowd 1 as instances (of CVAT, Datumaro, supervision)",
    )


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags and defaults of Detectron2's ``default_argument_parser``, and ``--dataset``."""
    add_run_arguments(parser)
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS instead of training"
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What trainings and evaluations have in common, which is all but ``--eval-only``."""
    add = parser.add_argument
    add(
        "--config-file",
        type=config_file,
        default="",
        metavar="FILE",
        help="a recipe: a YAML file, or the name of one that the package has",
    )
    add(
        "--dataset",
        metavar="PATH",
        help="your own data in COCO's format: a folder as of COCO or Roboflow, or a JSON file",
    )
    add_crowds_argument(parser)
    add(
        "--resume",
        action="store_true",
        help="take the last checkpoint in OUTPUT_DIR, and continue its training",
    )
    add("--num-gpus", type=int, default=1, help="of each machine; on CPUs, processes (default: 1)")
    add("--num-machines", type=int, default=1, help="default: 1")
    add("--machine-rank", type=int, default=0, help="of this machine, from 0")
    # A port for each user, and always the same: processes that were left behind are noticed by it.
    user = os.getuid() if hasattr(os, "getuid") else 1
    add(
        "--dist-url",
        default=f"tcp://127.0.0.1:{49152 + user % 2**14}",
        metavar="URL",
        help="where processes meet (default: a port of this machine)",
    )
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="of the configuration; last")
