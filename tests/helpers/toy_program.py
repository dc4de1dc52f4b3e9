"""train_net.py for the toy model and data: a data folder, and then train_net.py's own arguments."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from toys import register_toy_data
from train_net import main

from isda.cli.arguments import argument_parser
from isda.engine.launch import run

if __name__ == "__main__":
    torch.set_num_threads(1)
    register_toy_data(Path(sys.argv[1]))
    run(main, argument_parser().parse_args(sys.argv[2:]))
