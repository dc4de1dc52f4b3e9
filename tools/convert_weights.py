#!/usr/bin/env python
"""Convert a checkpoint of another implementation to this project's names.

    python tools/convert_weights.py r50_deformable_detr.pth deformable_detr_R_50.pth
    python tools/convert_weights.py --from isda authors.pth isda_R_50.pth
    python tools/convert_weights.py --config-file CONFIG resnet50.pth R-50.pth

Whose names the file has is found out unless --from says it. The result goes into MODEL.WEIGHTS,
together with the config keys that are printed. Every name of the file and of the model is
accounted for; where one has no place or is missing, nothing is written unless --partial is given.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isda import console
from isda.conversion import SOURCES, Conversion, convert, detect  # before Detectron2: silences it
from isda.files import replacing

# isort: split
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from isda.engine.setup import load_config, resolve_classes
from isda.weights_files import read_state_dict

ROOT = Path(__file__).resolve().parents[1]
CLASSIFIERS = ("torchvision", "timm")


class ConversionError(ValueError):
    """A file that cannot be converted; the message says why and what to do."""


def find_source(weights: Mapping[str, Tensor], path: str) -> str:
    """
    Raises:
        ConversionError: no source has such names.
    """
    source = detect(weights)
    if source is None:
        known = "\n".join(f"  {key}: {table.title}" for key, table in SOURCES.items())
        raise ConversionError(
            f"{path} has the names of no known source (its first: {', '.join(list(weights)[:3])}). "
            f"If it is one of these after all, say so with --from:\n{known}"
        )
    return source


def apply_settings(
    cfg: CfgNode, settings: Mapping[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """Set what the weights need, and return what of it the config file does not have.

    Raises:
        ConversionError: the command line asks for something else, or the backbone reads the
            file as it is.
    """
    if cfg.MODEL.BACKBONE.NAME.startswith("build_torch_") and args.source in CLASSIFIERS:
        raise ConversionError(
            f"{args.config_file} has a backbone of torchvision or timm, which reads such a file as "
            f"it is: MODEL.TORCH_BACKBONE.WEIGHTS {args.input}"
        )
    changed = {}
    for key, value in settings.items():
        node = cfg
        for name in key.split(".")[:-1]:
            node = node[name]
        name = key.rpartition(".")[2]
        current = node[name]
        if current == value or (args.partial and key in args.opts[::2]):
            continue
        if key in args.opts[::2]:
            raise ConversionError(
                f"the weights were trained with {key} {value}, the command line says {current}: "
                "leave it out, or give --partial to insist"
            )
        node[name] = changed[key] = value
    return changed


def expected_weights(cfg: CfgNode) -> dict[str, Tensor]:
    """The state dict of the config's model, whose own dictionary and weights are not read."""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ISTR.MASK_DICTIONARY = ""
    resolve_classes(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    return build_model(cfg).state_dict()


def write(result: Conversion, settings: Mapping[str, Any], args: argparse.Namespace) -> None:
    """
    Raises:
        ConversionError: the result is too little to be written.
    """
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
    config_file = Path(args.config_file)
    if config_file.is_relative_to(Path.cwd()):
        config_file = config_file.relative_to(Path.cwd())
    words = ["--config-file", str(config_file), *words, *args.opts]
    print(f"use it with\n  {shlex.join(words)}")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--from", dest="source", choices=list(SOURCES), help="default: found by the names"
    )
    parser.add_argument("--config-file", help="of the model; default: the R-50 of the source")
    parser.add_argument("--partial", action="store_true", help="write what fits")
    parser.add_argument("input", help="the foreign .pth, .pt, .bin, .pkl or .safetensors")
    parser.add_argument("output", help="file to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        weights = read_state_dict(args.input)
        args.source = args.source or find_source(weights, args.input)
        table = SOURCES[args.source].of(weights)
        args.config_file = args.config_file or str(ROOT / "configs" / table.config)
        cfg = load_config(args.config_file, args.opts)
        settings = apply_settings(cfg, table.settings(weights), args)
        result = convert(weights, args.source, expected_weights(cfg))
        print(result)
        write(result, settings, args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    console.start()
    sys.exit(main())
