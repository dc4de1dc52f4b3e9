"""Publishing: a training's checkpoint becomes a small file and a row of the table of models."""

import dataclasses
import hashlib
import io
import logging
import math
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from isda import strict_json
from isda.engine.inference import Classes
from isda.errors import UserError
from isda.files import write_bytes, write_text
from isda.model_zoo.catalog import ModelEntry, read_table

__all__ = [
    "PublishingError",
    "differing_keys",
    "half_precision",
    "metrics_at",
    "write_row",
    "write_weights",
]

logger = logging.getLogger(__name__)

METRICS = ("segm/AP", "segm/AP50", "segm/AP75", "bbox/AP")
_LARGEST_ERROR = 2**-10  # relative, of a tensor; rounding to half precision alone is below 2⁻¹¹
# What inference depends on, but for what differs from one computer to the next.
_COMPARED = (
    "MODEL.",
    "INPUT.FORMAT",
    "INPUT.INTENSITY",
    "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST",
)
_NOT_COMPARED = ("MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.WEIGHTS_MIN_MATCHED", ".NUM_CLASSES")


class PublishingError(UserError, ValueError):
    """A model that cannot be published as asked; the message says why and what to do."""


def half_precision(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Real tensors in half precision, but for those that it cannot hold to a thousandth.

    Among these are running variances beyond 65,504, and tensors of numbers near zero.
    """
    return {name: _halved(name, tensor.cpu()) for name, tensor in weights.items()}


def _halved(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in (torch.float32, torch.float64):
        return tensor.clone()  # without what else a view's storage holds
    half = tensor.half()
    error = (half.double() - tensor.double()).norm()
    if error <= _LARGEST_ERROR * tensor.double().norm():
        return half
    logger.info("%s stays in single precision", name)
    return tensor.float()


def write_weights(
    folder: Path, stem: str, weights: dict[str, Tensor], classes: Classes
) -> tuple[Path, str]:
    """Write ``<stem>_<start of its sha256>.pth`` with the model's tensors and its classes alone.

    Args:
        weights: under the model's names; written in half precision.

    Returns:
        The file, and its sha256.
    """
    if classes.names is None:
        raise PublishingError(
            "the names of the classes are not known: the checkpoint does not carry them and the "
            "config's data sets are not registered here"
        )
    ids = classes.ids or [number + 1 for number in range(len(classes.names))]
    contents = {"model": half_precision(weights), "classes": {"names": classes.names, "ids": ids}}
    folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()  # and no path, so that no name is in the file
    torch.save(contents, content)
    sha256 = hashlib.sha256(content.getbuffer()).hexdigest()
    path = folder / f"{stem}_{sha256[:8]}.pth"
    write_bytes(path, content.getbuffer())
    return path, sha256


def write_row(table: Path, entry: ModelEntry, weights_folder: Path) -> None:
    """Put a model's row into a table; a file of its former row that no row names is deleted."""
    rows = read_table(table) if table.is_file() else {}
    former = rows.get(entry.name)
    rows[entry.name] = entry
    contents = {name: _without_name(row) for name, row in sorted(rows.items())}
    write_text(table, strict_json.dumps(contents, indent=2, ensure_ascii=False) + "\n")
    if former and former.file_name not in {row.file_name for row in rows.values()}:
        (weights_folder / former.file_name).unlink(missing_ok=True)


def _without_name(entry: ModelEntry) -> dict[str, Any]:
    row = dataclasses.asdict(entry)
    del row["name"]
    return row


def differing_keys(trained: CfgNode, published: CfgNode) -> dict[str, tuple[Any, Any]]:
    """Keys that a model's predictions depend on, with their values here and there.

    Numbers of classes are left out: they come with the weights.
    """
    ours, theirs = _flat(trained), _flat(published)
    return {
        key: (value, theirs.get(key))
        for key, value in ours.items()
        if key.startswith(_COMPARED)
        and not key.endswith(_NOT_COMPARED)
        and _plain(value) != _plain(theirs.get(key))
    }


def _flat(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in cfg.items():
        nested = isinstance(value, CfgNode)
        values |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return values


def _plain(value: Any) -> Any:
    """With lists for tuples, which YAML does not tell apart."""
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def metrics_at(records: list[dict], iteration: int | None) -> dict[str, float]:
    """AP of the evaluation at an iteration, or of the last one, in percent.

    Args:
        records: as ``isda.visualization.read_metrics`` gives them.
        iteration: of the weights; None for the end of the training.
    """
    evaluated = [r for r in records if METRICS[0] in r and r["iteration"] == iteration]
    if iteration is None:
        evaluated = [r for r in records if METRICS[0] in r][-1:]
    record = evaluated[-1] if evaluated else {}
    known = {key: record[key] for key in METRICS if key in record}
    return {key: round(value, 2) for key, value in known.items() if math.isfinite(value)}
