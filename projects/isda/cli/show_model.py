"""Draw what a trained model sees, and what it looked at to see it.

    isda show model predictions --run output/shapes --limit 8
    isda show model sampling attention features --run output/shapes \\
        --image photo.jpg --query best
    isda show model steps --config-file shapes/istr_tiny.yaml \\
        --image photo.jpg --opts MODEL.WEIGHTS output/istr/model_final.pth

predictions: photograph, ground truth where there is one, and predictions, side by side.
sampling:    ISDA: where a query looks, decoder layer by decoder layer, and the mask it makes of it.
attention:   ISDA: how much of its attention each head gives to each level.
features:    ISDA: mask features, the mask that a query reads out of them, class scores, maskness.
ellipse:     ISDA with boxes: how a query's mask is made of the features and of an ellipse.
steps:       ISTR, ISDA with boxes: boxes and masks from step to step or layer to layer.
all:         whatever of these the model has.
"""

import argparse

from isda.cli.arguments import config_file
from isda.cli.registering import add_import_argument, import_named

EXPECTED = (ImportError, OSError, ValueError)
DRAWINGS = ("predictions", "sampling", "attention", "features", "ellipse", "steps")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="+", choices=[*DRAWINGS, "all"], metavar="WHAT")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--run", metavar="FOLDER", help="OUTPUT_DIR of a training: its config and best weights"
    )
    model.add_argument("--model", metavar="NAME", help="a trained model that isda models lists")
    model.add_argument(
        "--config-file", type=config_file, metavar="FILE", help="with MODEL.WEIGHTS in --opts"
    )
    parser.add_argument(
        "--image", nargs="+", metavar="FILE", help="default: the first images of the data set"
    )
    parser.add_argument(
        "--dataset",
        help="of images and ground truth: a registered name, or a folder that isda train "
        "--dataset takes (default: DATASETS.TEST)",
    )
    parser.add_argument("--limit", type=int, default=4, help="images of the data set (default: 4)")
    parser.add_argument(
        "--query",
        type=query_number,
        metavar="N|best|X,Y",
        help="number of a query; best: that of the highest score; X,Y: that of the instance at "
        "this pixel of the image (default: best; of steps, those of all instances above the "
        "threshold)",
    )
    parser.add_argument("--confidence-threshold", type=float, default=0.5, help="default: 0.5")
    parser.add_argument("--no-labels", action="store_true", help="predictions: masks alone")
    parser.add_argument("--output", default="visualized", metavar="FOLDER")
    add_import_argument(parser)
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs; comes last"
    )


def query_number(text: str) -> int | str | tuple[int, int]:
    """What ``--query`` means: a number, "best", or the pixel (x, y)."""
    if text == "best":
        return text
    try:
        x, *rest = map(int, text.split(","))
        (y,) = rest or (None,)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"'{text}' is neither a number nor best nor a pixel such as 120,64"
        ) from error
    return x if y is None else (x, y)


def run(args: argparse.Namespace) -> None:
    from isda.inspection.pictures import Pictures, chosen_records
    from isda.prediction.predictor import Predictor

    import_named(args)
    cfg = read_config(args)
    records = chosen_records(cfg, args.image, args.dataset, args.limit)
    pictures = Pictures(
        Predictor(cfg),
        args.what,
        args.output,
        query=args.query,
        threshold=args.confidence_threshold,
        with_labels=not args.no_labels,
    )
    for record in records:
        for path in pictures.write(record):
            print(path)


def read_config(args: argparse.Namespace):
    """The configuration that the arguments name, with its weights.

    Raises:
        ValueError: a key or a value is wrong, or a model or a file does not exist.
    """
    from isda import model_zoo
    from isda.engine.setup import load_config
    from isda.inspection.pictures import run_config

    if args.model:
        return model_zoo.get_config(args.model, trained=True, overrides=args.opts)
    if args.config_file:
        return load_config(args.config_file, args.opts)
    return run_config(args.run, args.opts)
