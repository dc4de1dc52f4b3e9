"""The page: chapters in order, style sheet inside, written to one file."""

import logging
import os
import re
from importlib.resources import files
from pathlib import Path

from isda.files import write_text
from isda.report import sections
from isda.report.evaluation import Evaluation
from isda.report.markup import Html, join, tag
from isda.report.training import Training, best

__all__ = ["FILE_NAME", "write_report"]

logger = logging.getLogger(__name__)

FILE_NAME = "report.html"
_TOLERANCE = 0.05  # percent of AP by which the metrics and the predictions may differ
_TITLE = re.compile(r"<section id=\"([^\"]+)\"><h2>(.*?)</h2>")


def write_report(
    output_dir: str | os.PathLike,
    output: str | os.PathLike | None = None,
    *,
    num_images: int = 4,
) -> Path:
    """Writes what a training did and how good its model is as a page of HTML.

    Everything is inside the one file: figures, pictures, styles. What a training did not leave
    behind, because it was not evaluated or was interrupted, is named in the page and left out. The
    chapters on results are about the predictions in ``inference``, of the best evaluation where
    they were kept, else of the last; on large data sets they take as long as COCO's evaluation.

    Args:
        output_dir: of the training, finished or not.
        output: of the page; None is ``report.html`` in ``output_dir``.
        num_images: how many of the best and of the worst images are shown, at least 0.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: there is no metrics.json.
        OSError: the page cannot be written.
        ValueError: metrics.json holds no record, or ``num_images`` is below 0.
    """
    if num_images < 0:
        raise ValueError(f"num_images must be at least 0, got {num_images}")
    training = Training(output_dir)
    path = Path(output) if output else training.folder / FILE_NAME
    page = _page(training, num_images)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def _page(training: Training, num_images: int) -> str:
    title = training.folder.resolve().name
    data, notes = sections.data(training)
    evaluated = []
    for name in training.names("test"):
        chapters, lacking = _evaluation(training, name, num_images)
        evaluated += chapters
        notes += lacking
    chapters = [
        sections.course(training),
        *evaluated,
        data,
        sections.configuration(training),
        sections.machine(training),
    ]
    notes = [*_state(training), *dict.fromkeys(notes)]
    body = join([sections.troubles(training, notes), *chapters])
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title}: training report"),
        tag("style", Html(files("isda.report").joinpath("style.css").read_text("utf-8"))),
    )
    content = tag("body", sections.header(training, title), _contents(body), tag("main", body))
    return "<!DOCTYPE html>\n" + tag("html", head, content, lang="en") + "\n"


def _contents(body: Html) -> Html:
    """Links to the chapters."""
    links = [tag("a", Html(title), href=f"#{anchor}") for anchor, title in _TITLE.findall(body)]
    return tag("nav", *links)


def _state(training: Training) -> list[str]:
    """How far the training came, where that is not to its end, and what is not recorded."""
    notes = []
    if training.state == "unfinished":
        planned = f" of {training.planned}" if training.planned else ""
        notes.append(
            f"the training is unfinished: {training.iterations}{planned} iterations are done, and "
            "isda train --resume continues it"
        )
    if not training.sessions:
        notes.append(
            "there is no environment.json, so machine, versions and duration are not known: the "
            "training is older than this file"
        )
    return notes


def _evaluation(
    training: Training, name: str, num_images: int
) -> tuple[list[Html], list[str | Html]]:
    """The chapters on a test set, and what is missing or doubtful."""
    several = len(training.names("test")) > 1
    recorded = training.metric("segm/AP", name) or training.metric("bbox/AP", name)
    limit = training.config.get("TEST.DETECTIONS_PER_IMAGE", 100)
    try:
        result = training.result(name)
        evaluation = Evaluation(result, limit, training.image_options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not recorded and isinstance(error, FileNotFoundError):
            return [], [f"{name} was not evaluated, so there are no results"]
        reason = f"{error}" if isinstance(error, OSError | ValueError) else repr(error)
        return [], [f"no results on {name}: {reason}"]
    suffix = "-" + re.sub(r"[^\w.-]", "_", name) if several else ""
    notes = _doubts(training, evaluation, name)
    return evaluation.chapters(num_images, suffix), notes


def _doubts(training: Training, evaluation: Evaluation, name: str) -> list[str]:
    """Where predictions and metrics are not of the same moment."""
    recorded = training.metric(f"{evaluation.main.task}/AP", name)
    if not recorded:
        return []
    ap, top, last = evaluation.main.ap(), best(recorded), recorded[-1]
    kind, (iteration, expected) = ("best", top) if evaluation.result.of_best else ("last", last)
    if abs(ap - expected) > _TOLERANCE:
        return [
            f"the predictions on {name} are not those of the {kind} evaluation in metrics.json: "
            f"they have AP {ap:.1f}, and {expected:.1f} was recorded at iteration {iteration}"
        ]
    if kind == "last" and top[1] - expected > _TOLERANCE:
        return [
            f"results, errors and images on {name} are of the last weights, with AP "
            f"{expected:.1f}; the best ones, of iteration {top[0]} and with {top[1]:.1f}, are in "
            "model_best.pth"
        ]
    return []
