#!/usr/bin/env python
"""Train or evaluate a model: ``isda train``, by the name and the flags that Detectron2 users know.

train_net.py --config-file configs/finetune/isda_mobilenet_v2.yaml --dataset path/to/my_data
train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS output/model_best.pth
torchrun --nproc_per_node 2 train_net.py --config-file CONFIG MODEL.DEVICE cpu
"""

from isda.cli import program


def main(args):
    """What each process does, for programs that import it from here."""
    from isda.cli.training import main

    return main(args)


if __name__ == "__main__":
    program("train")
