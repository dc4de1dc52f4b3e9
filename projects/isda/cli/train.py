"""Train a model.

isda train --config-file finetune/isda_mobilenet_v2.yaml --dataset path/to/my_data
isda train --config-file nuclei/isda_boxes_tiny.yaml
isda train --config-file FILE --num-gpus 8 SOLVER.IMS_PER_BATCH 16
isda train --config-file FILE --resume
torchrun --nproc_per_node 2 -m isda train --config-file FILE MODEL.DEVICE cpu

FILE is a path, or the name of a recipe that the package has. Keys: isda config KEY.
"""

import argparse

from isda._imports import uncollected
from isda.cli.arguments import add_training_arguments

EPILOG = """\
What people need first:
  isda check my_data                 is the data set in order, and which settings suit it?
  isda train --config-file finetune/isda_mobilenet_v2.yaml --dataset my_data
  isda predict --model output --input photos --output masks
  isda report output                 curves, AP, the best and the worst images
  isda eval --config-file output/config.yaml MODEL.WEIGHTS output/model_best.pth
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> None:
    with uncollected():
        from isda.cli import training
        from isda.engine import launch

    launch.run(training.main, args)
