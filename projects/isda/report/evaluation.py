"""The chapters on the last evaluation: figures, curves, errors, best and worst images."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property

from isda.data.errors import ImageError
from isda.data.images import DEFAULT_OPTIONS, ImageOptions
from isda.report.charts import Series, bars, line_chart, shares
from isda.report.image_quality import ImageQuality, best_threshold, image_qualities
from isda.report.markup import Html, details, figure, join, paragraph, section, table, tag
from isda.report.outcomes import OF_INSTANCES, OF_PREDICTIONS, count_outcomes, image_outcomes
from isda.report.pictures import triptych
from isda.report.scores import Scores, calibration
from isda.report.training import TestResult

__all__ = ["Evaluation"]

_TASKS = {"segm": "masks", "bbox": "boxes"}
_SIZES = ("all", "small", "medium", "large")
_MANY_CLASSES = 12


class Evaluation:
    """All figures on one test set, each computed once, and their chapters."""

    def __init__(
        self,
        result: TestResult,
        max_detections: int,
        image_options: ImageOptions = DEFAULT_OPTIONS,
    ):
        """
        Args:
            result: predictions and annotations.
            max_detections: ``TEST.DETECTIONS_PER_IMAGE``.
            image_options: how its images are read.

        Raises:
            ValueError: the predictions are not of these annotations.
        """
        self.result, self.image_options = result, image_options
        content, predictions = result.data.content, result.predictions
        self.scores = {
            task: Scores(content, predictions, task, max_detections) for task in result.tasks
        }
        self.main = self.scores[result.tasks[0]]

    @cached_property
    def threshold(self) -> float:
        """The score with the best quality of the images."""
        return best_threshold(*self.result.with_masks())

    @cached_property
    def outcomes(self) -> dict:
        """By image id."""
        content, predictions = self.result.with_masks()
        return image_outcomes(content, predictions, self.main.detections(), self.threshold)

    @cached_property
    def qualities(self) -> list[ImageQuality]:
        """Of all images, best first."""
        return image_qualities(*self.result.with_masks(), self.threshold)

    def chapters(self, num_images: int, suffix: str) -> list[Html]:
        """Results, errors and images.

        Args:
            num_images: of the best and of the worst each.
            suffix: of titles and anchors, where there are several test sets.
        """
        return [self._results(suffix), self._errors(suffix), *self._images(num_images, suffix)]

    def _results(self, suffix: str) -> Html:
        charts = [self._precision_recall(), self._calibration()]
        parts = [self._by_size(), self._by_class()]
        return section(
            _titled("Results", suffix),
            paragraph(f"Of the {'best' if self.result.of_best else 'last'} evaluation."),
            *(part for part in parts if part is not None),
            tag("div", *(chart for chart in charts if chart is not None), class_="grid"),
            anchor=f"results{suffix}",
        )

    def _by_size(self) -> Html:
        counts = _by_size(self.result)
        tables = []
        for task, scores in self.scores.items():
            limit = scores.max_detections[-1]
            rows = [
                [
                    area,
                    bars(scores.ap(area=area)),
                    _percent(scores.ap(iou=0.5, area=area)),
                    _percent(scores.ap(iou=0.75, area=area)),
                    _percent(scores.ar(area=area)),
                    counts[area],
                ]
                for area in _SIZES
            ]
            titles = [f"By size: {_TASKS[task]}", "AP", "AP50", "AP75", f"AR@{limit}", "instances"]
            tables.append(table(titles, rows, numbers=range(1, 6)))
        few = ", ".join(
            f"AR@{limit} {self.main.ar(max_detections=limit):.1f}"
            for limit in self.main.max_detections[:-1]
        )
        note = (
            "COCO's average precision over IoU from 0.5 to 0.95, at 0.5 and at 0.75, of the best "
            f"{self.main.max_detections[-1]} detections of each image and class, and average "
            f"recall with that many, in percent. Of {_TASKS[self.main.task]} "
            f"with fewer detections: {few}. Small are instances below 32² pixels, large ones above "
            "96²."
        )
        return join([*tables, paragraph(note, class_="note")])

    def _by_class(self) -> Html | None:
        names = self.result.data.class_names
        if len(names) < 2:
            return None
        counts = dict.fromkeys(names, 0)
        for instance in self.result.data.instances:
            counts[instance["category_id"]] += 1
        rows = [
            [
                name,
                *(bars(scores.ap(category=i)) for scores in self.scores.values()),
                _percent(self.main.ap(iou=0.5, category=i)),
                _percent(self.main.ar(category=i)),
                counts[i],
            ]
            for i, name in sorted(names.items(), key=lambda item: -_or_zero(self._class_ap(item)))
        ]
        columns = [f"AP of {_TASKS[task]}" for task in self.scores]
        titles = ["By class", *columns, "AP50", "AR", "instances"]
        found = table(titles, rows, numbers=range(1, len(titles)))
        if len(rows) <= _MANY_CLASSES:
            return found
        return details(f"By class: all {len(rows)}, the best first", found)

    def _class_ap(self, item: tuple[int, str]) -> float:
        return self.main.ap(category=item[0])

    def _precision_recall(self) -> Html | None:
        series = []
        for color, iou in enumerate((0.5, 0.75, 0.9), start=1):
            recall, precision = self.main.curve(iou)
            if len(recall):
                series.append(Series(f"IoU {iou:g}", recall.tolist(), precision.tolist(), color))
        if not series:
            return None
        chart = line_chart(
            series, x_label="recall", y_label="precision", x_range=(0, 1), y_range=(0, 1)
        )
        return figure("Precision and recall", chart, "The mean of all classes.")

    def _calibration(self) -> Html | None:
        detections = self.main.detections()
        if not detections:
            return None
        rows, error = calibration(detections)
        scores, right, counts = zip(*rows)
        ideal = Series("if scores were probabilities", [0, 1], [0, 1], 8, dashed=True)
        chart = line_chart(
            [Series("predictions", scores, right, 1, marked=True), ideal],
            x_label="score",
            y_label="share that is right",
            x_range=(0, 1),
            y_range=(0, 1),
        )
        most = max(range(len(counts)), key=lambda index: counts[index])
        note = (
            f"Of the predictions with a score around x, the share with IoU ≥ 0.5. Expected "
            f"calibration error {error:.3f}; {counts[most] / sum(counts):.0%} of the "
            f"{sum(counts)} predictions have a score around {scores[most]:.2f}."
        )
        return figure("What a score means", chart, note)

    def _errors(self, suffix: str) -> Html:
        instances, predictions = count_outcomes(self.outcomes)
        return section(
            _titled("Errors", suffix),
            paragraph(
                f"With a score threshold of {self.threshold:g}, which gives the best masks on "
                "these images: a good value for ",
                tag("code", "--confidence-threshold"),
                ".",
            ),
            tag("h3", f"{instances.total()} annotated instances"),
            shares([(kind, instances[kind], kind) for kind in OF_INSTANCES]),
            tag("h3", f"{predictions.total()} predictions"),
            shares([(kind, predictions[kind], kind) for kind in OF_PREDICTIONS]),
            details(
                "What the words mean",
                paragraph("An annotated instance is of the first kind that fits it:"),
                _definitions(OF_INSTANCES),
                paragraph("and so is a prediction:"),
                _definitions(OF_PREDICTIONS),
            ),
            anchor=f"errors{suffix}",
        )

    def _images(self, count: int, suffix: str) -> list[Html]:
        annotated = [quality for quality in self.qualities if quality.annotated]
        count = min(count, len(annotated) // 2 or len(annotated))
        if count == 0:
            return []
        worst = annotated[: len(annotated) - count - 1 : -1]
        mean = sum(quality.quality for quality in self.qualities) / len(self.qualities)
        text = (
            "Quality is twice the summed IoU of paired masks over the number of annotated and "
            f"predicted instances; its mean over the {len(self.qualities)} images is {mean:.2f}. "
            "Colors are those of the errors above."
        )
        parts = [tag("h3", "Worst"), *self._pictures(worst, f"worst{suffix}")]
        if len(annotated) > 1:
            parts += [tag("h3", "Best"), *self._pictures(annotated[:count], f"best{suffix}")]
        title = _titled("Worst and best images", suffix)
        return [section(title, paragraph(text), *parts, anchor=f"images{suffix}")]

    def _pictures(self, qualities: Sequence[ImageQuality], anchor: str) -> list[Html]:
        images = {image["id"]: image for image in self.result.data.content["images"]}
        return [
            self._picture(quality, images[quality.image_id], f"{anchor}-{index}")
            for index, quality in enumerate(qualities)
        ]

    def _picture(self, quality: ImageQuality, image: Mapping, anchor: str) -> Html:
        content, predictions = self.result.with_masks()
        outcome = self.outcomes[quality.image_id]
        annotations = [a for a in content["annotations"] if a["image_id"] == quality.image_id]
        path = os.path.join(self.result.data.image_root, image["file_name"])
        names = self.result.data.class_names
        try:
            panels = triptych(
                path, annotations, predictions, outcome, names, anchor, self.image_options
            )
        except ImageError as error:
            panels = paragraph(str(error), class_="note")
        title = tag("h4", tag("code", image["file_name"]), f" quality {quality.quality:.2f}")
        return tag("article", title, panels)


def _by_size(result: TestResult) -> dict[str, int]:
    areas = [instance["area"] for instance in result.data.instances]
    small, large = 32**2, 96**2
    return {
        "all": len(areas),
        "small": sum(area < small for area in areas),
        "medium": sum(small <= area < large for area in areas),
        "large": sum(area >= large for area in areas),
    }


def _titled(title: str, suffix: str) -> str:
    return f"{title}: {suffix.removeprefix('-')}" if suffix else title


def _definitions(kinds: Mapping[str, str]) -> Html:
    items = [
        item
        for kind, meaning in kinds.items()
        for item in (tag("dt", tag("span", class_=f"key {kind}"), kind), tag("dd", meaning))
    ]
    return tag("dl", *items)


def _percent(value: float) -> str:
    return f"{value:.1f}" if value == value else "–"


def _or_zero(value: float) -> float:
    return value if value == value else 0.0
