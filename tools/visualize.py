#!/usr/bin/env python
"""Draw what a trained model sees, and what it looked at to see it.

    python tools/visualize.py predictions --run output/shapes --limit 8
    python tools/visualize.py sampling attention features --run output/shapes \\
        --image photo.jpg --query best
    python tools/visualize.py steps --config-file configs/shapes/istr_tiny.yaml \\
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
import importlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from isda.data.images import read_image  # before Detectron2, whose import it makes silent

# isort: split
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from isda import console, model_zoo
from isda.data.own_data import register_folder
from isda.engine.predictor import Predictor, confident
from isda.engine.setup import load_config
from isda.inspection.figures import (
    attention_figure,
    ellipse_figure,
    features_figure,
    sampling_figure,
    steps_figure,
    write_figure,
)
from isda.inspection.traces import ISDATrace, ISTRTrace, trace_isda
from isda.meta_arch import ISDA, ISTR
from isda.meta_arch.declarations import declared
from isda.visualization import (
    brighten,
    draw_annotations,
    draw_predictions,
    side_by_side,
    write_image,
)

DRAWINGS = ("predictions", "sampling", "attention", "features", "ellipse", "steps")
OF_ISDA = ("sampling", "attention", "features", "ellipse")
WEIGHTS = ("model_best.pth", "model_final.pth")
SMALLEST_SIDE = 384  # pixels to which small images are enlarged, for labels to be legible


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", choices=[*DRAWINGS, "all"], metavar="WHAT")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--run", metavar="FOLDER", help="OUTPUT_DIR of a training: its config and best weights"
    )
    model.add_argument(
        "--model", metavar="NAME", help="a trained model of docs/MODEL_ZOO.md, with its weights"
    )
    model.add_argument("--config-file", metavar="FILE", help="with MODEL.WEIGHTS in --opts")
    parser.add_argument(
        "--image", nargs="+", metavar="FILE", help="default: the first images of the data set"
    )
    parser.add_argument(
        "--dataset",
        help="of images and ground truth: a registered name, or a folder that train_net.py "
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
    parser.add_argument(
        "--import", dest="module", help="Python module to import first: it registers your data"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs; comes last"
    )
    return parser.parse_args(arguments)


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


def chosen_query(trace: ISDATrace | ISTRTrace, asked: int | str | tuple[int, int] | None) -> int:
    """The query that ``--query`` means in an image; the best if it was not given.

    Raises:
        ValueError: there are no instances, or none at the pixel.
    """
    if isinstance(asked, tuple):
        return trace.query_at(*asked)
    return trace.query_of() if asked in (None, "best") else asked


def read_config(args: argparse.Namespace) -> CfgNode:
    """The configuration that the arguments name, with its weights.

    Raises:
        ValueError: a key or a value is wrong, or a model or a file does not exist.
    """
    if args.model:
        return model_zoo.get_config(args.model, trained=True, overrides=args.opts)
    if args.config_file:
        return load_config(args.config_file, args.opts)
    weights = ["MODEL.WEIGHTS", str(weights_of(Path(args.run)))]
    return load_config(str(Path(args.run) / "config.yaml"), [*weights, *args.opts])


def weights_of(run: Path) -> Path:
    """The best weights of a training, else its final, else its latest.

    Raises:
        ValueError: the folder has none.
    """
    names = list(WEIGHTS)
    latest = run / "last_checkpoint"
    if latest.is_file():
        names.append(latest.read_text(encoding="utf-8").strip())
    for name in names:
        if (run / name).is_file():
            return run / name
    raise ValueError(
        f"--run {run}: no weights there ({', '.join(WEIGHTS)}): it must be the OUTPUT_DIR of a "
        "training; weights elsewhere are named by --config-file and --opts MODEL.WEIGHTS FILE"
    )


def chosen_drawings(what: list[str], predictor: Predictor) -> list[str]:
    """The drawings asked for, ``all`` being those that the model has."""
    if "all" not in what:
        return what
    model = predictor.model
    of_isda = isinstance(model, ISDA)
    has = dict.fromkeys(("sampling", "attention", "features"), of_isda)
    has["ellipse"] = of_isda and model.instance_head.ellipse is not None
    with_boxes = of_isda and model.transformer.reference_boxes is not None
    has["steps"] = isinstance(model, ISTR) or with_boxes
    return ["predictions", *(name for name, there in has.items() if there)]


def dataset_names(args: argparse.Namespace, cfg: CfgNode) -> list[str]:
    """Registered names of the data sets that images and ground truth come from.

    Raises:
        ValueError: the data set is not registered, nor a folder that can be used.
    """
    if not args.dataset:
        return [name for name in cfg.DATASETS.TEST if name in DatasetCatalog]
    if args.dataset in DatasetCatalog:
        return [args.dataset]
    if not Path(args.dataset).exists():
        raise ValueError(
            f"--dataset {args.dataset} is neither registered (--import does it) nor a folder"
        )
    splits = register_folder(args.dataset).names
    return [splits["val"], *(name for split, name in splits.items() if split != "val")]


def chosen_records(args: argparse.Namespace, cfg: CfgNode) -> list[dict]:
    """A data set dict per image, with ``annotations`` only where they are known.

    Raises:
        ValueError: there is no such data set, or no images are named.
    """
    names = dataset_names(args, cfg)
    if not args.image:
        if not names:
            raise ValueError(
                f"none of DATASETS.TEST {tuple(cfg.DATASETS.TEST)} is registered: give --image, "
                "--dataset, or by --import the module that registers it"
            )
        records = itertools.chain.from_iterable(DatasetCatalog.get(name) for name in names)
        return list(itertools.islice(records, args.limit))
    known = {}
    if args.dataset:  # as the user wishes it: other data sets need not be read for their pictures
        records = itertools.chain.from_iterable(DatasetCatalog.get(name) for name in names)
        known = {Path(record["file_name"]).resolve(): record for record in records}
    return [known.get(Path(file).resolve(), {"file_name": file}) for file in args.image]


class Pictures:
    """Draws one image after the other into a folder."""

    def __init__(self, predictor: Predictor, args: argparse.Namespace):
        self.predictor = predictor
        self.names = predictor.class_names
        self.args = args
        self.drawings = chosen_drawings(args.what, predictor)
        self.folder = Path(args.output)
        self.taken: set[str] = set()

    def write(self, record: dict) -> Iterator[Path]:
        """Draws an image; files of one name from several folders are numbered.

        Raises:
            OSError: the image cannot be read, or a picture not written.
            ValueError: the model has no such drawing or query.
        """
        image = read_image(record["file_name"], "RGB")
        stem = base = Path(record["file_name"]).stem
        number = 1
        while stem in self.taken:
            number += 1
            stem = f"{base}_{number}"
        self.taken.add(stem)
        if "predictions" in self.drawings:
            path = self.folder / f"{stem}_predictions.png"
            write_image(path, self._predictions(image, record))
            yield path
        for name, figure in self._figures(image):
            path = self.folder / f"{stem}_{name}.png"
            write_figure(path, figure)
            yield path

    def _predictions(self, image: np.ndarray, record: dict) -> np.ndarray:
        instances = confident(self.predictor(image), self.args.confidence_threshold)
        shown, with_labels = brighten(image), not self.args.no_labels
        style = {
            "with_labels": with_labels,
            "scale": max(1.0, SMALLEST_SIDE / max(image.shape[:2])),
        }
        panels = {"photograph": draw_predictions(shown, instances[:0], scale=style["scale"])}
        if "annotations" in record:
            annotations = record["annotations"]
            panels[f"ground truth: {len(annotations)}"] = draw_annotations(
                shown, annotations, self.names, **style
            )
        panels[f"predictions: {len(instances)}"] = draw_predictions(
            shown, instances, self.names, **style
        )
        return side_by_side(panels)

    def _figures(self, image: np.ndarray):
        """Name and figure of what else was asked for."""
        of_isda = any(name in OF_ISDA for name in self.drawings)
        steps = "steps" in self.drawings
        if not (of_isda or steps):
            return
        record = declared(type(self.predictor.model), "tracer")
        if of_isda:  # it says whose these drawings are
            record = trace_isda
        trace = record(self.predictor, image)
        if of_isda:
            yield from self._figures_of_isda(image, trace)
        if steps:
            yield self._steps(image, trace)

    def _figures_of_isda(self, image: np.ndarray, trace: ISDATrace):
        shown, query = brighten(image), chosen_query(trace, self.args.query)
        style = {"names": self.names, "threshold": self.args.confidence_threshold}
        if "sampling" in self.drawings:
            yield f"query{query}_sampling", sampling_figure(shown, trace, query, **style)
        if "attention" in self.drawings:
            yield f"query{query}_attention", attention_figure(trace, query)
        if "features" in self.drawings:
            yield f"query{query}_features", features_figure(shown, trace, query, **style)
        if "ellipse" in self.drawings:
            figure = ellipse_figure(shown, trace, query, names=self.names)
            yield f"query{query}_ellipse", figure

    def _steps(self, image: np.ndarray, trace: ISDATrace | ISTRTrace):
        if self.args.query is None:
            instances = confident(trace.instances, self.args.confidence_threshold)
            queries = list(dict.fromkeys(instances.queries.tolist()))
            name = "steps"
        else:
            queries = [chosen_query(trace, self.args.query)]
            name = f"query{queries[0]}_steps"
        return name, steps_figure(brighten(image), trace, queries, names=self.names)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        if args.module:
            sys.path.insert(0, "")  # the working directory, where such a module lies
            importlib.import_module(args.module)
        cfg = read_config(args)
        records = chosen_records(args, cfg)
        pictures = Pictures(Predictor(cfg), args)
        for record in records:
            for path in pictures.write(record):
                print(path)
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    console.start()
    sys.exit(main())
