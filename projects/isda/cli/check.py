"""Check a data set in COCO's format: what is in it, what is wrong, and which settings suit it.

    isda check mine --output mine.html
    isda check train.json --images photos
    isda check mine --quick
    isda check mine --config-file finetune/isda_mobilenet_v2.yaml

The first is a folder as isda train --dataset takes it. The page shows pictures and distributions
in one file. Every image is decoded, as a truncated one would stop the training; --quick leaves
that out. Last comes the mask AP that a perfect ISDA could reach with the recommended settings, or
with those of a configuration: sizes and mask stride decide how exactly it can draw.
Exit status: 0 training will work, 1 it will not, 2 the command is wrong.
"""

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from isda.cli.arguments import add_crowds_argument, config_file
from isda.errors import UsageError

if TYPE_CHECKING:
    from isda.data.analysis import Analysis, Finding

EXPECTED = (OSError,)
INTERVAL = 5.0  # seconds between lines of progress
INSTANCES = 1000  # that the ceiling is computed from, at most
ENOUGH = 90.0  # mask AP from which on nothing is looked for that would raise it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="folder, or annotation file, of the data set")
    parser.add_argument("--images", type=Path, metavar="DIR", help="images of an annotation file")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="write a page as well")
    add_crowds_argument(parser)
    parser.add_argument("--quick", action="store_true", help="do not decode the images")
    parser.add_argument(
        "--config-file", type=config_file, metavar="FILE", help="whose mask AP at best is computed"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs; comes last"
    )


def run(args: argparse.Namespace) -> int:
    if not args.path.exists():
        raise UsageError(f"{args.path}: there is no such file or folder")
    if args.images and not args.path.is_file():
        raise UsageError("--images belongs to an annotation file; a folder's images are found")
    if args.images and not args.images.is_dir():
        raise UsageError(f"{args.images}: there is no such folder")
    args.cfg = read_config(args)
    analysis = examined(args)
    report(analysis, args)
    return 0 if analysis.will_train else 1


def read_config(args: argparse.Namespace):
    """The configuration that the arguments name; None: they name none.

    Raises:
        UsageError: it is wrong.
    """
    if not (args.config_file or args.opts):
        return None
    from isda.engine.setup import check_config, load_config
    from isda.errors import ConfigError

    try:
        cfg = load_config(args.config_file or "", args.opts)
        check_config(cfg)
    except ConfigError as error:
        raise UsageError(str(error)) from error
    return cfg


class Progress:
    """Images per second on standard error, where they take longer than some seconds."""

    def __init__(self):
        self.done = 0
        self.start = self.last = time.monotonic()

    def __call__(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.last >= INTERVAL:
            self.last = now
            rate = self.done / (now - self.start)
            print(f"{self.done:,} images decoded, {rate:,.0f}/s", file=sys.stderr, flush=True)


def examined(args: argparse.Namespace) -> "Analysis":
    """What is found, and what training itself says of the folder.

    Raises:
        DatasetError: there is no data set.
    """
    from isda.data.analysis import ERROR, NOTE, Finding, examine
    from isda.data.formats.as_coco import find_any_dataset
    from isda.data.images import ImageOptions
    from isda.data.layouts import Split

    if args.images:
        splits, notes = [Split("all", args.path, args.images)], []
    else:
        splits, notes = find_any_dataset(args.path)
    refusal = "" if args.images else training_refusal(args)
    analysis = examine(
        splits,
        reads_images=not args.quick,
        crowds_are_instances=args.crowds_are_instances,
        advance=Progress(),
        options=ImageOptions.from_config(args.cfg) if args.cfg else ImageOptions(),
    )
    analysis.findings += [Finding(NOTE, note) for note in notes]
    if refusal and not any(f.text.startswith(refusal) for f in analysis.findings):
        analysis.findings.append(Finding(ERROR, refusal))
    return analysis


def training_refusal(args: argparse.Namespace) -> str:
    """Why training itself would not take the data set; empty if it would.

    Asked before the rest, so that the annotations are not in memory twice.
    """
    from isda.data.custom_data import register_folder
    from isda.data.errors import DatasetError

    try:
        register_folder(args.path, args.crowds_are_instances)
    except DatasetError as error:
        return str(error)
    return ""


def print_findings(findings: "Iterable[Finding]") -> None:
    print()
    for finding in findings:
        split = f" ({finding.split})" if finding.split else ""
        print(f"{finding.level}{split}: {finding.text}")


def print_settings(settings: dict[str, object]) -> None:
    print(
        "\nsettings that suit these data, as KEY VALUE pairs after isda train's flags "
        "(of ISTR MODEL.ISTR.NUM_QUERIES):"
    )
    for key, value in settings.items():
        print(f"  {key} {value!r}" if not isinstance(value, tuple) else f"  {key} '{value}'")


def ceiling(analysis: "Analysis", settings: dict[str, object], args: argparse.Namespace) -> str:
    """What a perfect model could reach; empty where there are no instances."""
    from isda.data.analysis import MaskForm, annotated_images, form_of_settings, look_ahead

    if args.cfg is None:
        form, named = form_of_settings(settings), "these settings"
    elif args.cfg.MODEL.META_ARCHITECTURE != "ISDA":
        return f"what a perfect {args.cfg.MODEL.META_ARCHITECTURE} could reach is not computed"
    else:
        form, named = MaskForm.of(args.cfg), args.config_file or "these settings"
    # What AP will be measured on, if it is known.
    annotated = [split for split in analysis.splits if split.class_counts()]
    for split in sorted(annotated, key=lambda split: split.name != "val")[:1]:
        outlook = look_ahead(annotated_images(split), form, INSTANCES, ENOUGH)
        return outlook.sentence(named, split.name) if outlook else ""
    return ""


def report(analysis: "Analysis", args: argparse.Namespace) -> None:
    from isda.data.analysis import ERROR, WARNING, recommended_settings, summarise
    from isda.data.analysis.description import describe

    for split in analysis.splits:
        for line in describe(split, summarise(split)):
            print(line)
    print_findings(analysis.findings)
    settings, text = {}, ""
    if any(split.images for split in analysis.splits):
        settings = recommended_settings(analysis.splits)
        text = ceiling(analysis, settings, args)
        print_settings(settings)
        print(f"\n{text}" if text else "")
    if args.output:
        from isda.report.analysis import write_analysis  # needs OpenCV, which checking does not

        page = write_analysis(analysis, args.output, args.path, settings, text)
        print(f"\nwith pictures: {page}")
    verdict = "training will work" if analysis.will_train else "training will not work"
    errors = sum(finding.level == ERROR for finding in analysis.findings)
    warnings = sum(finding.level == WARNING for finding in analysis.findings)
    print(f"\n{verdict}: {errors} errors, {warnings} warnings")
