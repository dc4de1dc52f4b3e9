"""Reading the folder that a training leaves behind, complete or not."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from isda.config import present_names
from isda.data.changes import Changes
from isda.data.cleaning import clean_annotations
from isda.data.coco_json import read_coco_json
from isda.data.errors import DatasetError
from isda.data.images import ImageOptions
from isda.engine.environment import read_environment
from isda.engine.evaluation import PREDICTIONS
from isda.engine.hooks import BEST_PREFIX
from isda.report.scores import without_masks
from isda.visualization import read_metrics

__all__ = ["DataSet", "LoggedWarning", "TestResult", "Training", "flatten"]

_LOG_LINE = re.compile(r"\[(\d\d/\d\d \d\d:\d\d:\d\d)\] (\S+) ([A-Z]+): (.*)")
_TROUBLE = ("WARNING", "ERROR", "CRITICAL")


@dataclass(frozen=True)
class LoggedWarning:
    """A message of the log, once for all times that it was written."""

    level: str
    source: str
    message: str
    count: int


@dataclass(frozen=True)
class DataSet:
    """A data set in COCO's format as it was trained or evaluated on."""

    name: str
    content: Mapping  # images, annotations, categories
    image_root: Path

    @property
    def instances(self) -> list[dict]:
        """All annotations but crowds."""
        return [a for a in self.content["annotations"] if not a.get("iscrowd", 0)]

    @property
    def class_names(self) -> dict[int, str]:
        """By category id, in the order of the ids."""
        categories = sorted(self.content["categories"], key=lambda category: category["id"])
        return {category["id"]: category["name"] for category in categories}


@dataclass(frozen=True)
class TestResult:
    """The predictions of an evaluation on a data set, and what they should have been."""

    __test__ = False  # no test case, whatever pytest thinks of the name

    data: DataSet
    predictions: list[dict]
    has_masks: bool
    of_best: bool  # of the best evaluation, whose weights are model_best.pth; else of the last

    @property
    def tasks(self) -> tuple[str, ...]:
        """What can be evaluated, the main task first."""
        return ("segm", "bbox") if self.has_masks else ("bbox",)

    def with_masks(self) -> tuple[Mapping, list[dict]]:
        """Annotations and predictions that have a ``segmentation``: where need be, their box."""
        if self.has_masks:
            return self.data.content, self.predictions
        annotations = without_masks(self.data.content["annotations"])
        return {**self.data.content, "annotations": annotations}, without_masks(self.predictions)


class Training:
    """What a training has left in its OUTPUT_DIR."""

    def __init__(self, folder: str | os.PathLike):
        """
        Raises:
            FileNotFoundError: there is no metrics.json.
            ValueError: it holds no record.
        """
        self.folder = Path(folder)
        self.records = read_metrics(self.folder / "metrics.json")
        self.environment = read_environment(self.folder)
        self.config = _read_config(self.folder / "config.yaml")
        self.log = _read_log(self.folder / "log.txt")
        self._data: dict[str, DataSet] = {}

    @property
    def sessions(self) -> list[dict]:
        """Of each process that took part; empty for trainings older than environment.json."""
        return self.environment.get("sessions", [])

    @property
    def iterations(self) -> int:
        """Done so far, as far as metrics.json knows."""
        steps = [r["iteration"] + 1 for r in self.records if "total_loss" in r]
        # An evaluation at the end counts one more than the last step.
        return max(steps, default=self.records[-1]["iteration"])

    @property
    def planned(self) -> int | None:
        """SOLVER.MAX_ITER; None where it is not known."""
        return self.config.get("SOLVER.MAX_ITER")

    @property
    def state(self) -> str:
        """ "finished", "stopped early" as SOLVER.EARLY_STOP wants it, or "unfinished"."""
        last = self.folder / "last_checkpoint"
        ended = last.is_file() and last.read_text(encoding="utf-8").strip() == "model_final.pth"
        if self.iterations >= (self.planned or math.inf):
            return "finished"
        if not ended:
            return "unfinished"
        return "stopped early" if self.planned else "finished"

    @property
    def seconds(self) -> float | None:
        """Of all sessions together; None if one of them did not live to tell."""
        durations = [session.get("seconds") for session in self.sessions]
        return sum(durations) if durations and None not in durations else None

    def names(self, use: str) -> list[str]:
        """Of the data sets for "train" or "test"."""
        recorded = [source["name"] for source in self.environment.get("data", {}).get(use, [])]
        return recorded or list(self.config.get(f"DATASETS.{use.upper()}", []))

    @property
    def image_options(self) -> ImageOptions:
        """How its images were read."""
        return ImageOptions.of_keys(self.config)

    def metric(self, key: str, test_set: str | None = None) -> list[tuple[int, float]]:
        """Iterations and finite values, such as of "segm/AP" on a test set, or of "lr"."""
        if test_set is not None and len(self.names("test")) > 1:
            key = f"{test_set}/{key}"
        pairs = [(r["iteration"], r[key]) for r in self.records if key in r]
        return [(iteration, value) for iteration, value in pairs if math.isfinite(value)]

    def data(self, name: str) -> DataSet:
        """A data set, read at the first call.

        Raises:
            DatasetError: its annotations are not there, or not in COCO's format.
        """
        if name not in self._data:
            json_file, image_root = self._files(name)
            content = read_coco_json(json_file, needs_annotations=False)
            cleaned = clean_annotations(content, json_file, Changes())
            self._data[name] = DataSet(name, {**content, "annotations": cleaned}, Path(image_root))
        return self._data[name]

    def _files(self, name: str) -> tuple[str, str]:
        recorded = self.environment.get("data", {})
        for source in (*recorded.get("test", []), *recorded.get("train", [])):
            if source["name"] == name and os.path.isfile(source.get("json_file", "")):
                return source["json_file"], source["image_root"]
        if name not in DatasetCatalog:
            raise DatasetError(
                f"data set '{name}': its annotation file is not where it was during the training"
            )
        metadata = MetadataCatalog.get(name)
        if metadata.get("json_file") is None or metadata.get("evaluator_type", "coco") != "coco":
            raise DatasetError(f"data set '{name}' is not in COCO's format")
        return metadata.json_file, metadata.image_root

    def result(self, name: str) -> TestResult:
        """Predictions of the best evaluation on a test set, or of the last one.

        Raises:
            DatasetError: the data set cannot be read.
            OSError, ValueError: there is no file of results, or it is not one.
        """
        folder = self.folder / "inference"
        folder = folder / name if len(self.names("test")) > 1 else folder
        best_file, last_file = folder / (BEST_PREFIX + PREDICTIONS), folder / PREDICTIONS
        path = best_file if best_file.is_file() else last_file
        if not path.is_file():
            raise FileNotFoundError(
                f"there are no predictions: {path.relative_to(self.folder)} is missing"
            )
        predictions = json.loads(path.read_text(encoding="utf-8"))
        if not predictions:
            raise ValueError("the model predicted nothing when it was evaluated")
        if not isinstance(predictions, list) or not isinstance(predictions[0], dict):
            raise ValueError(f"{path.name} is not a list of predictions in COCO's format")
        has_masks = all("segmentation" in prediction for prediction in predictions)
        return TestResult(self.data(name), predictions, has_masks, path == best_file)

    def warnings(self) -> list[LoggedWarning]:
        """What the log warns of, in the order of the first times."""
        since = datetime.min
        if self.sessions:
            started = datetime.fromisoformat(self.sessions[0]["started"])
            since = started.replace(tzinfo=None) - timedelta(minutes=1)
        found: dict[tuple[str, str, str], int] = {}
        for time, source, level, message in self.log:
            if level in _TROUBLE and (not self.sessions or _dated(time, since) >= since):
                key = level, source, message
                found[key] = found.get(key, 0) + 1
        return [LoggedWarning(*key, count) for key, count in found.items()]


def _read_config(path: Path) -> dict:
    """Flat, ``{"SOLVER.MAX_ITER": 1000}``; empty where there is none."""
    if not path.is_file():
        return {}
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return present_names(flatten(content)) if isinstance(content, dict) else {}


def flatten(nested: Mapping, prefix: str = "") -> dict:
    """Values by their full key; tuples as lists, so that they compare equal with YAML's."""
    flat = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _listed(value)
    return flat


def _listed(value: object) -> object:
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value


def _read_log(path: Path) -> list[tuple[str, str, str, str]]:
    """Time, logger, level and message; lines that continue a message are joined to it."""
    if not path.is_file():
        return []
    lines: list[list[str]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        match = _LOG_LINE.match(line)
        if match:
            lines.append(list(match.groups()))
        elif lines and lines[-1][2] in _TROUBLE:
            lines[-1][3] += "\n" + line
    return [tuple(line) for line in lines]


def _dated(time: str, since: datetime) -> datetime:
    """A time of the log, which does not state the year."""
    # A leap year, for the 29th of February.
    dated = datetime.strptime(f"2000/{time}", "%Y/%m/%d %H:%M:%S")
    candidates = []
    for year in (since.year, since.year + 1):
        try:
            candidates.append(dated.replace(year=year))
        except ValueError:  # no 29th of February in that year
            continue
    return min(candidates, key=lambda candidate: abs(candidate - since))


def best(values: Iterable[tuple[int, float]]) -> tuple[int, float] | None:
    """The highest value and its iteration, the first among equals; None if there is none."""
    pairs: Sequence[tuple[int, float]] = list(values)
    return max(pairs, key=lambda pair: (pair[1], -pair[0])) if pairs else None
