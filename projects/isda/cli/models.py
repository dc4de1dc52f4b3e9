"""List the models of the zoo: name, data, COCO's mask AP, size, and where the weights are.

isda models
isda models --all 'COCO*'

isda predict --model NAME applies one to images.
"""

import argparse

from isda.model_zoo import catalog


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pattern", nargs="?", default="*", help="of names, as of files; in quotes (default: all)"
    )
    parser.add_argument(
        "--all", action="store_true", help="those without trained weights as well: recipes"
    )


def run(args: argparse.Namespace) -> int:
    names = catalog.list_models(args.pattern, trained=not args.all)
    trained = catalog.entries()
    rows = [("NAME", "DATA", "MASK AP", "SIZE", "WEIGHTS")]
    for name in names:
        rows.append(row_of(trained[name]) if name in trained else (name, "-", "-", "-", "none"))
    print_table(rows)
    if not names:
        hint = "" if args.all else ", or not trained: --all lists those as well"
        print(f"\nno model has a name like {args.pattern}{hint}")
        return 1
    return 0


def row_of(entry: catalog.ModelEntry) -> tuple[str, ...]:
    place, file = entry.whereabouts()
    ap = entry.metrics.get("segm/AP")
    return (
        entry.name,
        entry.data.partition(" (")[0],
        "-" if ap is None else f"{ap:.1f}",
        f"{file.stat().st_size / 1e6:.1f} MB" if file else "-",
        place,
    )


def print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
