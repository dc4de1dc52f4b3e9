"""Draw a data set as it is annotated, or as the model gets it after augmentation.

python tools/visualize_data.py --source annotation --config-file CONFIG --output-dir pictures
python tools/visualize_data.py --source dataloader --config-file CONFIG --output-dir pictures
python tools/visualize_data.py --source dataloader --config-file CONFIG --dataset FOLDER
"""

import argparse
import importlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from isda import console
from isda.data.images import read_image  # before Detectron2, whose import it makes silent

# isort: split
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb

from isda.engine.loader import training_dicts
from isda.engine.own_data import use_own_data
from isda.engine.setup import load_config
from isda.engine.trainer import Trainer
from isda.visualization import class_labels, draw_annotations, draw_instances, write_image


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", choices=["annotation", "dataloader"], required=True)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--dataset", default="", metavar="PATH", help="as of train_net.py")
    parser.add_argument("--output-dir", default="visualized")
    parser.add_argument("--limit", type=int, default=50, help="pictures; 0: all (default: 50)")
    parser.add_argument("--no-labels", action="store_true", help="masks alone")
    parser.add_argument(
        "--import", dest="module", help="Python module to import first: it registers your data"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    args = parser.parse_args(arguments)
    if args.source == "dataloader" and args.limit == 0:
        parser.error("--source dataloader never ends: give --limit a number above 0")
    return args


def annotated(cfg: CfgNode, with_labels: bool) -> Iterator[tuple[str, np.ndarray]]:
    """File name and picture of every training image."""
    for dataset in cfg.DATASETS.TRAIN:
        names = MetadataCatalog.get(dataset).get("thing_classes", None)
        for record in DatasetCatalog.get(dataset):
            image = read_image(record["file_name"], "RGB")
            annotations = record.get("annotations", [])
            yield (
                record["file_name"],
                draw_annotations(image, annotations, names, with_labels=with_labels),
            )


def loaded(cfg: CfgNode, with_labels: bool) -> Iterator[tuple[str, np.ndarray]]:
    """File name and picture of the images as training reads them, without an end."""
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", None)
    for batch in Trainer.build_train_loader(cfg, training_dicts(cfg)):
        for example in batch:
            image = example["image"].permute(1, 2, 0)
            image = convert_image_to_rgb(image, cfg.INPUT.FORMAT)
            instances = example["instances"]
            labels = None
            if with_labels:
                labels = class_labels(instances.gt_classes.tolist(), names)
            masks = instances.gt_masks if instances.has("gt_masks") else None
            boxes = instances.gt_boxes if with_labels or masks is None else None
            yield example["file_name"], draw_instances(image, masks, boxes=boxes, labels=labels)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    source = annotated if args.source == "annotation" else loaded
    folder, count = Path(args.output_dir), 0
    try:
        if args.module:
            sys.path.insert(0, "")  # the working directory, where such a module lies
            importlib.import_module(args.module)
        cfg = load_config(args.config_file, args.opts)
        for note in use_own_data(cfg, args.dataset):
            print(note)
        cfg.SEED = max(cfg.SEED, 0)  # -1 lets a training choose one; a picture needs none
        pictures = source(cfg, not args.no_labels)
        for file_name, image in itertools.islice(pictures, args.limit or None):
            # Numbered: the loader repeats images, and folders repeat names.
            write_image(folder / f"{count:05d}_{Path(file_name).stem}.png", image)
            count += 1
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count} pictures in {folder}")
    return 0


if __name__ == "__main__":
    console.start()
    sys.exit(main())
