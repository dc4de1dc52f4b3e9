"""The comparison as a table, as JSON, and as a picture of AP over training."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from isda import strict_json
from isda.benchmarking.tables import digits, ratio_text
from isda.engine.environment import read_environment
from isda.engine.loader import training_dicts
from isda.files import write_text
from isda.visualization import write_figure

from detectron2.data import DatasetCatalog
from matplotlib.figure import Figure  # not pyplot: needs no display and keeps no state

from comparison.runs import Run
from comparison.speed import ROUNDS, read_speed

__all__ = ["plot", "result_of", "table", "write_report"]

_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "box AP")


def result_of(run: Run, reference: Run) -> dict:
    """Everything that is known of a finished training, as it is written to results.json."""
    plan = {k: v for k, v in asdict(run.plan).items() if k != "config"}
    sessions = read_environment(run.folder).get("sessions", [])
    return {
        "name": run.method.name,
        "title": run.method.title,
        "config": run.config_file,
        "plan": plan,
        "command": ["python", *run.training_command()],
        "sessions": sessions,  # of the first start and of every resumption
        "batch": run.cfg.SOLVER.IMS_PER_BATCH,
        "detections": run.cfg.TEST.DETECTIONS_PER_IMAGE,
        "evaluations": run.evaluations,
        "speed": read_speed(run, reference),
    }


def table(results: Sequence[Mapping]) -> str:
    """A row per result, as Markdown; what was not measured is left empty."""
    header = ["Method", *_COLUMNS, "Parameters", "Multiply-adds", "Latency", "Training step"]
    header += ["Steps", "Images", "Minutes"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    lines += [[result["title"], *_ap_cells(result), *_cost_cells(result)] for result in results]
    return "\n".join(f"|{'|'.join(line)}|" for line in lines)


def _ap_cells(result: Mapping) -> list[str]:
    final = result["evaluations"][-1]
    return [_number(final[key]) for key in _COLUMNS]


def _number(value: float | None) -> str:
    """Empty where there was nothing to evaluate: JSON's null, or NaN."""
    return "" if value is None or value != value else f"{value:.1f}"


def _cost_cells(result: Mapping) -> list[str]:
    speed, final = result["speed"], result["evaluations"][-1]
    cells = [""] * 4
    if speed is not None:
        cells = [f"{digits(speed['parameters']['total'] / 1e6)} M"]
        cells += [f"{digits(speed['flops']['total'] / 1e9)} G"]
        cells += [ratio_text(speed[key]) for key in ("latency", "training")]
    cells += [f"{final['iteration']:,} × {result['batch']}", f"{final['images']:,}"]
    return [*cells, f"{final['minutes']:.1f}"]


def caption(results: Sequence[Mapping], missing: Sequence[str], reference: Run) -> str:
    """What the numbers are, and which rows are not there yet."""
    cfg, data = reference.cfg, reference.data
    minutes = results[0]["plan"]["minutes"]
    train_images = len(training_dicts(cfg))
    test_images = sum(len(DatasetCatalog.get(name)) for name in cfg.DATASETS.TEST)
    parts = [
        f"{data.backbone}. Each method was trained on {', '.join(cfg.DATASETS.TRAIN)} "
        f"({train_images:,} images) for {minutes:g} minutes of one core's processor time, which a "
        "measurement of some steps turned into their number beforehand; evaluations do not count. "
        "Minutes are what the steps then took.",
        f"Mask AP and box AP of the last weights on {', '.join(cfg.DATASETS.TEST)} "
        f"({test_images:,} images), at most {_detections(results)} detections in each. "
        "One run per row.",
    ]
    if any(result["speed"] for result in results):
        parts.append(
            f"Latency ({_size(data.size)}, one image) and training step ({_size(data.train_size)}, "
            f"{data.train_batch} images for every method, {data.instances} instances in each) as "
            f"ratios to {reference.method.title}: one thread, in turns, median (quartiles) of "
            f"{ROUNDS} rounds."
        )
    parts.append(_circumstances(results))
    if missing:
        parts.append(f"Not trained to the end with this configuration: {', '.join(missing)}.")
    return "\n".join(parts)


def _detections(results: Sequence[Mapping]) -> str:
    """The number, or the one of most methods with the others in brackets."""
    titles: dict[int, list[str]] = {}
    for result in results:
        titles.setdefault(result["detections"], []).append(result["title"])
    usual, *others = sorted(titles, key=lambda number: -len(titles[number]))
    exceptions = "; ".join(f"{', '.join(titles[number])}: {number}" for number in others)
    return f"{usual} ({exceptions})" if exceptions else str(usual)


def _size(size: Sequence[int]) -> str:
    return "{}×{}".format(*size)


def _circumstances(results: Sequence[Mapping]) -> str:
    """Machines, versions, commits and days; several of them where the rows differ."""
    sessions = [session for result in results for session in result["sessions"]]
    facts = {
        "": [session["machine"]["cpu"] for session in sessions],
        "PyTorch ": [session["versions"]["torch"] for session in sessions],
        "commit ": [f"`{session['commit']}`" for session in sessions if session["commit"]],
        "started on ": [session["started"][:10] for session in sessions],
    }
    texts = [name + " and ".join(dict.fromkeys(found)) for name, found in facts.items() if found]
    return f"{', '.join(texts)}." if texts else "Where the trainings ran is not recorded."


def plot(results: Sequence[Mapping], path: str | os.PathLike) -> None:
    """Mask AP over minutes of the processor and over images seen, a line per method."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for index, result in enumerate(results):
        look = {"color": f"C{index % 10}", "marker": "os^Dv"[index % 5], "markersize": 4}
        aps = [point["AP"] for point in result["evaluations"]]
        for axes, key in ((left, "minutes"), (right, "images")):
            positions = [point[key] for point in result["evaluations"]]
            axes.plot(positions, aps, label=result["title"], **look)
    left.set(xlabel="minutes of one core in training steps", ylabel="mask AP", ylim=(0, None))
    right.set(xlabel="images seen")
    for axes in (left, right):
        axes.set_xlim(0, None)
        axes.grid(alpha=0.3)
    left.legend(fontsize="small")
    write_figure(path, figure)


def write_report(runs: Sequence[Run], reference: Run, output: Path) -> str | None:
    """Writes ``table.md``, ``results.json`` and ``ap_over_time.png`` of the finished trainings.

    Args:
        runs: of all methods, in the table's order.
        reference: the one that ratios are to, finished or not.

    Returns:
        The table; None where nothing is finished.
    """
    finished = [run for run in runs if run.finished]
    if not finished:
        return None
    results = [result_of(run, reference) for run in finished]
    missing = [run.method.title for run in runs if not run.finished]
    text = f"{table(results)}\n\n{caption(results, missing, reference)}\n"
    write_text(output / "results.json", strict_json.dumps(results, indent=1) + "\n")
    write_text(output / "table.md", text)
    plot(results, output / "ap_over_time.png")
    return text
