"""Size and speed of one method beside the reference, by tools/benchmark.py, measured once."""

import hashlib
import json
import shutil
from collections.abc import Sequence

from isda import strict_json
from isda.data.classes import num_classes_of
from isda.engine.architectures import node_with_classes
from isda.files import write_text

from comparison.runs import FORCED, ONE_THREAD, Run, RunError
from training_process import CONSOLE_FILE, failure_text, run_program
from training_progress import shown_path

__all__ = ["ROUNDS", "measure_speed", "read_speed"]

SPEED_FILE = "speed.json"
ROUNDS = 5


def speed_command(run: Run, reference: Run) -> list[str]:
    """What follows ``python``: both models take turns in one process, on one thread."""
    pair = [reference] if run.method == reference.method else [reference, run]
    data, words = run.data, ["tools/benchmark.py", "--device", "cpu", "--threads", "1"]
    words += ["--cpu-time", "--tasks", "size", "latency", "training", "--rounds", str(ROUNDS)]
    words += ["--size", *map(str, data.size), "--train-size", *map(str, data.train_size)]
    words += ["--train-batch", str(data.train_batch), "--instances", str(data.instances)]
    for one in pair:
        words += ["--config-file", one.config_file]
    words += ["--names", *(one.method.name for one in pair)]
    words += ["--output", shown_path(run.folder / "speed")]
    return [*words, "--opts", *FORCED, *_classes(pair), *run.opts]


def _classes(pair: Sequence[Run]) -> list[str]:
    """KEY VALUE pairs: as many classes as the data have, where configs leave them open."""
    number = num_classes_of(pair[0].cfg.DATASETS.TRAIN[0])
    nodes = sorted({node_with_classes(run.cfg) for run in pair})
    return [word for node in nodes for word in (f"MODEL.{node}.NUM_CLASSES", str(number))]


def fingerprint(run: Run, reference: Run) -> str:
    """Changes with both configurations and with the images that are measured."""
    parts = (run.cfg.dump(), reference.cfg.dump(), repr(run.data), ROUNDS)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def read_speed(run: Run, reference: Run) -> dict | None:
    """The method's row of benchmark.json, with the ``environment``; None: not measured as now."""
    path = run.folder / SPEED_FILE
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["row"] if content["fingerprint"] == fingerprint(run, reference) else None


def measure_speed(run: Run, reference: Run) -> None:
    """Measures and writes down what :func:`read_speed` reads.

    Raises:
        RunError: the benchmark failed; the message ends with the last lines of its console.
    """
    folder = run.folder / "speed"
    shutil.rmtree(folder, ignore_errors=True)  # of a benchmark that was killed
    folder.mkdir(parents=True)
    console = folder / CONSOLE_FILE
    code = run_program(speed_command(run, reference), console, environment=ONE_THREAD)
    result = folder / "benchmark.json"
    if code or not result.is_file():
        what = f"measuring the speed of {run.method.title}"
        raise RunError(failure_text(what, code, console, result.name))
    report = json.loads(result.read_text(encoding="utf-8"))
    row = report["rows"][-1] | {"environment": report["environment"]}
    content = {"fingerprint": fingerprint(run, reference), "row": row}
    write_text(run.folder / SPEED_FILE, strict_json.dumps(content, indent=1) + "\n")
