"""Main function of each process of a training or an evaluation."""

import argparse
from collections import OrderedDict

from isda.checkpoint import Checkpointer
from isda.data.classes import classes_of
from isda.engine.setup import setup
from isda.engine.trainer import Trainer
from isda.report.summary import write_summary

__all__ = ["main"]


def main(args: argparse.Namespace) -> OrderedDict | None:
    """Train, or with ``--eval-only`` evaluate.

    Args:
        args: as :func:`isda.cli.arguments.argument_parser` reads them.

    Returns:
        The results of the last evaluation, in the main process.
    """
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
