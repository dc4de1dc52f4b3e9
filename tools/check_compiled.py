#!/usr/bin/env python
"""Compare a compiled model with itself: the same instances, and how much faster.

    python tools/check_compiled.py --model nuclei/isda_boxes_mobilenet_v2 \\
        --images datasets/nuclei_mini/images/*.png
    python tools/check_compiled.py --config-file configs/nuclei/isda_boxes_tiny.yaml \\
        --images photo.jpg \\
        --opts MODEL.WEIGHTS output/demo/isda/model_final.pth TEST.AMP.ENABLED True

The compiler is torch.compile's, as isda.Predictor(..., compile=True) has it; docs/EXPORT.md says
what is compiled. Both models see every image in rounds in which they take turns. The exit status is
1 if their answers differ.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from isda import console
from isda.benchmarking.timing import in_rounds, quartiles_of_ratios
from isda.cli import guarded
from isda.data.images import read_image
from isda.engine.setup import load_config
from isda.errors import UserError
from isda.prediction.compilation import compile_inference
from isda.prediction.parity import Parity, tolerated_share
from isda.prediction.prediction import Prediction
from isda.prediction.predictor import Predictor

import numpy as np
import torch
from torch._dynamo.utils import counters


def compared(
    eager: Predictor, compiled: Predictor, images: Sequence[np.ndarray]
) -> tuple[Parity, list[float]]:
    """How well the instances agree, and the seconds of the compiled one's first call per image."""
    parity, seconds = Parity(tolerated_share(eager.model)), []
    for image in images:
        begin = time.perf_counter()
        found = compiled(image)
        seconds.append(time.perf_counter() - begin)
        parity.add(eager(image), as_arrays(found))
    return parity, seconds


def as_arrays(found: Prediction) -> dict[str, np.ndarray]:
    return {
        "scores": found.scores.numpy(),
        "classes": found.pred_classes.numpy(),
        "masks": np.asarray(found.pred_masks),
    }


def ratios(
    eager: Predictor,
    compiled: Predictor,
    images: Sequence[np.ndarray],
    rounds: int,
    now: Callable[[], float],
) -> tuple[float, float, float]:
    """Quartiles of the compiled model's time divided by the other's, image by image."""

    def call(predictor: Predictor, image: np.ndarray) -> float:
        begin = now()
        predictor(image)
        return now() - begin

    predictors = {"eager": eager, "compiled": compiled}
    times: dict[str, list[float]] = {name: [] for name in predictors}
    for image in images:
        calls = {name: functools.partial(call, p, image) for name, p in predictors.items()}
        for name, of_model in in_rounds(calls, rounds).items():
            times[name] += [seconds for (seconds,) in of_model]
    return quartiles_of_ratios(times["compiled"], times["eager"])


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", metavar="FILE", help="with MODEL.WEIGHTS in --opts")
    source.add_argument("--model", help="a name of isda.model_zoo, or the folder of a training")
    add("--images", nargs="+", type=Path, required=True, metavar="IMAGE")
    add("--backend", default="inductor", help="of torch.compile (default: %(default)s)")
    add("--rounds", type=int, default=3, help="of every image (default: %(default)s)")
    add("--threads", type=int, default=0, help="of PyTorch (default: as it chooses)")
    add("--cpu-time", action="store_true", help="for busy machines: the processor's time")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs; comes last")
    args = parser.parse_args(arguments)
    if args.model and args.opts:
        parser.error("--opts go with --config-file; a model of --model has its own")
    return args


class DifferenceError(UserError):
    """The two models find different instances."""


def check(args: argparse.Namespace) -> None:
    """Print what was measured.

    Raises:
        DifferenceError: the two do not agree.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    source = args.model or load_config(args.config_file, args.opts)
    eager, compiled = (Predictor(source, threshold=0) for _ in range(2))
    compile_inference(compiled.model, backend=args.backend)
    images = [read_image(str(path), "RGB") for path in args.images]
    parity, seconds = compared(eager, compiled, images)
    sizes = {image.shape[:2] for image in images}
    print(f"{len(images)} images of {len(sizes)} sizes, {parity}")
    print(f"first image: {seconds[0]:.1f} s; graphs: {counters['stats']['unique_graphs']}")
    now = time.process_time if args.cpu_time else time.perf_counter
    low, median, high = ratios(eager, compiled, images, args.rounds, now)
    print(f"time of the compiled / the other: {median:.2f} ({low:.2f} to {high:.2f})")
    if not parity.holds:
        raise DifferenceError("the compiled model differs from the original")


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    return guarded(lambda: check(args), expected=(OSError, ValueError))


if __name__ == "__main__":
    console.start()
    sys.exit(main())
