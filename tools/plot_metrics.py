"""Draws loss and AP of one or more trainings, over their iterations or their time.

python tools/plot_metrics.py output/run_a output/run_b --over time --output curves.png
"""

import argparse
import sys
from pathlib import Path

from isda import console
from isda.cli import guarded
from isda.visualization import plot_curves, read_metrics


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="OUTPUT_DIR of a training, or its metrics.json")
    parser.add_argument("--output", default="curves.png", help="picture: .png, .svg or .pdf")
    parser.add_argument("--names", nargs="+", help="one per run (default: the folder's name)")
    parser.add_argument("--loss", default="total_loss", help="key of the left curve")
    parser.add_argument(
        "--metrics", nargs="+", default=["segm/AP", "bbox/AP"], help="keys of the right curves"
    )
    parser.add_argument(
        "--over",
        choices=("iteration", "time"),
        default="iteration",
        help="time: minutes in training steps, without evaluations",
    )
    args = parser.parse_args(arguments)
    if args.names and len(args.names) != len(args.runs):
        parser.error(f"--names wants {len(args.runs)} names, one per run, got {len(args.names)}")
    return args


def metrics_file(run: str) -> Path:
    """The metrics.json that ``run``, a folder or a file, means."""
    path = Path(run)
    return path / "metrics.json" if path.is_dir() else path


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    return guarded(lambda: plot(args), expected=(OSError, ValueError))


def plot(args: argparse.Namespace) -> None:
    files = [metrics_file(run) for run in args.runs]
    names = args.names or [file.resolve().parent.name for file in files]
    if len(set(names)) < len(names):
        names = [str(file.parent) for file in files]
    runs = {name: read_metrics(file) for name, file in zip(names, files)}
    plot_curves(runs, args.output, loss=args.loss, metrics=args.metrics, over=args.over)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    console.start()
    sys.exit(main())
