"""Size, speed and memory of models side by side, and where their time goes.

Any config: a file, a name below configs/, or one of Detectron2's model zoo. The models see the same
synthetic images, in rounds in which they take turns, so that a change of the machine's mood meets
all of them; ratios are to the first model, taken round by round. No weights are loaded.

    isda benchmark \\
        --config-file COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x \\
        --config-file COCO-InstanceSegmentation/isda_R_50_42ep \\
        --config-file COCO-InstanceSegmentation/istr_R_50_FPN_3x --output output/benchmark
    isda benchmark --config-file shapes/isda_tiny --config-file shapes/istr_tiny \\
        --size 128 128 --ap isda_tiny=output/isda --ap istr_tiny=output/istr

docs/BENCHMARK.md explains the columns and shows results.
"""

import argparse
import logging
import sys
from pathlib import Path

from isda.errors import UsageError

EXPECTED = (FileNotFoundError,)
TASKS = ("size", "latency", "throughput", "training")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    sizes = {"type": int, "nargs": 2, "metavar": ("HEIGHT", "WIDTH")}
    add("--config-file", action="append", required=True, help="once per model; first: reference")
    add("--names", nargs="+", help="one per config (default: the file's name)")
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    add("--size", **sizes, default=[800, 1333], help="of the images at inference")
    add("--train-size", **sizes, help="of those in training (default: the same)")
    add("--batch", type=int, default=4, help="images per call for the throughput")
    add("--train-batch", type=int, default=1, help="images per training step")
    add("--instances", type=int, default=7, help="of a training image; COCO's mean is 7")
    add("--rounds", type=int, default=5, help="in which every model has its turn")
    add("--floor", type=float, default=0.5, help="seconds that a turn fills with calls")
    add("--threads", type=int, default=0, help="of PyTorch (default: as it chooses)")
    add("--cpu-time", action="store_true", help="for busy machines: the processor's time, 1 thread")
    add("--device", help="default: cuda where there is a GPU, else cpu")
    add("--ap", action="append", default=[], metavar="NAME=RESULT", help="AP or metrics.json")
    add("--output", type=Path, help="folder for JSON, Markdown and pictures")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs, for all configs")


def run(args: argparse.Namespace) -> None:
    check_arguments(args)
    from isda.benchmarking.measuring import benchmark, write
    from isda.benchmarking.tables import markdown

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    report = benchmark(args)
    print(markdown(report))
    if args.output:
        write(report, args.output)
        print(f"wrote {args.output}", file=sys.stderr)


def check_arguments(args: argparse.Namespace) -> None:
    """Fill in what depends on the machine or on other arguments.

    Raises:
        UsageError: arguments do not go together, or are out of range.
    """
    for name in ("rounds", "batch", "train_batch"):
        value = getattr(args, name)
        if value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be positive, got {value}")
    if args.names and len(args.names) != len(args.config_file):
        raise UsageError(
            f"--names wants {len(args.config_file)} names, one per config, got {len(args.names)}"
        )
    if args.device is None:
        import torch

        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.cpu_time and (args.device != "cpu" or args.threads != 1):
        raise UsageError("--cpu-time adds threads up: it is for --device cpu and --threads 1")
    args.train_size = args.train_size or args.size
