"""Training on a folder of the user's: what ``isda train --dataset`` does to a configuration."""

from collections.abc import Collection, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from isda.data.custom_data import CustomData, register_folder
from isda.data.errors import DatasetError
from isda.engine.architectures import node_with_classes
from isda.wording import plural

__all__ = ["use_custom_data"]

# Below the one a set predictor has hardly begun; the other is a good start.
_FEW_STEPS, _ENOUGH_STEPS = 1000, 2000
# A larger share of images with more instances than queries is no exception but a wrong setting.
_FEW = 0.2


def use_custom_data(
    cfg: CfgNode, path: str = "", given: Collection[str] = (), is_training: bool = True
) -> list[str]:
    """Registers a user's data set, and points ``DATASETS`` to it, in place.

    Trained is on its training split and evaluated on its validation split, unless the command line
    says otherwise, or the configuration is that of an earlier training on this data set.

    Args:
        path: of the data set; empty takes ``DATASETS.PATH``, and does nothing if that is empty.
        given: keys that the command line sets.
        is_training: else the model is only evaluated, whatever its number of queries.

    Returns:
        What the user should know, one sentence each.

    Raises:
        DatasetError: the data set cannot be used, or the model has too few queries for it.
    """
    path, crowds_are_instances = path or cfg.DATASETS.PATH, cfg.DATASETS.CROWDS_ARE_INSTANCES
    if not path:
        return []
    if str(path) in DatasetCatalog and not Path(path).exists():
        raise DatasetError(
            f"{path}: is no folder but a data set that is registered already: name it by "
            f"DATASETS.TRAIN \"('{path}',)\" instead of --dataset"
        )
    data = register_folder(path, crowds_are_instances)
    datasets, own = cfg.DATASETS, set(data.names.values())
    datasets.PATH = str(Path(path).expanduser().absolute())
    for key, split in (("TRAIN", "train"), ("TEST", "val")):
        chosen = datasets[key] and own.issuperset(datasets[key])
        if not chosen and f"DATASETS.{key}" not in given:
            datasets[key] = (data.names[split],)
    notes = [_description(path, data), *data.notes, *_capacity_notes(cfg, data, is_training)]
    return notes + _length_notes(cfg, data) if is_training else notes


def _description(path: str, data: CustomData) -> str:
    parts = [
        f"{data.names[split]} with {sum(counts)} instances in {len(counts)} images"
        for split, counts in data.instances.items()
    ]
    number = len(data.classes)
    return f"{path}: {', '.join(parts)}; {plural(number, 'class')}: {', '.join(data.classes)}"


def _capacity_notes(cfg: CfgNode, data: CustomData, is_training: bool) -> list[str]:
    """Whether the model can find as many instances as the images have."""
    notes = []
    name = node_with_classes(cfg)
    queries = cfg.MODEL[name].get("NUM_QUERIES") if name else None
    if is_training and queries is not None:
        counts = data.instances["train"]
        notes = _beyond(counts, queries, "trained on", f"MODEL.{name}.NUM_QUERIES")
        if sum(count > queries for count in counts) > _FEW * len(counts):
            raise DatasetError(notes[0])
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    return notes + _beyond(data.instances["val"], limit, "evaluated", "TEST.DETECTIONS_PER_IMAGE")


def _length_notes(cfg: CfgNode, data: CustomData) -> list[str]:
    """Whether the epochs of the configuration are enough steps."""
    solver, images = cfg.SOLVER, len(data.instances["train"])
    steps = round(solver.EPOCHS * images / solver.IMS_PER_BATCH)
    if solver.EPOCHS == 0 or steps >= _FEW_STEPS:
        return []
    enough = -(-_ENOUGH_STEPS * solver.IMS_PER_BATCH // (images * 10)) * 10
    return [
        f"{solver.EPOCHS:g} epochs of {images} images are {steps} steps, which is short: "
        f"SOLVER.EPOCHS {enough} makes {_ENOUGH_STEPS} of them, and SOLVER.EARLY_STOP.PATIENCE 5 "
        "ends them when nothing more is learnt"
    ]


def _beyond(counts: Sequence[int], limit: int, purpose: str, key: str) -> list[str]:
    """A sentence if images have more than ``limit`` instances, else nothing."""
    beyond = sum(count > limit for count in counts)
    if not beyond:
        return []
    enough = -(-max(counts) // 10) * 10
    return [
        f"{beyond} of the {len(counts)} images that are {purpose} have more instances (up to "
        f"{max(counts)}) than {key} {limit} lets the model find: set {key} {enough}, or cut the "
        "images into smaller ones"
    ]
