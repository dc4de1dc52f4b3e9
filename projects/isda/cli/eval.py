"""Evaluate trained weights: COCO's AP of masks and boxes on DATASETS.TEST, or on --dataset.

isda eval --config-file output/config.yaml MODEL.WEIGHTS output/model_best.pth
isda eval --config-file FILE --dataset path/to/my_data MODEL.WEIGHTS model.pth
"""

import argparse

from isda._imports import uncollected
from isda.cli.arguments import add_run_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.set_defaults(eval_only=True)


def run(args: argparse.Namespace) -> None:
    with uncollected():
        from isda.cli import training
        from isda.engine import launch

    launch.run(training.main, args)
