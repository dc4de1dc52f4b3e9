"""Turn annotations of other tools into a data set in COCO's format, split for training.

    isda convert dataset labelme_files --output mine
    isda convert dataset via_export.json --images photos --output mine
    isda convert dataset stage1_train --class-name nucleus --output mine

Read are the exports of labelme, VIA, CVAT, Label Studio, Supervisely, QuPath, ImageJ, cellpose and
others, YOLO's segmentation, Pascal VOC's, mask images, and COCO's own format, to mend it:
docs/FORMATS.md. The format is found out by itself. The output has
annotations/instances_train.json, annotations/instances_val.json and copies of the images in train/
and val/, as isda train --dataset takes it. The same input is always split alike. Shapes without an
area, and others that no instance can be made of, are listed.
"""

import argparse
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isda.cli.arguments import add_crowds_argument
from isda.errors import UsageError

if TYPE_CHECKING:
    from isda.data.formats import AnnotatedImage, Report

EXPECTED = (OSError,)
LISTED = 10  # shapes and files, of those that were left out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="folder or file of the annotations")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="the images, if not beside the annotations"
    )
    parser.add_argument(
        "--val", type=Path, metavar="PATH", help="annotations for validation, instead of a share"
    )
    parser.add_argument(
        "--val-share", type=_share, default=0.2, help="of images for validation (default: 0.2)"
    )
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME", help="only these, with ids in this order"
    )
    parser.add_argument(
        "--class-attribute", metavar="NAME", help="VIA: the attribute that names the class"
    )
    parser.add_argument(
        "--class-name", metavar="NAME", help="VIA, masks: the one class (masks: object)"
    )
    parser.add_argument(
        "--unannotated-are-empty",
        action="store_true",
        help="labelme: images without a file have no instances",
    )
    add_crowds_argument(parser)
    parser.add_argument("--format", metavar="NAME", help="of the annotations, if several fit")
    parser.add_argument(
        "--skip-bad-files", action="store_true", help="leave out images that cannot be used"
    )


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number between 0 and 1")
    return value


def run(args: argparse.Namespace) -> None:
    """Reads everything first, so that nothing is written of what cannot be converted whole.

    Raises:
        DatasetError: the annotations, or one of the images, cannot be used.
    """
    from isda.data.errors import DatasetError
    from isda.data.formats import Report, split_images, write_coco

    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise DatasetError(f"{args.output}: is there already: name a new folder by --output")
    report = Report()
    images = read(args.path, args, report)
    splits = {"train": images}
    if args.val:
        splits["val"] = read(args.val, args, report)
    print_report(report)
    if report.refused and not args.skip_bad_files:
        raise DatasetError(
            f"{len(report.refused)} images cannot be used: correct them, or leave them out by "
            "--skip-bad-files; nothing has been written"
        )
    classes = choose_classes([i for part in splits.values() for i in part], report.classes, args)
    if not args.val:
        splits = split_as_stated(images) or dict(
            zip(("train", "val"), split_images(images, args.val_share), strict=True)
        )
    for split, part in splits.items():
        write_coco(args.output, split, part, classes)
    print_splits(splits, classes)
    folder = shlex.quote(str(args.output))
    print(f"\nisda check {folder}")
    print(f"isda train --config-file finetune/isda_mobilenet_v2.yaml --dataset {folder}")


def split_as_stated(images: "Sequence[AnnotatedImage]") -> "dict[str, list[AnnotatedImage]]":
    """The images by the parts that the format has; empty if none of them is for validation."""
    if not any(image.split == "val" for image in images):
        return {}
    parts: dict[str, list[AnnotatedImage]] = {"train": [], "val": []}
    for image in images:
        parts.setdefault(image.split or "train", []).append(image)
    return parts


def read(path: Path, args: argparse.Namespace, report: "Report") -> "list[AnnotatedImage]":
    from isda.data.formats import Options, formats, read_annotations

    if args.format is not None and args.format not in formats():
        raise UsageError(f"--format {args.format}: there are {', '.join(formats())}")
    options = Options(
        images=args.images,
        class_attribute=args.class_attribute,
        class_name=args.class_name,
        unannotated_are_empty=args.unannotated_are_empty,
        crowds_are_instances=args.crowds_are_instances,
    )
    return read_annotations(path, report, options, args.format)


def choose_classes(
    images: "Sequence[AnnotatedImage]", known: Sequence[str], args: argparse.Namespace
) -> list[str]:
    """Classes in the order of their ids; instances of others are taken out of the images.

    Args:
        known: classes in the order that the format gives them, with or without instances.

    Raises:
        DatasetError: there is none, or one that was asked for is not there.
    """
    from isda.data.errors import DatasetError
    from isda.data.formats.writing import class_names

    found = class_names(images, known)
    if not found:
        raise DatasetError(f"{args.path}: has no usable instance, so there is nothing to train on")
    chosen = args.classes or found
    if missing := [name for name in chosen if name not in found]:
        raise DatasetError(
            f"--classes: no instance is a {missing[0]}; there are {', '.join(found)}"
        )
    if left_out := [name for name in found if name not in chosen]:
        print(f"classes left out: {', '.join(left_out)}")
    for image in images:
        image.instances = [i for i in image.instances if i.label in chosen]
    for names in _by_lower_case(chosen).values():
        if len(names) > 1:
            print(f"warning: {' and '.join(names)} are different classes: were they meant as one?")
    return list(chosen)


def _by_lower_case(names: Sequence[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.lower(), []).append(name)
    return groups


def print_report(report: "Report") -> None:
    for sentence in report.refused[:LISTED]:
        print(f"cannot be used: {sentence}")
    if len(report.refused) > LISTED:
        print(f"... and {len(report.refused) - LISTED} more")
    if report.skipped:
        counts = ", ".join(f"{number} {reason}" for reason, number in report.reasons().items())
        print(f"{len(report.skipped)} shapes left out: {counts}")
        for where, reason in report.skipped[:LISTED]:
            print(f"  {where}: {reason}")
        if len(report.skipped) > LISTED:
            print(f"  ... and {len(report.skipped) - LISTED} more")
    for note in report.notes:
        print(f"warning: {note}")


def print_splits(splits: "dict[str, list[AnnotatedImage]]", classes: Sequence[str]) -> None:
    for split, images in splits.items():
        counts = Counter(instance.label for image in images for instance in image.instances)
        listed = ", ".join(f"{counts[name]} {name}" for name in classes)
        print(
            f"{split}: {len(images)} images, {sum(counts[c] for c in classes)} instances: {listed}"
        )
