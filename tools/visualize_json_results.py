"""Draw a file of predictions in COCO's format beside the ground truth.

    python tools/visualize_json_results.py --dataset nuclei_mini_val --output pictures \\
        --input output/inference/coco_instances_results.json
"""

import argparse
import importlib
import json
import sys
from collections import defaultdict
from pathlib import Path

from isda.data.images import read_image  # before Detectron2, whose import it makes silent

# isort: split
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from isda import add_isda_config, console  # noqa: F401  (registers the embedded data sets)
from isda.visualization import (
    class_labels,
    draw_annotations,
    draw_instances,
    side_by_side,
    write_image,
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, help="coco_instances_results.json")
    parser.add_argument("--output", required=True, help="folder")
    parser.add_argument("--dataset", required=True, help="registered name of the ground truth")
    parser.add_argument("--conf-threshold", type=float, default=0.5, help="default: 0.5")
    parser.add_argument("--no-labels", action="store_true", help="masks alone")
    parser.add_argument(
        "--import", dest="module", help="Python module to import first: it registers your data"
    )
    return parser.parse_args(arguments)


def read_predictions(path: str, threshold: float) -> dict[int, list[dict]]:
    """``{image id: predictions}`` with scores of at least ``threshold``, the best first.

    Raises:
        OSError: there is no such file.
        ValueError: it is not a list of COCO predictions.
    """
    try:
        predictions = json.loads(Path(path).read_text(encoding="utf-8"))
        by_image = defaultdict(list)
        for prediction in sorted(predictions, key=lambda p: -p["score"]):
            if prediction["score"] >= threshold:
                by_image[prediction["image_id"]].append(prediction)
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not a list of predictions in COCO's format, with image_id, category_id and "
            f"score each ({type(error).__name__}: {error})"
        ) from error
    return by_image


def class_indices(predictions: list[dict], metadata: Metadata, path: str) -> list[int]:
    """Indices into the metadata's class names.

    Raises:
        ValueError: a category id is not the data set's.
    """
    to_index = metadata.get("thing_dataset_id_to_contiguous_id", None)
    if to_index is None:  # as LVIS, whose ids count from 1 without gaps
        to_index = {index + 1: index for index in range(len(metadata.thing_classes))}
    ids = [prediction["category_id"] for prediction in predictions]
    if unknown := sorted(set(ids) - set(to_index)):
        raise ValueError(
            f"{path} has category ids that {metadata.name} lacks, such as {unknown[0]}: is it of "
            "another data set?"
        )
    return [to_index[category_id] for category_id in ids]


def draw(record: dict, predictions: list[dict], metadata: Metadata, args: argparse.Namespace):
    """Predictions and ground truth of one image, side by side."""
    image, names = read_image(record["file_name"], "RGB"), metadata.thing_classes
    labels = None
    if not args.no_labels:
        indices = class_indices(predictions, metadata, args.input)
        labels = class_labels(indices, names, [p["score"] for p in predictions])
    masks = [p["segmentation"] for p in predictions if p.get("segmentation")]
    boxes = None
    if len(masks) < len(predictions):  # a file of boxes
        masks, boxes = None, [xyxy(p["bbox"]) for p in predictions]
    annotations = record.get("annotations", [])
    return side_by_side(
        {
            f"predictions: {len(predictions)}": draw_instances(
                image, masks, boxes=boxes, labels=labels
            ),
            f"ground truth: {len(annotations)}": draw_annotations(
                image, annotations, names, with_labels=not args.no_labels
            ),
        }
    )


def xyxy(box: list[float]) -> list[float]:
    """COCO's (x, y, width, height) as two corners."""
    x, y, width, height = box
    return [x, y, x + width, y + height]


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    folder = Path(args.output)
    try:
        if args.module:
            sys.path.insert(0, "")  # the working directory, where such a module lies
            importlib.import_module(args.module)
        if args.dataset not in DatasetCatalog:
            raise ValueError(f"--dataset {args.dataset} is not registered; --import does it")
        predictions = read_predictions(args.input, args.conf_threshold)
        records, metadata = DatasetCatalog.get(args.dataset), MetadataCatalog.get(args.dataset)
        for record in records:
            picture = draw(record, predictions.get(record["image_id"], []), metadata, args)
            write_image(folder / f"{Path(record['file_name']).stem}.png", picture)
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(records)} pictures in {folder}")
    return 0


if __name__ == "__main__":
    console.start()
    sys.exit(main())
