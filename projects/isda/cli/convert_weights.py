"""Convert a checkpoint of another implementation to this project's names.

    isda convert weights r50_deformable_detr.pth deformable_detr_R_50.pth
    isda convert weights --from isda authors.pth isda_R_50.pth
    isda convert weights --config-file FILE resnet50.pth R-50.pth

Whose names the file has is found out unless --from says it. The result goes into MODEL.WEIGHTS,
together with the config keys that are printed. Every name of the file and of the model is
accounted for; where one has no place or is missing, nothing is written unless --partial is given.
"""

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isda.cli.arguments import config_file
from isda.model_zoo.catalog import get_config_file

if TYPE_CHECKING:
    from isda.conversion import Conversion

EXPECTED = (OSError, ValueError)
# Of isda.conversion.SOURCES, whose import takes PyTorch.
SOURCES = (
    *("isda", "istr", "solo", "decoupled-solo", "solov2", "adelaidet-solov2", "condinst"),
    *("blendmask", "mmdet-condinst", "deformable-detr", "hf-deformable-detr"),
    *("mmdet-deformable-detr", "timm", "torchvision", "hf-resnet"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from", dest="source", choices=SOURCES, help="default: found by the names"
    )
    parser.add_argument(
        "--config-file", type=config_file, help="of the model; default: the R-50 of the source"
    )
    parser.add_argument("--partial", action="store_true", help="write what fits")
    parser.add_argument("input", help="the foreign .pth, .pt, .bin, .pkl or .safetensors")
    parser.add_argument("output", help="file to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")


def run(args: argparse.Namespace) -> None:
    from isda.conversion import SOURCES, convert
    from isda.conversion.adapting import (
        apply_settings,
        check_backbone,
        expected_weights,
        find_source,
    )
    from isda.engine.setup import load_config, resolve_classes
    from isda.weights_files import read_state_dict

    weights = read_state_dict(args.input)
    args.source = args.source or find_source(weights, args.input)
    table = SOURCES[args.source].of(weights)
    args.config_file = args.config_file or get_config_file(table.config)
    cfg = load_config(args.config_file, args.opts)
    check_backbone(cfg, args.source, args.input, args.config_file)
    asked = args.opts[::2]
    settings = apply_settings(cfg, table.settings(weights), asked, partial=args.partial)
    resolve_classes(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    result = convert(weights, args.source, expected_weights(cfg))
    print(result)
    write(result, settings, args)


def write(result: "Conversion", settings: Mapping[str, Any], args: argparse.Namespace) -> None:
    """
    Raises:
        ConversionError: the result is too little to be written.
    """
    import torch

    from isda.conversion.adapting import ConversionError
    from isda.files import replacing

    if not result.weights:
        raise ConversionError(
            f"{args.input} has none of the model's tensors under the names of --from "
            f"{args.source}: is it of another implementation, or of another configuration?"
        )
    if not (result.is_complete or args.partial):
        raise ConversionError(
            f"{args.output} is not written, because the weights do not fit {args.config_file} in "
            "full: give the configuration that they were trained with, or --partial to take what "
            "fits"
        )
    with replacing(args.output) as file:
        torch.save({"model": result.weights}, file)
    pairs = {"MODEL.WEIGHTS": args.output} | settings
    words = [word for key, value in pairs.items() for word in (key, str(value))]
    file = Path(args.config_file)
    file = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    words = ["--config-file", str(file), *words, *args.opts]
    print(f"use it with\n  {shlex.join(words)}")
