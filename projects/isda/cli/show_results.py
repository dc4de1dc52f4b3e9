"""Draw a file of predictions in COCO's format beside the ground truth.

    isda show results --dataset nuclei_mini_val --output pictures \\
        --input output/inference/coco_instances_results.json
"""

import argparse
from pathlib import Path

from isda.cli.registering import add_import_argument, import_named
from isda.errors import UserError

EXPECTED = (ImportError, OSError, ValueError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", required=True, help="coco_instances_results.json")
    parser.add_argument("--output", required=True, help="folder")
    parser.add_argument("--dataset", required=True, help="registered name of the ground truth")
    parser.add_argument("--conf-threshold", type=float, default=0.5, help="default: 0.5")
    parser.add_argument("--no-labels", action="store_true", help="masks alone")
    add_import_argument(parser)


def run(args: argparse.Namespace) -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from isda.inspection.results import draw_beside_truth, read_predictions
    from isda.visualization import write_image

    import_named(args)
    if args.dataset not in DatasetCatalog:
        raise UserError(f"--dataset {args.dataset} is not registered; --import does it")
    predictions = read_predictions(args.input, args.conf_threshold)
    records, metadata = DatasetCatalog.get(args.dataset), MetadataCatalog.get(args.dataset)
    style = {"with_labels": not args.no_labels}
    for record in records:
        found = predictions.get(record["image_id"], [])
        picture = draw_beside_truth(record, found, metadata, args.input, **style)
        write_image(Path(args.output) / f"{Path(record['file_name']).stem}.png", picture)
    print(f"{len(records)} pictures in {args.output}")
