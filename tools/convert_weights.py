#!/usr/bin/env python
"""Convert a checkpoint of another implementation to this project's names.

    python tools/convert_weights.py --from istr authors.pth istr_R_50_FPN.pth
    python tools/convert_weights.py --from istr --config-file CONFIG authors.pth converted.pth

The result goes into MODEL.WEIGHTS. Names that the model or the file lacks are listed; unless
--partial is given, nothing is then written.
"""

import argparse
import pickle
import sys
from pathlib import Path

from isda.conversion import SOURCES, Conversion, convert  # before Detectron2: makes it silent

# isort: split
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from isda.engine.setup import load_config, resolve_classes

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {"istr": "configs/COCO-InstanceSegmentation/istr_R_50_FPN_3x.yaml"}
WRAPPERS = ("model", "state_dict")


class ConversionError(ValueError):
    """A file that cannot be converted; the message says why and what to do."""


def read_weights(path: str) -> dict[str, Tensor]:
    """The state dict in a file of ``torch.save``, alone or below ``model`` or ``state_dict``.

    Raises:
        ConversionError: there is none.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConversionError(f"there is no file {path}") from error
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path} holds Python objects besides tensors, which are not loaded because they could "
            "run code; where you trust it, save its state_dict alone into a new file"
        ) from error
    except (EOFError, RuntimeError) as error:
        raise ConversionError(f"{path} is no readable checkpoint: {error}") from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise ConversionError(
            f"{path} holds no state dict, neither alone nor below {' or '.join(WRAPPERS)}"
        )
    return content


def expected_weights(cfg: CfgNode) -> dict[str, Tensor]:
    """The state dict of the config's model, whose own dictionary and weights are not read."""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ISTR.MASK_DICTIONARY = ""
    resolve_classes(cfg, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    return build_model(cfg).state_dict()


def write(result: Conversion, args: argparse.Namespace) -> None:
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
    torch.save({"model": result.weights}, args.output)
    print(f"{args.output}: for MODEL.WEIGHTS, with {args.config_file}")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="source", choices=sorted(SOURCES), required=True)
    parser.add_argument("--config-file", help="of the model; default: the R-50 of the source")
    parser.add_argument("--partial", action="store_true", help="write what fits")
    parser.add_argument("input", help="the foreign checkpoint")
    parser.add_argument("output", help="file to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    args = parser.parse_args(arguments)
    args.config_file = args.config_file or str(ROOT / CONFIGS[args.source])
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        weights = read_weights(args.input)
        expected = expected_weights(load_config(args.config_file, args.opts))
        result = convert(weights, args.source, expected)
        print(result)
        write(result, args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
