"""Pictures of what a trained model sees, and of what it looked at to see it."""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from isda.data.custom_data import register_folder
from isda.data.images import read_image
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
from isda.prediction.predictor import Predictor, confident
from isda.visualization import (
    brighten,
    draw_annotations,
    draw_predictions,
    side_by_side,
    write_image,
)

__all__ = ["Pictures", "Query", "chosen_records", "run_config"]

OF_ISDA = ("sampling", "attention", "features", "ellipse")
WEIGHTS = ("model_best.pth", "model_final.pth")
SMALLEST_SIDE = 384  # pixels to which small images are enlarged, for labels to be legible

Query = int | str | tuple[int, int] | None  # as :class:`Pictures` takes it


def chosen_query(trace: ISDATrace | ISTRTrace, asked: Query) -> int:
    """The query that ``--query`` means in an image; the best if it was not given.

    Raises:
        ValueError: there are no instances, or none at the pixel.
    """
    if isinstance(asked, tuple):
        return trace.query_at(*asked)
    return trace.query_of() if asked in (None, "best") else asked


def run_config(run: str | os.PathLike, overrides: Sequence[str] = ()) -> CfgNode:
    """The config of a training's folder, with its best weights.

    Raises:
        ValueError: it has no weights, or a key or a value is wrong.
    """
    weights = ["MODEL.WEIGHTS", str(weights_of(Path(run)))]
    return load_config(str(Path(run) / "config.yaml"), [*weights, *overrides])


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


def chosen_drawings(what: Sequence[str], predictor: Predictor) -> list[str]:
    """The drawings asked for, ``all`` being those that the model has."""
    if "all" not in what:
        return list(what)
    model = predictor.model
    of_isda = isinstance(model, ISDA)
    has = dict.fromkeys(("sampling", "attention", "features"), of_isda)
    has["ellipse"] = of_isda and model.instance_head.ellipse is not None
    with_boxes = of_isda and model.transformer.reference_boxes is not None
    has["steps"] = isinstance(model, ISTR) or with_boxes
    return ["predictions", *(name for name, there in has.items() if there)]


def dataset_names(dataset: str | None, cfg: CfgNode) -> list[str]:
    """Registered names of the data sets that images and ground truth come from.

    Raises:
        ValueError: the data set is not registered, nor a folder that can be used.
    """
    if not dataset:
        return [name for name in cfg.DATASETS.TEST if name in DatasetCatalog]
    if dataset in DatasetCatalog:
        return [dataset]
    if not Path(dataset).exists():
        raise ValueError(
            f"--dataset {dataset} is neither registered (--import does it) nor a folder"
        )
    splits = register_folder(dataset).names
    return [splits["val"], *(name for split, name in splits.items() if split != "val")]


def chosen_records(
    cfg: CfgNode, images: Sequence[str] | None, dataset: str | None, limit: int
) -> list[dict]:
    """A data set dict per image, with ``annotations`` only where they are known.

    Args:
        images: files; None: the first ``limit`` of the data set.
        dataset: a registered name, or a folder; None: DATASETS.TEST.

    Raises:
        ValueError: there is no such data set, or no images are named.
    """
    names = dataset_names(dataset, cfg)
    if not images:
        if not names:
            raise ValueError(
                f"none of DATASETS.TEST {tuple(cfg.DATASETS.TEST)} is registered: give --image, "
                "--dataset, or by --import the module that registers it"
            )
        records = itertools.chain.from_iterable(DatasetCatalog.get(name) for name in names)
        return list(itertools.islice(records, limit))
    known = {}
    if dataset:  # as the user wishes it: other data sets need not be read for their pictures
        records = itertools.chain.from_iterable(DatasetCatalog.get(name) for name in names)
        known = {Path(record["file_name"]).resolve(): record for record in records}
    return [known.get(Path(file).resolve(), {"file_name": file}) for file in images]


class Pictures:
    """Draws one image after the other into a folder."""

    def __init__(
        self,
        predictor: Predictor,
        drawings: Sequence[str],
        folder: str | os.PathLike,
        *,
        query: Query = None,
        threshold: float = 0.5,
        with_labels: bool = True,
    ):
        """
        Args:
            drawings: as the command's, or "all": those that the model has.
            query: its number; "best"; the pixel (x, y) of its instance; None, the best or, of
                steps, those of all instances.
            threshold: lowest score of an instance that is drawn.
            with_labels: names and scores on predictions.
        """
        self.predictor = predictor
        self.names = predictor.class_names
        self.drawings = chosen_drawings(drawings, predictor)
        self.folder = Path(folder)
        self.query, self.threshold, self.with_labels = query, threshold, with_labels
        self.taken: set[str] = set()

    def write(self, record: dict) -> Iterator[Path]:
        """Draws an image; files of one name from several folders are numbered.

        Raises:
            OSError: the image cannot be read, or a picture not written.
            ValueError: the model has no such drawing or query.
        """
        image = read_image(record["file_name"], "RGB", self.predictor.image_options)
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
        instances = confident(self.predictor(image), self.threshold)
        shown = brighten(image)
        style = {
            "with_labels": self.with_labels,
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
        shown, query = brighten(image), chosen_query(trace, self.query)
        style = {"names": self.names, "threshold": self.threshold}
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
        if self.query is None:
            instances = confident(trace.instances, self.threshold)
            queries = list(dict.fromkeys(instances.queries.tolist()))
            name = "steps"
        else:
            queries = [chosen_query(trace, self.query)]
            name = f"query{queries[0]}_steps"
        return name, steps_figure(brighten(image), trace, queries, names=self.names)
