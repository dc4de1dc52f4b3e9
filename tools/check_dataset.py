#!/usr/bin/env python3
"""Checks a data set in COCO's format, says what is in it, and which settings suit it.

    python tools/check_dataset.py mine --output mine.html
    python tools/check_dataset.py train.json --images photos
    python tools/check_dataset.py mine --quick
    python tools/check_dataset.py mine --config-file configs/finetune/isda_mobilenet_v2.yaml

The first is a folder as train_net.py --dataset takes it. The page shows pictures and distributions
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

from isda import console
from isda.data.errors import DatasetError  # before Detectron2, whose import it makes silent

# isort: split
from isda.data.layouts import Split, find_dataset
from isda.data.own_data import register_folder
from isda.data.survey import (
    ERROR,
    WARNING,
    Finding,
    MaskForm,
    SplitSurvey,
    Summary,
    Survey,
    annotated_images,
    examine,
    form_of_settings,
    look_ahead,
    recommended_settings,
    summarise,
)
from isda.engine.setup import ConfigError, check_config, load_config

INTERVAL = 5.0  # seconds between lines of progress
LISTED = 20  # classes
INSTANCES = 1000  # that the ceiling is computed from, at most
ENOUGH = 90.0  # mask AP from which on nothing is looked for that would raise it


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


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="folder, or annotation file, of the data set")
    parser.add_argument("--images", type=Path, metavar="DIR", help="images of an annotation file")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="write a page as well")
    parser.add_argument("--quick", action="store_true", help="do not decode the images")
    parser.add_argument("--config-file", metavar="FILE", help="whose mask AP at best is computed")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs; comes last"
    )
    args = parser.parse_args(arguments)
    args.cfg = None
    if args.config_file or args.opts:
        try:
            args.cfg = load_config(args.config_file or "", args.opts)
            check_config(args.cfg)
        except ConfigError as error:
            parser.error(str(error))
    if not args.path.exists():
        parser.error(f"{args.path}: there is no such file or folder")
    if args.images and not args.path.is_file():
        parser.error("--images belongs to an annotation file; a folder's images are found")
    if args.images and not args.images.is_dir():
        parser.error(f"{args.images}: there is no such folder")
    return args


def check(args: argparse.Namespace) -> Survey:
    """What is found, and what training itself says of the folder.

    Raises:
        DatasetError: there is no data set.
    """
    splits = [Split("all", args.path, args.images)] if args.images else find_dataset(args.path)
    survey = examine(splits, reads_images=not args.quick, advance=Progress())
    if not args.images:
        try:
            register_folder(args.path)
        except DatasetError as error:
            if str(error) not in [finding.text for finding in survey.findings]:
                survey.findings.append(Finding(ERROR, str(error)))
    return survey


def describe(split: SplitSurvey, summary: Summary) -> Iterable[str]:
    """Lines of text on one split."""
    yield f"\n{split.name}: {split.json_file}, images in {split.image_root}"
    number, total = summary.num_images, len(summary.areas)
    yield f"  {number:,} images, {summary.num_empty:,} of them without instances"
    if number:
        yield f"  sizes (width x height): {sizes(summary)}"
    crowds = f", {summary.num_crowds:,} crowds beside them" if summary.num_crowds else ""
    yield f"  {total:,} instances{crowds}"
    if not total:
        return
    median, most = sorted(summary.instances)[number // 2], summary.instances.max()
    yield f"  instances per image: median {median}, most {most}"
    areas = ", ".join(f"{count:,} {name}" for name, count in summary.by_area.items())
    yield f"  areas as COCO bounds them (32² and 96² pixels): {areas}"
    yield f"  classes: {classes(summary)}"
    yield (
        f"  {summary.num_touching / total:.1%} touch another instance, "
        f"{summary.num_overlapping / total:.1%} share pixels with one"
    )
    yield (
        f"  where boxes meet, the IoU with the nearest is {summary.mean_box_iou:.2f} of boxes, "
        f"{summary.mean_mask_iou:.2f} of masks"
    )
    deleted = ", ".join(
        f"{count:,} ({count / total:.1%}) at {threshold:g}"
        for threshold, count in summary.deleted.items()
    )
    yield f"  true boxes that NMS would delete: {deleted}"


def classes(summary: Summary) -> str:
    counts = sorted(summary.by_class.items(), key=lambda item: -item[1])
    more = f" and {len(counts) - LISTED} more" if len(counts) > LISTED else ""
    return ", ".join(f"{count:,} {name}" for name, count in counts[:LISTED]) + more


def sizes(summary: Summary) -> str:
    pairs = sorted(set(zip(summary.widths.tolist(), summary.heights.tolist())))
    if len(pairs) <= 3:
        return ", ".join(f"{width}x{height}" for width, height in pairs)
    return (
        f"{len(pairs)} different, widths {summary.widths.min()} to {summary.widths.max()}, "
        f"heights {summary.heights.min()} to {summary.heights.max()}"
    )


def print_findings(findings: Iterable[Finding]) -> None:
    print()
    for finding in findings:
        split = f" ({finding.split})" if finding.split else ""
        print(f"{finding.level}{split}: {finding.text}")


def print_settings(settings: dict[str, object]) -> None:
    print(
        "\nsettings that suit these data, as KEY VALUE pairs after train_net.py's flags "
        "(of ISTR MODEL.ISTR.NUM_QUERIES):"
    )
    for key, value in settings.items():
        print(f"  {key} {value!r}" if not isinstance(value, tuple) else f"  {key} '{value}'")


def ceiling(survey: Survey, settings: dict[str, object], args: argparse.Namespace) -> str:
    """What a perfect model could reach; empty where there are no instances."""
    if args.cfg is None:
        form, named = form_of_settings(settings), "these settings"
    elif args.cfg.MODEL.META_ARCHITECTURE != "ISDA":
        return f"what a perfect {args.cfg.MODEL.META_ARCHITECTURE} could reach is not computed"
    else:
        form, named = MaskForm.of(args.cfg), args.config_file or "these settings"
    # What AP will be measured on, if it is known.
    annotated = [split for split in survey.splits if split.class_counts()]
    for split in sorted(annotated, key=lambda split: split.name != "val")[:1]:
        outlook = look_ahead(annotated_images(split), form, INSTANCES, ENOUGH)
        return outlook.sentence(named, split.name) if outlook else ""
    return ""


def report(survey: Survey, args: argparse.Namespace) -> None:
    for split in survey.splits:
        for line in describe(split, summarise(split)):
            print(line)
    print_findings(survey.findings)
    settings, text = {}, ""
    if any(split.images for split in survey.splits):
        settings = recommended_settings(survey.splits)
        text = ceiling(survey, settings, args)
        print_settings(settings)
        print(f"\n{text}" if text else "")
    if args.output:
        from isda.report.survey import write_survey  # needs OpenCV, which checking does not

        page = write_survey(survey, args.output, args.path, settings, text)
        print(f"\nwith pictures: {page}")
    verdict = "training will work" if survey.will_train else "training will not work"
    errors = sum(finding.level == ERROR for finding in survey.findings)
    warnings = sum(finding.level == WARNING for finding in survey.findings)
    print(f"\n{verdict}: {errors} errors, {warnings} warnings")


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        survey = check(args)
        report(survey, args)
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if survey.will_train else 1


if __name__ == "__main__":
    console.start()
    sys.exit(main())
