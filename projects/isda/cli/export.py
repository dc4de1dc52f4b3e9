"""Write a trained model as a graph that runs without this package: ONNX, or PyTorch's .pt2.

    isda export --config-file nuclei/isda_boxes_tiny.yaml \\
        --output isda.onnx isda.pt2 --check datasets/nuclei_mini/images/*.png \\
        --opts MODEL.WEIGHTS output/demo/isda/model_final.pth
    isda export --model nuclei/isda_boxes_mobilenet_v2 --output isda.onnx

What the graph takes and gives, and how it is run: docs/EXPORT.md. With --check its answers are
compared with the model's own on real images; the exit status is 1 if they differ.
"""

import argparse
from pathlib import Path

from isda.cli.arguments import config_file
from isda.errors import UsageError, UserError

EXPECTED = (OSError, ValueError)


class ParityError(UserError):
    """The exported model finds something else than the original."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--config-file", type=config_file, metavar="FILE", help="with MODEL.WEIGHTS in --opts"
    )
    source.add_argument(
        "--model", help="a name that isda models lists, or the folder of a training"
    )
    parser.add_argument(
        "--output", nargs="+", type=Path, required=True, metavar="FILE", help=".onnx or .pt2"
    )
    parser.add_argument(
        "--check", nargs="+", type=Path, default=[], metavar="IMAGE", help="compare on these"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs; comes last"
    )


def run(args: argparse.Namespace) -> None:
    """Write the files, and compare them.

    Raises:
        ParityError: one of them differs.
    """
    if args.model and args.opts:
        raise UsageError("--opts go with --config-file; a model of --model has its own")
    from isda.engine.setup import load_config
    from isda.prediction.export import (
        check_target,
        description,
        export_program,
        exportable,
        save,
    )
    from isda.prediction.files import make_folders
    from isda.prediction.parity import compare_exported
    from isda.prediction.predictor import Predictor

    for path in args.output:
        check_target(path)
    make_folders(args.output)
    source = args.model or load_config(args.config_file, args.opts)
    predictor = Predictor(source, device="cpu", threshold=0)
    program = export_program(exportable(predictor.model, predictor.format))
    info, agree = description(predictor), True
    for path in args.output:
        save(program, path, info)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
        if args.check:
            parity = compare_exported(predictor, path, args.check)
            print(f"  {len(args.check)} images, {parity}")
            agree = agree and parity.holds
    if not agree:
        raise ParityError("the exported model differs from the original")
