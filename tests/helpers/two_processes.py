"""One of two processes, started as torchrun starts them; what came out goes to a file per rank.

Arguments: output folder, data folder.
"""

import logging
import os
import sys
from pathlib import Path

import torch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from toys import BLENDMASK, BOXES, CONDINST, ISTR, SOLOV2, register_toy_data, same_size_config

from isda.cli.arguments import argument_parser
from isda.engine.custom_data import use_custom_data
from isda.engine.launch import run
from isda.engine.trainer import Trainer

OVERRIDES = ("MODEL.DEVICE", "cpu")  # read by the launcher: gloo


class DecliningTrainer(Trainer):
    """Each evaluation is worse than the one before; as always, the main process alone knows."""

    ap = 50.0

    @classmethod
    def test(cls, cfg, model):
        cls.ap -= 1
        return {"segm": {"AP": cls.ap}} if comm.is_main_process() else {}


def train(cfg, kind=Trainer):
    seed_all_rng(cfg.SEED + comm.get_rank())
    trainer = kind(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


def main(args):
    torch.set_num_threads(1)
    output, data = Path(os.environ["TOY_OUTPUT"]), Path(os.environ["TOY_DATA"])
    register_toy_data(data)
    register_toy_data(data, "poisoned")
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("isda.engine.steps").addHandler(handler)

    trained = train(same_size_config(output / "two"))
    istr = train(same_size_config(output / "istr", *ISTR, "SOLVER.BASE_LR", 1e-4))
    # Noise and sampled cells are drawn by each process for itself.
    alike = (*BOXES, "MODEL.ISDA.DENOISING_QUERIES", 0)
    boxes = train(same_size_config(output / "boxes", *alike))
    random = train(same_size_config(output / "random", *BOXES, "MODEL.ISDA.MASK_POINTS", 60))
    solov2 = train(same_size_config(output / "solov2", *SOLOV2))
    condinst = train(same_size_config(output / "condinst", *CONDINST))
    blendmask = train(same_size_config(output / "blendmask", *BLENDMASK))
    poisoned = same_size_config(
        output / "poisoned",
        *("MODEL.META_ARCHITECTURE", "PoisonedISDA", "DATASETS.TRAIN", ("poisoned",)),
        *("DATASETS.TEST", (), "SOLVER.MAX_ITER", 2),
    )
    skipped = train(poisoned)
    own = same_size_config(
        output / "own",
        *("DATASETS.PATH", str(data / "toy.json"), "SOLVER.MAX_ITER", 9),
        *("TEST.EVAL_PERIOD", 1, "SOLVER.EARLY_STOP.PATIENCE", 2),
    )
    use_custom_data(own)
    stopped = train(own, DecliningTrainer)
    result = {
        "stopped": (stopped.iter + 1, stopped.cfg.DATASETS.TRAIN),
        "weights": trained.checkpointer.model.state_dict(),
        "istr": istr.checkpointer.model.state_dict(),
        "boxes": boxes.checkpointer.model.state_dict(),
        "random": random.checkpointer.model.state_dict(),
        "solov2": solov2.checkpointer.model.state_dict(),
        "condinst": condinst.checkpointer.model.state_dict(),
        "blendmask": blendmask.checkpointer.model.state_dict(),
        "poisoned": skipped.checkpointer.model.state_dict(),
        "messages": messages,
    }
    torch.save(result, output / f"rank{comm.get_rank()}.pth")


if __name__ == "__main__":
    os.environ["TOY_OUTPUT"], os.environ["TOY_DATA"] = sys.argv[1:]
    run(main, argument_parser().parse_args(list(OVERRIDES)))
