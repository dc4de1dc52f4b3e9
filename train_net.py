#!/usr/bin/env python
"""Train or evaluate a model.

train_net.py --config-file configs/finetune/isda_mobilenet_v2.yaml --dataset path/to/my_data
train_net.py --config-file configs/nuclei/isda_boxes_tiny.yaml
train_net.py --config-file CONFIG --num-gpus 8 SOLVER.IMS_PER_BATCH 16
train_net.py --config-file CONFIG --resume
train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS output/model_best.pth
torchrun --nproc_per_node 2 train_net.py --config-file CONFIG MODEL.DEVICE cpu
"""

import argparse
from collections import OrderedDict

from isda import console
from isda.checkpoint import Checkpointer
from isda.data.classes import classes_of
from isda.engine.launch import argument_parser, run
from isda.engine.setup import setup
from isda.engine.summary import write_summary
from isda.engine.trainer import Trainer


def main(args: argparse.Namespace) -> OrderedDict | None:
    """What each process does."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            min_matched=cfg.MODEL.WEIGHTS_MIN_MATCHED,
            classes=classes_of(cfg.DATASETS.TEST[0]),
        )
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    results = trainer.train()
    write_summary(trainer.cfg)
    return results


if __name__ == "__main__":
    console.start()
    run(main, argument_parser(epilog=__doc__).parse_args())
