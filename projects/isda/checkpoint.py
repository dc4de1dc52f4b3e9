"""Saving and loading of checkpoints, and what becomes of weights that do not fit."""

import logging
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlparse

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn
from torch.optim.swa_utils import AveragedModel

from isda.conversion import SOURCES, detect, detectron2_resnet
from isda.files import replacing, write_text
from isda.weights_files import WeightsError, local_file, read_checkpoint
from isda.wording import listed

__all__ = [
    "Checkpointer",
    "WeightsError",
    "WeightsReport",
    "classes_in",
    "compare_classes",
    "open_last_checkpoint",
    "report_weights",
]

logger = logging.getLogger(__name__)

BEST = "model_best.pth"  # the weights with the best evaluation, nothing to continue from
LAST = "last_checkpoint"  # a file with the name of the one that --resume continues
_DICTIONARY = "mask_embedding.components"
# One row per learned query, of ISDA and of ISTR.
_QUERIES = ("transformer.query_embed.weight", "queries.features.weight", "queries.boxes.weight")
_LISTED = 8  # names of a kind that a message spells out


class WeightsReport(NamedTuple):
    """What became of a model's tensors when weights were loaded."""

    matched: int
    total: int
    backbone_matched: int
    backbone_total: int
    missing: list[str]
    unexpected: list[str]
    wrong_shapes: list[tuple[str, tuple, tuple]]  # name, in the file, in the model

    @property
    def share(self) -> float:
        """Matched share of the model or, for weights of a backbone only, of the backbone."""
        return max(
            self.matched / max(self.total, 1), self.backbone_matched / max(self.backbone_total, 1)
        )

    def __str__(self) -> str:
        lines = [
            f"{self.matched} of {self.total} tensors of the model are in the file "
            f"({self.backbone_matched} of {self.backbone_total} of the backbone)"
        ]
        shapes = [f"{n}: {list(a)} in the file, {list(b)} here" for n, a, b in self.wrong_shapes]
        for title, names in (
            ("of another shape, left as initialised", shapes),
            ("not in the file, left as initialised", self.missing),
            ("in the file, but not in the model", self.unexpected),
        ):
            if names:
                lines.append(f"  {len(names)} {title}: {listed(names, _LISTED)}")
        return "\n".join(lines)


def report_weights(
    model: nn.Module,
    missing: Iterable[str],
    unexpected: Iterable[str],
    wrong_shapes: Iterable[tuple[str, tuple, tuple]],
) -> WeightsReport:
    """Count what was matched, in tensors of ``model.state_dict()``."""
    wrong_shapes = list(wrong_shapes)
    # A tensor of another shape counts as missing for PyTorch, which never saw it.
    missing = sorted(set(missing) - {name for name, *_ in wrong_shapes})
    names = [n for n in model.state_dict() if not n.endswith("num_batches_tracked")]
    lacking = {*missing, *(name for name, *_ in wrong_shapes)}
    backbone = [n for n in names if n.startswith("backbone.")]
    return WeightsReport(
        matched=sum(n not in lacking for n in names),
        total=len(names),
        backbone_matched=sum(n not in lacking for n in backbone),
        backbone_total=len(backbone),
        missing=missing,
        unexpected=sorted(unexpected),
        wrong_shapes=wrong_shapes,
    )


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with atomic files, averaged weights and a check of what fits.

    ``model`` in a file is what inference should use: with averaging (EMA) the averaged weights;
    the weights that training continues from are then in ``training_model``. So any tool that
    loads ``model`` gets the weights that were evaluated.

    Every process has to call ``save``: each contributes its random state, the main one writes.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        averaged: AveragedModel | None = None,
        min_matched: float = 0.0,
        classes: dict[str, list] | None = None,
        intensity: str = "",
        **checkpointables: Any,
    ):
        """
        Args:
            averaged: the running average of ``model``, if there is one.
            min_matched: ``load`` raises when a smaller share of the tensors is matched.
            classes: ``names`` and ``ids`` of the data set's classes, in the order of the model's
                outputs, to be kept with the weights; ``load`` compares them with the file's.
            intensity: ``INPUT.INTENSITY``, to be kept with the weights.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.averaged = averaged
        self.min_matched = min_matched
        self.classes = classes
        self.intensity = intensity
        self._resuming = False
        self._source = ""

    def save(self, name: str, **extra: Any) -> None:
        """Write ``<name>.pth`` and make it the one that ``--resume`` continues from."""
        states = {key: thing.state_dict() for key, thing in self.checkpointables.items()}
        if not self.save_dir or not self.save_to_disk:
            return
        contents = {**self.inference_contents(), **states, **extra}
        if self.inference_model is not self.model:
            contents["training_model"] = self.model.state_dict()
            contents["averaged_steps"] = int(self.averaged.n_averaged)
        self.write(f"{name}.pth", contents)
        self.tag_last_checkpoint(f"{name}.pth")

    @property
    def inference_model(self) -> nn.Module:
        """The averaged model if there is one, else the model itself."""
        if self.averaged is None or self.averaged.n_averaged == 0:
            return self.model
        return self.averaged.module

    def inference_contents(self) -> dict[str, Any]:
        """What a file needs to be predicted with.

        ``model`` and, where known, ``classes``, and ``intensity``, how its images were scaled.
        """
        contents = {"model": self.inference_model.state_dict()}
        known = {"classes": self.classes, "intensity": self.intensity}
        return contents | {name: value for name, value in known.items() if value}

    def write(self, basename: str, contents: dict) -> None:
        """Write a file of the output folder such that a kill leaves the old one or the new one."""
        path = os.path.join(self.save_dir, basename)
        logger.info("Saving %s", path)
        with replacing(path, durable=True) as file:
            torch.save(contents, file)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Point ``last_checkpoint`` to a file, atomically."""
        path = os.path.join(self.save_dir, LAST)
        write_text(path, last_filename_basename, durable=True)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As Detectron2's; all processes have to agree on the checkpoint.

        Raises:
            RuntimeError: a process sees another checkpoint than the main one.
            WeightsError: the last checkpoint is gone, damaged, of another model, or of no
                training; else as :meth:`load`.
        """
        trains = bool(self.checkpointables)
        found = open_last_checkpoint(self.save_dir, to_train=trains) if resume else None
        last = found[0] if found else ""
        if len(set(seen := comm.all_gather(last))) > 1:
            raise RuntimeError(
                f"--resume: the processes see different checkpoints ({', '.join(seen)}): "
                "OUTPUT_DIR must be a folder that all machines share"
            )
        # Evaluation resumes no training: there is nothing to continue but the model.
        self._resuming = bool(last) and trains
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self._resuming = False

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As Detectron2's, but whatever a file holds, nothing in it is executed.

        Raises:
            WeightsError: there is no such file, it cannot be read, or it holds too few of the
                model's tensors.
        """
        if path and "://" not in path and not os.path.exists(path):
            raise WeightsError(
                f"no weights at {path}: check MODEL.WEIGHTS (empty trains from scratch)"
            )
        self._source = path
        # fvcore's: Detectron2's adds addresses and missing files, which local_file sees to.
        local = os.fspath(local_file(path)) if path else ""
        return super(DetectionCheckpointer, self).load(local, *args, **kwargs)

    def _load_file(self, filename: str) -> dict:
        """In place of Detectron2's, which executes what it finds in a ``.pkl``."""
        contents = read_checkpoint(self._source)
        query = parse_qs(urlparse(self._source).query) if "://" in self._source else {}
        if query.pop("matching_heuristics", None) == ["True"]:
            contents["matching_heuristics"] = True
        if query:
            raise WeightsError(f"{self._source}: after ? only matching_heuristics=True is known")
        weights = contents["model"]
        if "layer1.0.conv1.weight" in weights and "bn1.weight" in weights:
            return {"model": detectron2_resnet(weights), "matching_heuristics": True}
        return contents

    def _load_model(self, checkpoint: dict) -> Any:
        training_model = checkpoint.pop("training_model", None)
        averaged = None
        if self._resuming:
            compare_classes("the checkpoint", classes_in(checkpoint), self.classes)
            if training_model is not None:
                averaged, checkpoint["model"] = checkpoint["model"], training_model
        else:
            self._compare_classes(classes_in(checkpoint))
        self._require_floats(checkpoint["model"])
        if not self._resuming:
            self._fit_queries(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        if self._resuming:
            self._refuse_another_model(incompatible)
        if averaged is not None and self.averaged is not None:
            self.averaged.module.load_state_dict(averaged)
            self.averaged.n_averaged.fill_(checkpoint["averaged_steps"])
        return incompatible

    def _refuse_another_model(self, incompatible: Any) -> None:
        """A training goes on with the whole of its model or not at all."""
        report = report_weights(
            self.model,
            incompatible.missing_keys,
            incompatible.unexpected_keys,
            incompatible.incorrect_shapes,
        )
        if report.missing or report.unexpected or report.wrong_shapes:
            raise WeightsError(
                f"--resume: the checkpoint is of another model: {report}\nSet the keys of the "
                "model back to what they were, or start a new training from its weights: without "
                "--resume, with MODEL.WEIGHTS and another OUTPUT_DIR"
            )

    def _require_floats(self, weights: dict[str, Any]) -> None:
        """
        Raises:
            WeightsError: whole numbers would be taken for floats, as those of quantised models.
        """
        floats = {n for n, tensor in self.model.state_dict().items() if tensor.is_floating_point()}
        whole = [n for n in weights if n in floats and not _is_floating_point(weights[n])]
        if whole:
            raise WeightsError(
                f"{self._source} has whole numbers ({weights[whole[0]].dtype}) for {len(whole)} "
                f"tensors that are floats in the model, {listed(whole, _LISTED)}: it may be "
                "quantised, give the weights that it was made from"
            )

    def _fit_queries(self, weights: dict[str, Any]) -> None:
        """Take as many learned queries as the model has; where it has more, the others start anew.

        Copies of the file's queries instead would be decoded alike and find the same instances.
        """
        said = False
        for name, ours in self.model.state_dict().items():
            theirs = weights.get(name) if name in _QUERIES else None
            if theirs is None or theirs.shape[1:] != ours.shape[1:] or len(theirs) == len(ours):
                continue
            count = min(len(theirs), len(ours))
            weights[name] = ours.clone()
            weights[name][:count] = torch.as_tensor(theirs[:count])
            if not said:
                said = True
                logger.log(
                    logging.INFO if count == len(ours) else logging.WARNING,
                    "the weights have %d queries, the configuration asks for %d: %s",
                    len(theirs),
                    len(ours),
                    f"the first {count} are taken"
                    if count == len(ours)
                    else f"{count} are taken, the others start anew",
                )

    def _compare_classes(self, theirs: dict[str, list] | None) -> None:
        """Say what becomes of the class layers of weights for other classes."""
        if not theirs or not self.classes or theirs["names"] == self.classes["names"]:
            return
        same_number = len(theirs["names"]) == len(self.classes["names"])
        logger.warning(
            "the weights are for the classes %s, the data have %s: %s",
            listed(theirs["names"], _LISTED),
            listed(self.classes["names"], _LISTED),
            "their class layers are used all the same, in this order"
            if same_number
            else "their class layers do not fit and start anew",
        )

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        report = report_weights(
            self.model,
            incompatible.missing_keys,
            incompatible.unexpected_keys,
            incompatible.incorrect_shapes,
        )
        complete = not (report.missing or report.unexpected or report.wrong_shapes)
        logger.log(logging.INFO if complete else logging.WARNING, "Weights: %s", report)
        weights = self.model.state_dict().items()
        broken = [name for name, tensor in weights if not tensor.isfinite().all()]
        if broken:
            logger.warning(
                "%s: numbers that are not finite in %d tensors, %s: what the model computes with "
                "them is of no use",
                self._source,
                len(broken),
                listed(broken, _LISTED),
            )
        # Left as initialised, a dictionary would decode another one's embeddings.
        others = [s for s in report.wrong_shapes if s[0].endswith(_DICTIONARY)]
        if others and self.min_matched > 0:
            _, theirs, ours = others[0]
            raise WeightsError(
                f"the weights have a mask dictionary of {_described(theirs)}, the configuration "
                f"asks for one of {_described(ours)}: set MODEL.ISTR.EMBEDDING_DIM {theirs[0]} and "
                f"MODEL.ISTR.MASK_SIZE {math.isqrt(theirs[1])}, or, to train the mask branch "
                "anew, MODEL.WEIGHTS_MIN_MATCHED 0"
            )
        if report.share < self.min_matched:
            raise WeightsError(
                f"the weights do not fit the model: {report}\n"
                f"Only {report.share:.0%} are matched, MODEL.WEIGHTS_MIN_MATCHED asks for "
                f"{self.min_matched:.0%}. {_remedy(report)}"
            )


def classes_in(checkpoint: dict[str, Any]) -> dict[str, list] | None:
    """``names`` and ``ids`` of the classes, if a checkpoint says them as ours do."""
    classes = checkpoint.get("classes")
    if not isinstance(classes, dict):
        return None
    names, ids = classes.get("names"), classes.get("ids")
    lists = isinstance(names, list) and isinstance(ids, list) and len(names) == len(ids)
    if not lists or not all(isinstance(name, str) for name in names):
        return None
    return classes if all(isinstance(number, int) for number in ids) else None


def _is_floating_point(weight: torch.Tensor | np.ndarray) -> bool:
    if isinstance(weight, np.ndarray):
        return weight.dtype.kind == "f"
    return weight.is_floating_point()


def open_last_checkpoint(
    folder: str, *, to_train: bool = True
) -> tuple[str, dict[str, Any]] | None:
    """What ``--resume`` continues: the path, and the content, whose tensors stay on the disk.

    Args:
        to_train: else its model is enough, for an evaluation.

    Returns:
        None if there is no training in the folder.

    Raises:
        WeightsError: the checkpoint is gone or damaged, or no training can go on from it; the
            message names the newest from which one can.
    """
    tag = os.path.join(folder, LAST)
    name = ""
    if os.path.isfile(tag):
        with open(tag, encoding="utf-8", errors="replace") as file:
            name = file.read().strip()
    elif not any(_checkpoints(folder)):
        return None
    path, weights = os.path.join(folder, name), ""
    if not name:
        problem = f"{tag}, which names the checkpoint to continue from, is missing or empty"
    elif not os.path.isfile(path):
        problem = f"{path}, the last checkpoint, is gone"
    elif (contents := _whole(path)) is None:
        problem = f"{path}, the last checkpoint, {_fault(path)}"
    elif to_train and not _can_go_on(contents):
        problem, weights = f"{path}, the last checkpoint, holds no training that could go on", path
    else:
        return path, contents
    raise WeightsError(f"--resume: {problem}: {_way_on(folder, weights)}")


def _can_go_on(contents: dict[str, Any]) -> bool:
    """Whether there is all that a training needs, as this project's trainer writes it."""
    trainer = _table(contents.get("trainer"))
    steps = _table(trainer.get("_trainer"))
    moments = _table(steps.get("optimizer")).get("state")
    counts = [trainer.get("iteration"), trainer.get("images"), steps.get("iteration")]
    counts += [contents.get("averaged_steps")] * ("training_model" in contents)
    random_states = trainer.get("random_states")
    return (
        isinstance(moments, dict)
        and isinstance(random_states, list)
        and isinstance(trainer.get("hooks", {}), dict)
        and all(isinstance(table, dict) for table in (*moments.values(), *random_states))
        and all(isinstance(count, int) and count >= 0 for count in counts)
    )


def _table(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _checkpoints(folder: str) -> Iterator[str]:
    """Paths of the files that may continue a training, the newest first."""
    paths = [p for p in Path(folder).glob("model_*.pth") if p.name != BEST]
    yield from map(str, sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True))


def _whole(path: str) -> dict[str, Any] | None:
    """The content of a checkpoint, whose tensors stay on the disk; None if it is damaged."""
    try:
        return read_checkpoint(path, mmap=True)
    except WeightsError:
        return None


def _fault(path: str) -> str:
    """Why a checkpoint is not whole."""
    try:
        read_checkpoint(path, mmap=True)
    except WeightsError as error:
        if "Python objects" in str(error):
            return f"cannot be used: {error}"
    return "is damaged, perhaps truncated"


def _way_on(folder: str, weights: str = "") -> str:
    """How to go on where the last checkpoint cannot be used, except perhaps its weights."""
    for path in _checkpoints(folder):
        contents = _whole(path)
        if contents and _can_go_on(contents):
            name, tag = os.path.basename(path), os.path.join(folder, LAST)
            done = contents["trainer"]["iteration"] + 1
            return (
                f"the newest whole one is {path}, after {done} iterations; to go on from it, "
                f"make it the last one by `echo {name} > {tag}`, and start again"
            )
    best = os.path.join(folder, BEST)
    if weights:
        return (
            "start a new training from its weights: without --resume, with MODEL.WEIGHTS "
            f"{weights} and another OUTPUT_DIR"
        )
    if os.path.isfile(best) and _whole(best):
        return (
            f"no other checkpoint is whole, but {best} has the best weights: start a new training "
            f"from them, without --resume, with MODEL.WEIGHTS {best} and another OUTPUT_DIR"
        )
    return "no other checkpoint is whole: start anew, without --resume"


def compare_classes(
    path: str, theirs: dict[str, list] | None, ours: dict[str, list] | None
) -> None:
    """
    Raises:
        WeightsError: the classes of a checkpoint to be continued are not those of the data, or
            stand in another order, which would give every class another one's name.
    """
    if not theirs or not ours or theirs["names"] == ours["names"]:
        return
    before, now = theirs["names"], ours["names"]
    if sorted(before) == sorted(now):
        remedy = "number the categories of the annotation files as they were then"
    else:
        remedy = "resume with the data set of then"
    raise WeightsError(
        f"--resume: {path} has been trained on the classes {listed(before, _LISTED)}, and the "
        f"data have now {listed(now, _LISTED)}, so that predictions would get wrong names: "
        f"{remedy}, or start a new training from its weights: without --resume, with "
        "MODEL.WEIGHTS and another OUTPUT_DIR"
    )


def _remedy(report: WeightsReport) -> str:
    source = detect(report.unexpected)
    if source is None:
        return (
            "Check MODEL.WEIGHTS and the architecture's keys, or set MODEL.WEIGHTS_MIN_MATCHED to 0"
        )
    return (
        f"The file has other names than this project's ({SOURCES[source].title}): "
        "isda convert weights converts it"
    )


def _described(components: tuple[int, int]) -> str:
    dim, pixels = components
    side = math.isqrt(pixels)
    return f"{dim} components for {side}×{side} masks"
