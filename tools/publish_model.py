#!/usr/bin/env python
"""Publish a trained model: half-precision weights, their sha256, and a row in a table of models.

    python tools/publish_model.py output/nuclei --name nuclei/isda_boxes_mobilenet_v2 \\
        --data "Data Science Bowl 2018: 562 images, 108 held out" --note "4 hours of one core"
    python tools/publish_model.py output/mine --name mine/parts --zoo my_zoo --data "our parts"
    python tools/publish_model.py --update-docs

Without --zoo the model becomes one of those that the package ships: the config of that name below
configs/ must be the one that it was trained with, and docs/MODEL_ZOO.md is written anew. With
--zoo FOLDER it goes into a folder of your own, config included; whoever sets ISDA_MODEL_ZOO to it
has isda.Predictor("mine/parts").
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from isda import console, model_zoo
from isda.cli import guarded
from isda.engine.environment import read_environment
from isda.engine.inference import load_trained
from isda.files import write_text
from isda.model_zoo.catalog import TABLE, ModelEntry, canonical_name, read_table
from isda.model_zoo.publishing import (
    METRICS,
    PublishingError,
    differing_keys,
    metrics_at,
    write_row,
    write_weights,
)
from isda.prediction.predictor import trained_config
from isda.visualization import read_metrics
from isda.weights_files import read_checkpoint
from isda.wording import listed

from detectron2.config import CfgNode

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "projects" / "isda"
SHIPPED_TABLE = PACKAGE / "model_zoo" / TABLE
PARTS = PACKAGE / "model_zoo" / "parts.json"
DOCS = ROOT / "docs" / "MODEL_ZOO.md"
SHOWN_DIFFERENCES = 5


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("training", nargs="?", help="OUTPUT_DIR, or a checkpoint in one")
    parser.add_argument("--name", help="of the config file below configs/, or your own with --zoo")
    parser.add_argument("--zoo", metavar="FOLDER", help="of your own models")
    parser.add_argument("--data", default="", help="what it was trained and evaluated on")
    parser.add_argument("--license", default="Apache-2.0", help="of the weights")
    parser.add_argument("--command", help="of the training, if it had more than the config file")
    parser.add_argument(
        "--note", default="", help="of the training; default: its duration, hardware and commit"
    )
    parser.add_argument("--update-docs", action="store_true", help="only write the tables anew")
    args = parser.parse_args(arguments)
    if not args.update_docs and not (args.training and args.name and args.data):
        parser.error("a training, --name and --data are needed (or --update-docs)")
    return args


def publish(args: argparse.Namespace) -> ModelEntry:
    """Write weights, config (of one's own) and the row.

    Raises:
        ValueError: the training cannot be published; the message says why.
    """
    name = canonical_name(args.name)
    cfg = trained_config(args.training)
    if args.zoo is None:
        require_same_config(cfg, name)
    trained = load_trained(cfg)
    folder = Path(args.zoo or PACKAGE / "weights")
    stem = name.replace("/", "_")
    path, sha256 = write_weights(folder, stem, trained.model.state_dict(), trained.classes)
    weights = Path(cfg.MODEL.WEIGHTS)
    entry = ModelEntry(
        name=name,
        weights=path.name if args.zoo else f"isda://{path.name}",
        sha256=sha256,
        license=args.license,
        data=args.data,
        metrics=metrics_of(weights),
        training=training_of(weights, args, name),
    )
    if args.zoo:
        write_config(cfg, folder / f"{name}.yaml")
    write_row(folder / TABLE if args.zoo else SHIPPED_TABLE, entry, folder)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, sha256 {sha256}")
    return entry


def require_same_config(cfg: CfgNode, name: str) -> None:
    """
    Raises:
        PublishingError: the config of that name would build another model.
    """
    differing = differing_keys(cfg, model_zoo.get_config(name))
    if differing:
        texts = [f"{k} {a!r} instead of {b!r}" for k, (a, b) in differing.items()]
        raise PublishingError(
            f"the training differs from configs/{name}.yaml: {listed(texts, SHOWN_DIFFERENCES)}; "
            "write these values into a config of its own and publish under that name"
        )


def records_of(weights: Path) -> list[dict]:
    """``metrics.json`` of a checkpoint's training; none where there is no such file."""
    file = weights.parent / "metrics.json"
    return read_metrics(file) if file.is_file() else []


def iteration_of(weights: Path) -> int | None:
    """The iteration that a checkpoint names, if it does."""
    return read_checkpoint(weights, mmap=True).get("iteration")


def metrics_of(weights: Path) -> dict[str, float]:
    """AP of the evaluation that belongs to a checkpoint; says so where there is none."""
    iteration = None if weights.name == "model_final.pth" else iteration_of(weights)
    found = metrics_at(records_of(weights), iteration)
    if not found:
        print(
            f"note: there is no AP of {weights.name} in metrics.json beside it, so the row has none"
        )
    return found


def training_of(weights: Path, args: argparse.Namespace, name: str) -> dict[str, str]:
    """What the row says of how the weights came about."""
    command = args.command
    if command is None and args.zoo is None:
        command = f"python train_net.py --config-file configs/{name}.yaml"
    note = args.note or note_of(read_environment(weights.parent))
    parts = {"command": command, "iterations": steps_of(weights), "note": note}
    return {key: text for key, text in parts.items() if text}


def note_of(environment: dict) -> str:
    """Duration, hardware and commit of a training, of its ``environment.json``, if it ended."""
    sessions = environment.get("sessions", [])
    if not sessions or not all("seconds" in session for session in sessions):
        return ""
    minutes = sum(session["seconds"] for session in sessions) / 60
    duration = f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{minutes:.0f} minutes"
    machine = sessions[-1]["machine"]
    gpus = machine["gpus"]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)} of {machine['cpu']}"
    commit = sessions[-1].get("commit")
    hardware = f"{len(gpus)} × {gpus[0]}" if gpus else threads
    return f"{duration} on {hardware}" + (f", commit `{commit}`" if commit else "")


def steps_of(weights: Path) -> str | None:
    """How many steps trained the weights, as far as the training's files tell."""
    iteration = iteration_of(weights)
    # The last evaluation counts one step more than there were.
    steps = [record["iteration"] for record in records_of(weights) if "total_loss" in record]
    known = [number + 1 for number in (iteration, max(steps, default=None)) if number is not None]
    return str(min(known)) if known else None


def write_config(cfg: CfgNode, path: Path) -> None:
    """The whole config of a training, without what belongs to the computer that it ran on."""
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = "", "./output"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, cfg.dump())


def models_table() -> str:
    """Markdown, a row for each trained model that comes with the package, and how it came about."""
    table = read_table(SHIPPED_TABLE)
    if not table:
        return "None yet.\n"
    heads = ["Config", "Data", "mask AP", "AP50", "AP75", "box AP", "Weights", "Licence"]
    rows = ["|" + "|".join(heads) + "|", "|---" * 2 + "|---:" * 4 + "|---" * 2 + "|"]
    for name, entry in sorted(table.items()):
        numbers = [f"{entry.metrics[k]:.1f}" if k in entry.metrics else "" for k in METRICS]
        link = f"[`{name}`](../configs/{name}.yaml)"
        file = f"[{entry.file_name}](../projects/isda/weights/{entry.file_name})"
        rows.append("|" + "|".join([link, entry.data, *numbers, file, entry.license]) + "|")
    trained = [f"- `{name}`: {how_trained(entry)}" for name, entry in sorted(table.items())]
    return "\n".join([*rows, "", "How they were trained:", "", *trained]) + "\n"


def how_trained(entry: ModelEntry) -> str:
    """The command, the number of steps, what else is known, and the sha256 of the weights."""
    command, steps = entry.training["command"], entry.training.get("iterations")
    parts = [f"`{command}`", steps and f"{int(steps):,} steps", entry.training.get("note")]
    return "; ".join(part for part in (*parts, f"sha256 `{entry.sha256}`") if part)


def parts_table() -> str:
    """Markdown, a row for each shipped file that trainings start from."""
    rows = ["|File|What|Data|Licence|sha256|", "|---|---|---|---|---|"]
    for name, part in json.loads(PARTS.read_text(encoding="utf-8")).items():
        file = f"[`isda://{name}`](../projects/isda/weights/{name})"
        cells = [file, part["what"], part["data"], part["license"], f"`{part['sha256']}`"]
        rows.append("|" + "|".join(cells) + "|")
    return "\n".join(rows) + "\n"


def with_tables(text: str) -> str:
    """The page with both tables as they are now, between the comments that mark their places."""
    for mark, table in (("models", models_table()), ("parts", parts_table())):
        begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->"
        before, found, rest = text.partition(begin)
        _, also_found, after = rest.partition(end)
        if not (found and also_found):
            raise PublishingError(f"{DOCS} lacks the comments {begin.strip()} and {end}")
        text = before + begin + table + end + after
    return text


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    logging.getLogger("isda").setLevel(logging.WARNING)
    return guarded(lambda: run(args), expected=(OSError, ValueError))


def run(args: argparse.Namespace) -> None:
    if not args.update_docs:
        publish(args)
    if not args.zoo:
        write_text(DOCS, with_tables(DOCS.read_text(encoding="utf-8")))
        print(f"{DOCS.relative_to(ROOT)}: tables written")


if __name__ == "__main__":
    console.start()
    sys.exit(main())
