"""Trains the toy model and dies, as by a power failure, in the middle of a step.

Arguments: output folder, data folder, iteration, config overrides.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from detectron2.utils.env import seed_all_rng
from toys import register_toy_data, toy_config

from isda.engine.trainer import Trainer


class DyingTrainer(Trainer):
    last_iter: int

    def before_step(self):
        super().before_step()
        if self.iter == self.last_iter:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    output_dir, data_dir, last_iter, *overrides = sys.argv[1:]
    torch.set_num_threads(1)
    register_toy_data(Path(data_dir))
    cfg = toy_config(output_dir, *overrides)
    seed_all_rng(cfg.SEED)
    trainer = DyingTrainer(cfg)
    trainer.last_iter = int(last_iter)
    trainer.resume_or_load(resume=False)
    trainer.train()
