#!/usr/bin/env python
"""All methods side by side: trains each for the same time, evaluates, measures, writes the table.

    python tools/compare_methods.py --data nuclei
    python tools/compare_methods.py --data shapes --minutes 30 --methods isda_boxes mask_rcnn

A training gets --minutes of one core's processor time in its steps, evaluations not counted. Some
steps are measured first, which fixes how many fit; the schedule of the method's config is stretched
to them. Everything is in OUTPUT/DATA_MINUTESmin: a folder for each training, table.md, results.json
and ap_over_time.png, made anew after every row, and in the end predictions.png. Interrupt it at any
moment: the same command goes on where it was. docs/BENCHMARK.md explains the columns.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from isda import console
from isda.cli import guarded
from isda.engine.setup import load_config

from detectron2.data import DatasetCatalog

from comparison.methods import Data, Method
from comparison.pictures import draw_methods
from comparison.plan import PlanError
from comparison.report import write_report
from comparison.runs import Run, RunError, new_run, recall, train
from comparison.speed import measure_speed, read_speed
from training_progress import INTERRUPTED_TRAINING, Progress, shown_path

ROOT = Path(__file__).resolve().parents[1]

# A new method costs a line here, and a config for each data set.
REFERENCE = Method("mask_rcnn", "Mask R-CNN", "mask_rcnn_mobilenet_v2", "mask_rcnn_tiny")
METHODS = (
    REFERENCE,
    Method("isda_boxes", "ISDA with boxes", "isda_boxes_mobilenet_v2", "isda_boxes_tiny"),
    Method("isda", "ISDA", "isda_mobilenet_v2", "isda_tiny"),
    Method("istr", "ISTR", "istr_mobilenet_v2", "istr_tiny"),
    Method("solo", "SOLO", "solo_mobilenet_v2", "solo_tiny"),
    Method(
        "decoupled_solo",
        "Decoupled SOLO",
        "decoupled_solo_mobilenet_v2",
        "decoupled_solo_tiny",
    ),
    Method("solov2", "SOLOv2", "solov2_mobilenet_v2", "solov2_tiny"),
    Method("condinst", "CondInst", "condinst_mobilenet_v2", "condinst_tiny"),
    Method("blendmask", "BlendMask", "blendmask_mobilenet_v2", "blendmask_tiny"),
)
DATA = (
    Data(
        "nuclei",
        "MobileNetV2 with ImageNet weights",
        size=(320, 320),
        train_size=(288, 288),
        train_batch=2,
        instances=43,
    ),
    Data(
        "shapes",
        "Half a ResNet-18, from scratch",
        size=(128, 128),
        train_size=(128, 128),
        train_batch=16,
        instances=5,
    ),
)
# Of the clock, for the estimate of what remains: evaluations beside the training, and the speed.
PLANNED_BESIDE, PLANNED_SPEED = 300.0, 120.0


def check_data(data: Data, opts: list[str]) -> None:
    """Reads training and validation data, which generates the shapes.

    Raises:
        DatasetError: they are not there; the message says where they come from.
    """
    cfg = load_config(REFERENCE.config_file(data), opts)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        DatasetCatalog.get(name)


def open_runs(args: argparse.Namespace) -> dict[str, Run]:
    """Per method's name; those that were not asked for are only read.

    Raises:
        RunError, PlanError: one that was asked for cannot be continued.
    """
    runs = {}
    for method in METHODS:
        run = new_run(method, args.data, args.output, args.opts)
        asked = method.name in args.methods
        try:
            recall(run, fresh=args.fresh and asked)
        except (RunError, PlanError):
            if asked:
                raise
        runs[method.name] = run
    return runs


def train_all(
    runs: Sequence[Run], everything: Sequence[Run], args: argparse.Namespace, progress: Progress
) -> list[str]:
    """Trains what is not finished, and makes the report anew after every row.

    Returns:
        Messages of the methods that failed; the others are trained all the same.
    """
    failures = []
    for run in runs:
        if run.finished:
            progress.start(run.method.name, f"{run.method.title}: trained before")
            continue
        progress.start(run.method.name, f"Training {run.method.title}")
        try:
            train(run, args.minutes, progress)
        except (RunError, PlanError) as error:
            failures.append(f"{run.method.title}: {error}")
            progress.say(f"      failed: {failures[-1]}")
            continue
        write_report(everything, everything[0], args.output)
        progress.finish()
    return failures


def measure_all(
    runs: Sequence[Run], everything: Sequence[Run], args: argparse.Namespace, progress: Progress
) -> list[str]:
    """Speed of what is trained; as :func:`train_all`."""
    failures, reference = [], everything[0]
    progress.start("speed", "Measuring size and speed")
    for run in runs:
        if not run.finished or read_speed(run, reference):
            continue
        progress.say(f"      {run.method.title}")
        try:
            measure_speed(run, reference)
        except RunError as error:
            failures.append(str(error))
            progress.say(f"      failed: {error}")
            continue
        write_report(everything, reference, args.output)
    progress.finish()
    return failures


def compare(args: argparse.Namespace) -> list[str]:
    """All stages; messages of what failed.

    Raises:
        RunError, PlanError: nothing was started, because a training cannot be continued.
        DatasetError: the data are missing.
    """
    check_data(args.data, args.opts)
    found = open_runs(args)
    everything = list(found.values())
    runs = [found[name] for name in args.methods]
    planned = {
        run.method.name: 0.0 if run.finished else 60 * args.minutes + PLANNED_BESIDE for run in runs
    }
    if not args.skip_speed:
        measured = [run for run in runs if run.finished and read_speed(run, everything[0])]
        planned["speed"] = PLANNED_SPEED * (len(runs) - len(measured))
    with Progress(planned) as progress:
        failures = train_all(runs, everything, args, progress)
        if not args.skip_speed:
            failures += measure_all(runs, everything, args, progress)
        text = write_report(everything, everything[0], args.output)
        if text is not None:
            draw_methods([run for run in everything if run.finished], args.output)
            progress.say(f"\n{text}")
            for name in ("table.md", "results.json", "ap_over_time.png", "predictions.png"):
                progress.say(f"wrote {shown_path(args.output / name)}")
    return failures


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    names = [method.name for method in METHODS]
    add("--data", required=True, choices=[data.name for data in DATA], help="to train on")
    add("--minutes", type=float, default=30.0, help="of one core, for each training")
    add("--methods", nargs="+", choices=names, default=names, metavar="METHOD", help=_listed(names))
    add("--output", default="output/comparison", help="folder of everything it writes")
    add("--fresh", action="store_true", help="forget earlier trainings of these methods")
    add("--skip-speed", action="store_true", help="train and evaluate only")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs, for all configs")
    args = parser.parse_args(arguments)
    if args.minutes <= 0:
        parser.error(f"--minutes must be positive, got {args.minutes:g}")
    args.methods = list(dict.fromkeys(args.methods))
    args.data = next(data for data in DATA if data.name == args.data)
    args.output = Path(args.output).absolute() / f"{args.data.name}_{args.minutes:g}min"
    return args


def _listed(names: Sequence[str]) -> str:
    return f"some of {', '.join(names)} (default: all)"


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    os.chdir(ROOT)
    # What goes wrong in training is shown with its console.
    logging.getLogger("isda").setLevel(logging.ERROR)
    # So that the training ends with this program, however that is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return guarded(
        lambda: run(args), expected=(ValueError, OSError), interrupted=INTERRUPTED_TRAINING
    )


def run(args: argparse.Namespace) -> int:
    """The exit status."""
    failures = compare(args)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    console.start()
    sys.exit(main())
