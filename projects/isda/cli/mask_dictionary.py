"""Fit, measure and show the dictionaries that ISTR encodes masks with; needs no images.

    isda mask-dictionary fit instances_train2017.json --output dictionary.npz \\
        --evaluate instances_val2017.json
    isda mask-dictionary evaluate dictionary.npz instances_val2017.json
    isda mask-dictionary show dictionary.npz instances_val2017.json --output masks.png

Of several machines, each fits one part, and any of them merges:

    isda mask-dictionary fit instances_train2017.json --shard 1/2 --output part1.npz
    isda mask-dictionary fit instances_train2017.json --shard 2/2 --output part2.npz
    isda mask-dictionary merge part1.npz part2.npz --output dictionary.npz

Sums are whole numbers, so parts, their order and the number of processes change no bit. Train
with a dictionary by MODEL.ISTR.MASK_DICTIONARY dictionary.npz. Annotation files are in COCO's
format; "shipped" in the place of a dictionary is the one that comes with the package.
"""

import argparse
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isda.mask_dictionary import SYMMETRIES

if TYPE_CHECKING:
    from isda.mask_dictionary.reconstruction import Reconstruction
    from isda.modeling.mask_dictionary import MaskDictionary

EXPECTED = (OSError,)
DIMS = (40, 60, 80, 100)  # of the configurations
INTERVAL = 5.0  # seconds between lines of progress where they cannot be rewritten


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function, text: str, measures: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(function.__name__, help=text, description=text)
        sub.set_defaults(function=function)
        if measures:
            sub.add_argument("--workers", type=positive, help="processes (default: one per core)")
        return sub

    def result(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--output", required=True, metavar="FILE.npz")
        sub.add_argument("--dim", type=positive, default=60, help="d, components (default 60)")
        sub.add_argument(
            "--symmetry",
            choices=SYMMETRIES,
            default="none",
            help="count mirror images as well, or all eight turned and mirrored copies: for few "
            "masks (default: none)",
        )
        sub.add_argument("--evaluate", metavar="JSON", help="measure on these, and note it")

    sub = command(fit, "fit a dictionary, or sum up one part of the masks")
    sub.add_argument("annotations", nargs="+", metavar="JSON")
    result(sub)
    sub.add_argument("--side", type=positive, default=28, help="S of S×S masks (default 28)")
    sub.add_argument(
        "--shard", type=parse_shard, metavar="I/N", help="write the sums of part I of N, to merge"
    )
    sub = command(merge, "fit a dictionary to the sums of all parts")
    sub.add_argument("parts", nargs="+", metavar="PART.npz")
    result(sub)
    sub = command(evaluate, "print how well masks are reconstructed")
    sub.add_argument("dictionary", metavar="FILE.npz|shipped")
    sub.add_argument("annotations", metavar="JSON")
    sub.add_argument("--dims", type=positive, nargs="+", metavar="D", help="first D components")
    sub = command(show, "draw mean, components, and masks with their reconstructions", False)
    sub.add_argument("dictionary", metavar="FILE.npz|shipped")
    sub.add_argument("annotations", metavar="JSON")
    sub.add_argument("--output", required=True, metavar="PICTURE")
    sub.add_argument("--masks", type=positive, default=16, help="how many (default 16)")
    sub.add_argument("--dims", type=positive, nargs="+", metavar="D", help="first D components")


def run(args: argparse.Namespace) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    if getattr(args, "workers", 0) is None:
        from isda.mask_dictionary.target_masks import available_cores

        args.workers = available_cores()
    args.function(args)


class Progress:
    """Annotations per second, and the time left, on standard error."""

    def __init__(self, task: str, total: int):
        self.task, self.total, self.done = task, total, 0
        self.start = self.last = time.monotonic()
        self.rewrites = sys.stderr.isatty()

    def __call__(self, number: int) -> None:
        self.done += number
        now = time.monotonic()
        finished = self.done >= self.total
        if not finished and now - self.last < (0.2 if self.rewrites else INTERVAL):
            return
        self.last = now
        rate = self.done / max(now - self.start, 1e-9)
        left = f", {math.ceil((self.total - self.done) / rate)} s left" if not finished else ""
        line = f"{self.task}: {self.done:,} of {self.total:,} annotations, {rate:,.0f}/s{left}"
        if self.rewrites:
            line = "\r" + line.ljust(79)
        print(line, end="" if self.rewrites and not finished else "\n", file=sys.stderr, flush=True)


def fit(args: argparse.Namespace) -> None:
    from isda.mask_dictionary.fit import fit_dictionary, sum_masks
    from isda.mask_dictionary.target_masks import AnnotationFile

    files = [AnnotationFile(path) for path in args.annotations]
    if args.shard:
        shard, num_shards = args.shard
        counts = [sum(map(len, file.chunks(shard, num_shards))) for file in files]
        sums = sum_masks(
            files,
            args.side,
            shard=shard,
            num_shards=num_shards,
            workers=args.workers,
            advance=Progress("summing", sum(counts)),
        )
        sums.save(args.output)
        report_left_out(sums.left_out)
        print(f"{args.output}: shard {shard + 1}/{num_shards}, {sums.moments.count:,} masks")
        return
    dictionary, left_out = fit_dictionary(
        files,
        args.side,
        args.dim,
        symmetry=args.symmetry,
        workers=args.workers,
        advance=Progress("fitting", sum(len(file.annotations) for file in files)),
    )
    report_left_out(left_out)
    finish(dictionary, args)


def merge(args: argparse.Namespace) -> None:
    from isda.mask_dictionary.fit import fit_to_moments
    from isda.mask_dictionary.partial_sums import PartialSums

    sums = PartialSums.merged([PartialSums.load(path) for path in args.parts])
    report_left_out(sums.left_out)
    finish(fit_to_moments(sums, args.dim, args.symmetry), args)


def finish(dictionary: "MaskDictionary", args: argparse.Namespace) -> None:
    """Measure a new dictionary if that was asked for, and write it."""
    if args.evaluate:
        dims = dims_of(dictionary)
        result = measure_file(dictionary, args.evaluate, dims, args.workers)
        for dim, row in zip(dims, result.summary()):
            for metric in ("mean", "median", "5th percentile", "pooled"):
                dictionary.iou[f"{Path(args.evaluate).name}, d={dim}: {metric}"] = row[metric]
        print(table(dictionary, result))
    dictionary.save(args.output)
    side, copies = dictionary.side, "" if args.symmetry == "none" else ", symmetric copies included"
    print(
        f"{args.output}: {dictionary.dim} components for {side}×{side} masks, fitted to "
        f"{dictionary.num_masks:,} masks{copies}"
    )


def evaluate(args: argparse.Namespace) -> None:
    from isda.modeling.mask_dictionary import MaskDictionary

    dictionary = MaskDictionary.load(args.dictionary)
    dims = args.dims or dims_of(dictionary)
    result = measure_file(dictionary, args.annotations, dims, args.workers)
    report_left_out(result.left_out)
    print(table(dictionary, result))


def show(args: argparse.Namespace) -> None:
    from isda.data.errors import DatasetError
    from isda.mask_dictionary.pictures import draw_dictionary
    from isda.mask_dictionary.target_masks import AnnotationFile, crop_chunk
    from isda.modeling.mask_dictionary import MaskDictionary
    from isda.visualization import write_image

    dictionary = MaskDictionary.load(args.dictionary)
    dims = args.dims or dims_of(dictionary)
    # Of the first chunk, evenly spread, so that all sizes are among them.
    masks = crop_chunk(next(AnnotationFile(args.annotations).chunks()), dictionary.side).masks
    if not len(masks):
        raise DatasetError(f"{args.annotations}: no usable mask among the first annotations")
    chosen = masks[:: max(len(masks) // args.masks, 1)][: args.masks]
    write_image(args.output, draw_dictionary(dictionary, chosen, dims))
    print(f"{args.output}: mean, components, and {len(chosen)} masks of {args.annotations}")


def dims_of(dictionary: "MaskDictionary") -> list[int]:
    """The d to measure: the configurations' own as far as there are components, and all."""
    return sorted({*(dim for dim in DIMS if dim < dictionary.dim), dictionary.dim})


def measure_file(
    dictionary: "MaskDictionary", path: str, dims: Sequence[int], workers: int
) -> "Reconstruction":
    from isda.mask_dictionary.fit import measure
    from isda.mask_dictionary.target_masks import AnnotationFile

    file = AnnotationFile(path)
    progress = Progress("measuring", len(file.annotations))
    return measure(dictionary, file, dims, workers=workers, advance=progress)


def report_left_out(left_out: Counter) -> None:
    if left_out:
        listed = ", ".join(f"{number:,} {reason}" for reason, number in left_out.items())
        print(f"left out: {listed}")


def table(dictionary: "MaskDictionary", result: "Reconstruction") -> str:
    """Markdown: foreground IoU of reconstructed masks, one row per d."""
    rows = result.summary()
    head = ["d", *rows[0], "variance kept"]
    lines = [f"{len(result.ious):,} masks", f"| {' | '.join(head)} |", "|---:" * len(head) + "|"]
    for dim, row in zip(result.dims, rows):
        kept = float(dictionary.explained_variance_ratio[:dim].sum())
        cells = ["–" if math.isnan(value) else f"{value:.4f}" for value in [*row.values(), kept]]
        lines.append(f"| {' | '.join([str(dim), *cells])} |")
    return "\n".join(lines)


def parse_shard(text: str) -> tuple[int, int]:
    """(index from 0, number) out of "2/4"."""
    index, _, number = text.partition("/")
    if not (index.isdigit() and number.isdigit() and 1 <= int(index) <= int(number)):
        raise argparse.ArgumentTypeError(f"'{text}' is not I/N with I from 1 to N")
    return int(index) - 1, int(number)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)
