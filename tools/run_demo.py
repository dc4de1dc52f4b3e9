"""From nothing to masks on photographs: what ``make demo`` runs.

Shows and evaluates the models that come with the package. Then prepares the embedded data, trains a
small ISDA and a Mask R-CNN of the same size on photographs of cell nuclei, evaluates both with
COCO's metric, and draws what they predict, in about a quarter of an hour on two CPU cores. Run it
again and it continues where it stopped; what is finished is kept. With ``--istr`` it trains ISTR
too, which takes some minutes more.

    python tools/run_demo.py [--output output/demo] [--fresh] [--istr] [--skip-mask-rcnn]
"""

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isda import console, strict_json
from isda.cli import guarded
from isda.engine.loader import training_dicts
from isda.engine.setup import load_config, resolve_schedule
from isda.errors import UserError
from isda.files import write_text
from isda.prediction.predictor import Predictor
from isda.visualization import (
    contact_sheet,
    draw_annotations,
    plot_curves,
    read_metrics,
    write_image,
)

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from demo_pictures import diverse, draw_predictions_of, load_example
from demo_trained import available, show_trained
from training_process import CONSOLE_FILE, failure_text, python_name, run_program
from training_progress import INTERRUPTED_TRAINING, Progress, TrainingWatch, shown_path

ROOT = Path(__file__).resolve().parents[1]
STATE_FILE = "demo.json"
NUM_PICTURES = 6
ABOUT_THE_SAME = 1.25  # how far times may differ that are called so


class DemoError(UserError):
    """A stage failed."""


@dataclass(frozen=True)
class Model:
    """One of the models that are compared."""

    name: str
    folder: str
    config_file: str
    planned_seconds: float  # on two cores


ISDA = Model("ISDA", "isda", "configs/nuclei/isda_boxes_tiny.yaml", 450.0)
MASK_RCNN = Model("Mask R-CNN", "mask_rcnn", "configs/nuclei/mask_rcnn_tiny.yaml", 390.0)
ISTR = Model("ISTR", "istr", "configs/nuclei/istr_tiny.yaml", 300.0)


@dataclass
class Run:
    """The training of one model: its folder, its configuration, and what was noted about it."""

    model: Model
    folder: Path
    cfg: CfgNode
    opts: list[str]
    seconds: float = 0.0  # spent in train_net.py so far, evaluations included
    finished: bool = False

    @property
    def planned_seconds(self) -> float:
        """What is left of the plan; 0 when finished."""
        if self.finished:
            return 0.0
        return max(self.model.planned_seconds - self.seconds, 0.1 * self.model.planned_seconds)

    @property
    def weights(self) -> Path:
        return self.folder / "model_final.pth"

    @property
    def fingerprint(self) -> str:
        """Changes with anything in the configuration and with the annotations."""
        digest = hashlib.sha256(self.cfg.dump().encode())
        for name in (*self.cfg.DATASETS.TRAIN, *self.cfg.DATASETS.TEST):
            digest.update(Path(MetadataCatalog.get(name).json_file).read_bytes())
        return digest.hexdigest()

    def command(self, resume: bool) -> list[str]:
        """What follows ``python``, in the checkout."""
        resuming = ["--resume"] if resume else []
        overrides = [*self.opts, "OUTPUT_DIR", shown_path(self.folder)]
        return ["train_net.py", "--config-file", self.model.config_file, *resuming, *overrides]

    def recall(self) -> bool:
        """Take over what an earlier demo noted; False if it ran with another configuration."""
        state = json.loads((self.folder / STATE_FILE).read_text(encoding="utf-8"))
        if state["fingerprint"] != self.fingerprint:
            return False
        self.seconds = state["seconds"]
        self.finished = state["finished"] and self.weights.is_file()
        return True

    def save(self) -> None:
        state = {"fingerprint": self.fingerprint, "seconds": self.seconds}
        write_text(self.folder / STATE_FILE, strict_json.dumps(state | {"finished": self.finished}))


@dataclass(frozen=True)
class Result:
    """What the table says about a model; AP in percent on images that it was not trained on."""

    name: str
    mask_ap: float
    mask_ap50: float
    mask_ap75: float
    box_ap: float
    minutes: float  # of train_net.py: start, training and evaluations
    epochs: float
    iterations: int
    parameters: int


def open_run(model: Model, output: Path, opts: list[str], fresh: bool) -> Run:
    """The model's run with what an earlier demo left of it.

    A folder of another configuration, or any with ``fresh``, is emptied, but only if the demo
    made it.

    Raises:
        DemoError: the folder holds something else.
    """
    run = Run(model, output / model.folder, load_config(model.config_file, opts), opts)
    state_file = run.folder / STATE_FILE
    if run.folder.exists() and any(run.folder.iterdir()):
        if not state_file.is_file():
            raise DemoError(
                f"{run.folder} holds files that this demo did not write: choose another --output"
            )
        if not fresh and run.recall():
            return run
        reason = "--fresh" if fresh else "its configuration or data changed"
        print(f"Starting {model.name} anew: {reason}")
        shutil.rmtree(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    run.save()
    return run


def open_runs(args: argparse.Namespace, output: Path) -> list[Run]:
    """ISDA's run, the others that are wanted, and ISTR's where an earlier demo finished it.

    Raises:
        DemoError: a folder holds something else.
    """
    models = [ISDA]
    if not args.skip_mask_rcnn:
        models.append(MASK_RCNN)
    if args.istr or (not args.fresh and is_finished(ISTR, output, args.opts)):
        models.append(ISTR)
    return [open_run(model, output, args.opts, args.fresh) for model in models]


def is_finished(model: Model, output: Path, opts: list[str]) -> bool:
    """Whether an earlier demo trained the model to the end, with this configuration."""
    folder = output / model.folder
    if not (folder / STATE_FILE).is_file():
        return False
    run = Run(model, folder, load_config(model.config_file, opts), opts)
    return run.recall() and run.finished


def prepare_data(output: Path, progress: Progress) -> None:
    """Draws a sample of each embedded data set; the shapes are generated on first use."""
    for name in ("nuclei_mini_train", "shapes_tiny8_train"):
        records, names = DatasetCatalog.get(name), MetadataCatalog.get(name).thing_classes
        labelled = len(names) > 1
        panels = [
            draw_annotations(image, annotations, names, with_labels=labelled, scale=scale)
            for image, annotations, scale in map(load_example, diverse(records, 8))
        ]
        path = output / f"data_{name}.png"
        write_image(path, contact_sheet(panels, 4))
        instances = sum(len(record["annotations"]) for record in records)
        progress.say(
            f"      {name}: {len(records)} images, {instances} instances; {shown_path(path)}"
        )


def schedule(cfg: CfgNode) -> tuple[int, int]:
    """Iterations of the training, and from one evaluation to the next."""
    cfg = cfg.clone()
    resolve_schedule(cfg, len(training_dicts(cfg)))
    return cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD


def train(run: Run, progress: Progress) -> None:
    """Runs ``train_net.py`` as a user would, and shows one line of what it says.

    Raises:
        DemoError: it failed; the message ends with the last lines of its console.
    """
    resume = (run.folder / "last_checkpoint").is_file()
    command = run.command(resume)
    progress.say(f"      $ {shlex.join([python_name(), *command])}")
    watch, before, start = TrainingWatch(*schedule(run.cfg)), run.seconds, time.monotonic()

    def read(line: str) -> None:
        if watch.read(line) and (remaining := watch.remaining()) is not None:
            progress.update(str(watch), remaining)
            run.seconds = before + time.monotonic() - start
            run.save()

    code = run_program(command, run.folder / CONSOLE_FILE, read)
    run.seconds = before + time.monotonic() - start
    if code or not run.weights.is_file():
        raise DemoError(failure_message(run, code))
    run.finished = True
    run.save()


def failure_message(run: Run, code: int) -> str:
    """What went wrong, with the last lines of the console, and what to do about it."""
    what = f"training {run.model.name}"
    text = failure_text(what, code, run.folder / CONSOLE_FILE, run.weights.name)
    return (
        f"{text}\nRun the same command again to continue from the last checkpoint, or with --fresh "
        "to start anew."
    )


def last_evaluation(run: Run, iterations: int) -> Mapping:
    """The record of ``metrics.json`` with the AP after all ``iterations``.

    Raises:
        DemoError: there is none.
    """
    for record in reversed(read_metrics(run.folder / "metrics.json")):
        if "segm/AP" in record and record["iteration"] >= iterations - 1:
            return record
    file = shown_path(run.folder / "metrics.json")
    raise DemoError(f"{file} lacks the final mask AP: train anew with --fresh")


def result_of(run: Run, parameters: int) -> Result:
    """The finished run's row of the table."""
    iterations, _ = schedule(run.cfg)
    record = last_evaluation(run, iterations)
    images = len(training_dicts(run.cfg))
    return Result(
        name=run.model.name,
        mask_ap=record["segm/AP"],
        mask_ap50=record["segm/AP50"],
        mask_ap75=record["segm/AP75"],
        box_ap=record["bbox/AP"],
        minutes=run.seconds / 60,
        epochs=iterations * run.cfg.SOLVER.IMS_PER_BATCH / images,
        iterations=iterations,
        parameters=parameters,
    )


def table(results: Sequence[Result]) -> str:
    """One row per model, as Markdown, which a terminal shows as well."""
    header = ("model", "mask AP", "AP50", "AP75", "box AP", "minutes", "epochs", "parameters")
    rows = [header]
    for result in results:
        numbers = (result.mask_ap, result.mask_ap50, result.mask_ap75, result.box_ap)
        cells = [f"{number:.1f}" for number in (*numbers, result.minutes)]
        size = f"{result.parameters / 1e6:.2f} M"
        rows.append((result.name, *cells, f"{result.epochs:.4g}", size))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:1], widths)]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("| " + " | ".join(cells) + " |")
    ruler = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines.insert(1, "| " + " | ".join(ruler) + " |")
    return "\n".join(lines)


def comparison(runs: Sequence[Run], results: Sequence[Result]) -> str:
    """What the numbers of the table have in common, and what they do not."""
    cfg = runs[0].cfg
    train_names, test_names = ", ".join(cfg.DATASETS.TRAIN), ", ".join(cfg.DATASETS.TEST)
    images = sum(len(DatasetCatalog.get(name)) for name in cfg.DATASETS.TEST)
    lengths = dict.fromkeys((result.epochs, result.iterations) for result in results)
    minutes = [result.minutes for result in results]
    if len(results) == 1:
        trained = "Trained"
    elif len(lengths) > 1 and max(minutes) <= ABOUT_THE_SAME * min(minutes):
        trained = "They were all trained for about the same time:"
    elif len(lengths) == 1:
        trained = "They were all trained for the same number of epochs:"
    else:
        trained = "They were NOT trained equally long:"
    lengths = " and ".join(f"{epochs:.4g} epochs ({steps} steps)" for epochs, steps in lengths)
    unseen = set(cfg.DATASETS.TRAIN).isdisjoint(cfg.DATASETS.TEST)
    return (
        f"{trained} {lengths} of {train_names}. AP on the {images} images of {test_names}, which "
        f"training {'did not see' if unseen else 'saw'}. Minutes are those of the whole command, "
        "with its evaluations."
    )


def report(runs: Sequence[Run], output: Path, progress: Progress) -> None:
    """Pictures, curves and table of the finished runs."""
    predictors = {}
    for run in runs:
        cfg = run.cfg.clone()
        cfg.MODEL.WEIGHTS = str(run.weights)
        predictors[run.model.name] = Predictor(cfg)
    test_records = DatasetCatalog.get(runs[0].cfg.DATASETS.TEST[0])
    draw_predictions_of(predictors, diverse(test_records, NUM_PICTURES), output, "predictions")
    metrics = {run.model.name: read_metrics(run.folder / "metrics.json") for run in runs}
    plot_curves(metrics, output / "curves.png")
    results = [
        result_of(run, sum(weight.numel() for weight in predictor.model.parameters()))
        for run, predictor in zip(runs, predictors.values())
    ]
    text = f"{table(results)}\n\n{comparison(runs, results)}\n"
    write_text(output / "results.md", text)
    rows = [dataclasses.asdict(result) for result in results]
    write_text(output / "results.json", strict_json.dumps(rows, indent=1))
    progress.finish()
    progress.say(f"\n{text}")


def farewell(output: Path) -> str:
    """Where everything is, and three commands to type next."""
    python = python_name()
    weights = shown_path(output / ISDA.folder / "model_final.pth")
    picture = "datasets/nuclei_mini/images/*.png"
    return "\n".join(
        [
            f"Photograph, ground truth and predictions: {shown_path(output / 'predictions.png')}, "
            f"one by one in {shown_path(output / 'predictions')}",
            f"Loss and AP while training:               {shown_path(output / 'curves.png')}",
            f"The table:                                {shown_path(output / 'results.md')}",
            "",
            "Next, for instance:",
            f"  {python} demo/demo.py --config-file {ISDA.config_file} --input '{picture}' "
            f"--output output/masks --opts MODEL.WEIGHTS {weights}",
            f"  {python} train_net.py --config-file configs/shapes/isda_boxes_tiny.yaml "
            "OUTPUT_DIR output/shapes",
            f"  {python} train_net.py --config-file {ISDA.config_file} --eval-only "
            f"MODEL.WEIGHTS {weights}",
            "docs/GETTING_STARTED.md goes on from there: your own images, COCO, several GPUs.",
        ]
    )


def run_demo(args: argparse.Namespace) -> None:
    """All stages.

    Raises:
        DemoError: a stage failed.
    """
    output = Path(args.output).absolute()
    output.mkdir(parents=True, exist_ok=True)
    runs = open_runs(args, output)
    trained = available()
    planned = {"trained": 40.0 * len(trained)} if trained else {}
    planned |= {"data": 10.0, **{r.model.folder: r.planned_seconds for r in runs}, "report": 20.0}
    with Progress(planned) as progress:
        run_stages(runs, trained, output, progress)


def run_stages(
    runs: Sequence[Run], trained: Mapping[str, str], output: Path, progress: Progress
) -> None:
    """The shipped models, the data, the trainings, the report.

    Raises:
        DemoError: a stage failed.
    """
    if trained:
        progress.start("trained", f"What the shipped models see: {', '.join(trained)}")
        show_trained(trained, output, progress)
        progress.finish()
    progress.start("data", "Preparing the embedded data")
    prepare_data(output, progress)
    progress.finish()
    for run in runs:
        if run.finished:
            progress.start(run.model.folder, f"Training {run.model.name}: finished before")
            continue
        progress.start(run.model.folder, f"Training {run.model.name} on photographs of nuclei")
        train(run, progress)
        progress.finish()
    progress.start("report", "Drawing predictions and curves")
    report(runs, output, progress)
    progress.say(farewell(output))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output/demo", help="folder of everything it writes")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier demo did")
    parser.add_argument(
        "--istr", action="store_true", help="train ISTR too; later demos show it without"
    )
    parser.add_argument("--skip-mask-rcnn", action="store_true", help="train ISDA alone")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for all configs")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    args.output = os.path.abspath(args.output)
    os.chdir(ROOT)
    # What goes wrong in training is shown with its console; the rest is no news to a newcomer.
    logging.getLogger("isda").setLevel(logging.ERROR)
    # So that the training ends with the demo, however that is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return guarded(
        lambda: run_demo(args), expected=(ValueError, OSError), interrupted=INTERRUPTED_TRAINING
    )


if __name__ == "__main__":
    console.start()
    sys.exit(main())
