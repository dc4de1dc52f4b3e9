"""The page of ``isda check``: what a data set holds, in pictures and distributions."""

import base64
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np

from isda.data.analysis import (
    ERROR,
    NOTE,
    WARNING,
    Analysis,
    ImageRecord,
    SplitAnalysis,
    Summary,
    recommended_settings,
    summarise,
)
from isda.data.errors import ImageError
from isda.data.images import ImageOptions, read_image
from isda.files import write_text
from isda.report.charts import Series, line_chart
from isda.report.markup import Html, figure, listing, paragraph, section, table, tag
from isda.visualization import brighten, draw_annotations

__all__ = ["write_analysis"]

_LONGEST_SIDE = 640  # pixels of a picture
_JPEG_QUALITY = 80
_PICTURES = 4  # of a kind
_MAX_CLASSES = 30
_MAX_BINS = 24
_MARK_COLOR = 8  # grey
_MAX_LABELS = 40  # instances, beyond which their names would cover the picture
_TITLES = {ERROR: "Errors", WARNING: "Warnings", NOTE: "Notes"}


def write_analysis(
    analysis: Analysis,
    output: str | os.PathLike,
    data: str | os.PathLike,
    settings: Mapping[str, object] | None = None,
    ceiling: str = "",
) -> Path:
    """Writes everything into one file of HTML that opens without a server.

    Args:
        analysis: of :func:`isda.data.analysis.examine`.
        output: path of the page; its folder is made where it is not there.
        data: path of the data set, for the title.
        settings: as :func:`isda.data.analysis.recommended_settings` returns them, where they are
            computed already.
        ceiling: a sentence on what a perfect model could reach.

    Returns:
        The page's path.

    Raises:
        OSError: the page cannot be written.
    """
    summaries = {split.name: summarise(split) for split in analysis.splits}
    chapters = [_findings(analysis)]
    if any(split.images for split in analysis.splits):
        chapters += [
            _splits(analysis.splits, summaries),
            _distributions(summaries),
            _classes(summaries),
            _settings(settings or recommended_settings(analysis.splits), ceiling),
            *(_pictures(split, analysis) for split in analysis.splits if split.images),
        ]
    page = _page(Path(data).resolve().name, _header(analysis, summaries, data), chapters)
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def _page(title: str, header: Html, chapters: Sequence[Html]) -> str:
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title}: data set"),
        tag("style", Html(files("isda.report").joinpath("style.css").read_text("utf-8"))),
    )
    body = tag("body", header, tag("main", *chapters))
    return "<!DOCTYPE html>\n" + tag("html", head, body, lang="en") + "\n"


def _header(analysis: Analysis, summaries: dict[str, Summary], data: str | os.PathLike) -> Html:
    """Title, verdict, and the figures that one looks for first."""
    state, style = ("will train", "finished") if analysis.will_train else ("will not", "unfinished")
    total = sum(len(s.areas) for s in summaries.values())
    touching = sum(s.num_touching for s in summaries.values())
    deleted = sum(s.deleted[0.5] for s in summaries.values())
    cards = [
        ("Images", f"{sum(s.num_images for s in summaries.values()):,}"),
        ("Instances", f"{total:,}"),
        (
            "Most in an image",
            max((s.instances.max(initial=0) for s in summaries.values()), default=0),
        ),
        ("Touch another instance", f"{touching / max(total, 1):.0%}"),
        ("Deleted by NMS at 0.5", f"{deleted:,}"),
    ]
    shown = [
        tag(
            "div",
            tag("span", name, class_="title"),
            tag("span", value, class_="value"),
            class_="card",
        )
        for name, value in cards
    ]
    return tag(
        "header",
        paragraph("Data set", class_="kicker"),
        tag("h1", Path(data).resolve().name, " ", tag("span", state, class_=f"badge {style}")),
        paragraph(os.fspath(data), class_="subtitle"),
        tag("div", *shown, class_="cards"),
    )


def _findings(analysis: Analysis) -> Html:
    parts = []
    for level, title in _TITLES.items():
        texts = [
            f"{finding.split}: {finding.text}" if finding.split else finding.text
            for finding in analysis.findings
            if finding.level == level
        ]
        if texts:
            parts += [tag("h3", title), listing(texts)]
    return section("Findings", *(parts or [paragraph("Nothing is wrong.")]), anchor="findings")


def _splits(splits: Sequence[SplitAnalysis], summaries: dict[str, Summary]) -> Html:
    rows = {
        "Images": lambda s: f"{s.num_images:,}",
        "Images without instances": lambda s: f"{s.num_empty:,}",
        "Widths": lambda s: _range(s.widths),
        "Heights": lambda s: _range(s.heights),
        "Instances": lambda s: f"{len(s.areas):,}",
        "Crowds": lambda s: f"{s.num_crowds:,}",
        "Instances per image, median and most": lambda s: (
            f"{np.median(s.instances):g}, {s.instances.max()}" if len(s.instances) else "–"
        ),
        **{
            f"{name.capitalize()} (COCO's bounds)": lambda s, name=name: _share(s.by_area[name], s)
            for name in ("small", "medium", "large")
        },
        "Touch another instance": lambda s: _share(s.num_touching, s),
        "Share pixels with one": lambda s: _share(s.num_overlapping, s),
        "IoU of boxes that meet": lambda s: f"{s.mean_box_iou:.2f}",
        "IoU of their masks": lambda s: f"{s.mean_mask_iou:.2f}",
        "True boxes that NMS at 0.5 would delete": lambda s: _share(s.deleted[0.5], s),
        "True boxes that NMS at 0.7 would delete": lambda s: _share(s.deleted[0.7], s),
    }
    cells = [
        [title, *(value(summaries[split.name]) for split in splits)]
        for title, value in rows.items()
    ]
    names = [split.name for split in splits]
    return section(
        "What is there",
        table(["", *names], cells, numbers=range(1, len(names) + 1)),
        anchor="splits",
    )


def _range(values: np.ndarray) -> str:
    if not len(values):
        return "–"
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _share(count: int, summary: Summary) -> str:
    total = len(summary.areas)
    return f"{count:,} ({count / total:.1%})" if total else "–"


def _distributions(summaries: Mapping[str, Summary]) -> Html:
    """Of what decides which model and which sizes suit the data."""

    def of(values) -> dict[str, np.ndarray]:
        return {name: values(summary) for name, summary in summaries.items()}

    charts = [
        figure(
            "Instances per image",
            _histogram(of(lambda s: s.instances), "instances", "images"),
        ),
        figure(
            "Size of the instances",
            _histogram(
                of(lambda s: np.sqrt(s.areas)),
                "square root of the area, pixels",
                "instances",
                {"medium from 32": 32.0, "large from 96": 96.0},
            ),
        ),
        figure(
            "Shorter side of the images",
            _histogram(of(lambda s: np.minimum(s.heights, s.widths)), "pixels", "images"),
        ),
        figure(
            "Nearest neighbour",
            _histogram(
                of(lambda s: s.box_iou),
                "IoU with the nearest of the boxes that it meets",
                "instances",
                {"NMS at 0.5": 0.5, "NMS at 0.7": 0.7},
            ),
            "Right of a line, NMS of this threshold would delete one of two true boxes of a class.",
        ),
    ]
    return section("Distributions", tag("div", *charts, class_="grid"), anchor="distributions")


def _histogram(
    values: Mapping[str, np.ndarray],
    x_label: str,
    y_label: str,
    marks: Mapping[str, float] | None = None,
) -> Html:
    """One stepped line per split, and dashed ones across at ``marks``."""
    marks = marks or {}
    everything = np.concatenate([*values.values()])
    if len(np.unique(everything)) < 2:
        text = f"All have {everything[0]:g}." if len(everything) else "There are none."
        return paragraph(text, class_="note")
    everything = np.concatenate([everything, np.array([*marks.values()])])
    edges = _edges(everything)
    counts = {name: np.histogram(part, edges)[0] for name, part in values.items()}
    steps = [
        Series(name, np.repeat(edges, 2).tolist(), [0, *np.repeat(count, 2).tolist(), 0], color)
        for color, (name, count) in enumerate(counts.items(), start=1)
    ]
    top = max(int(count.max()) for count in counts.values())
    lines = [
        Series(name, [mark, mark], [0, top], _MARK_COLOR, dashed=True)
        for name, mark in marks.items()
    ]
    return line_chart([*steps, *lines], x_label=x_label, y_label=y_label)


def _edges(values: np.ndarray) -> np.ndarray:
    """At most so many bins, and of whole numbers none narrower than 1."""
    low, high = float(values.min()), float(values.max())
    if (values == values.round()).all():
        width = max(np.ceil((high - low + 1) / _MAX_BINS), 1)
        return np.arange(low - 0.5, high + width, width)
    return np.linspace(min(low, 0.0), high, _MAX_BINS + 1)


def _classes(summaries: Mapping[str, Summary]) -> Html:
    totals: dict[str, int] = {}
    for summary in summaries.values():
        for name, count in summary.by_class.items():
            totals[name] = totals.get(name, 0) + count
    names = sorted(totals, key=lambda name: -totals[name])
    highest = max(totals.values(), default=0) or 1
    rows = [
        [
            name,
            *(f"{summary.by_class.get(name, 0):,}" for summary in summaries.values()),
            _bar(totals[name], highest),
        ]
        for name in names[:_MAX_CLASSES]
    ]
    more = f"And {len(names) - _MAX_CLASSES} more." if len(names) > _MAX_CLASSES else None
    return section(
        "Classes",
        table(["", *summaries, "all"], rows, numbers=range(1, len(summaries) + 2)),
        paragraph(more, class_="note") if more else None,
        anchor="classes",
    )


def _bar(count: int, highest: int) -> Html:
    """A number of instances over a bar of its size."""
    drawn = tag("span", tag("i", style=f"width:{count / highest:.1%}"), class_="bar")
    return tag("span", f"{count:,}", drawn, class_="barred")


def _settings(settings: Mapping[str, object], ceiling: str) -> Html:
    rows = [[tag("code", key), tag("code", value)] for key, value in settings.items()]
    return section(
        "Settings that suit these data",
        table(["Key", "Value"], rows),
        paragraph(
            "As KEY VALUE pairs after the flags of isda train. Queries: half as many again as "
            "the fullest image has instances, at least 50; of ISTR it is MODEL.ISTR.NUM_QUERIES. "
            "Sizes: the shorter side of the median image, larger where a tenth of the instances "
            "would vanish. Mask stride: the coarsest at which a perfect model could reach mask AP "
            "75, or at which a finer one gains less than a point.",
            class_="note",
        ),
        paragraph(f"{ceiling[0].upper()}{ceiling[1:]}.") if ceiling else None,
        anchor="settings",
    )


def _pictures(split: SplitAnalysis, analysis: Analysis) -> Html:
    """Images that show what is typical, extreme, and wrong."""
    named = {name for f in analysis.findings if f.split == split.name for name in f.files}
    kinds = {
        "With most instances": sorted(split.images, key=lambda i: -len(i.annotations)),
        "With most contacts": sorted(split.images, key=lambda i: -i.geometry.touching.sum()),
        "With findings": [i for i in split.images if i.file_name in named],
        "Others": split.images[:: max(len(split.images) // _PICTURES, 1)],
    }
    shown: set[str] = set()
    parts = []
    for title, images in kinds.items():
        chosen = [i for i in images if i.file_name not in shown][:_PICTURES]
        options = analysis.image_options
        pictures = [p for image in chosen if (p := _picture(split, image, options)) is not None]
        shown |= {image.file_name for image in chosen}
        if pictures:
            parts += [tag("h3", title), tag("div", *pictures, class_="grid")]
    return section(f"Pictures of {split.name}", *parts, anchor=f"pictures-{split.name}")


def _picture(split: SplitAnalysis, record: ImageRecord, options: ImageOptions) -> Html | None:
    """The image under its annotations; None if it cannot be read, which a finding says."""
    try:
        image = read_image(str(split.image_root / record.file_name), "RGB", options)
    except ImageError:
        return None
    if image.shape[:2] != record.size:
        return None
    indices = {category["id"]: index for index, category in enumerate(split.categories)}
    annotations = [a | {"category_id": indices[a["category_id"]]} for a in record.annotations]
    drawn = draw_annotations(
        brighten(image),
        annotations,
        split.class_names,
        with_labels=len(annotations) <= _MAX_LABELS,
        scale=min(1.0, _LONGEST_SIDE / max(record.size)),
    )
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR), options)
    source = "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
    height, width = record.size
    note = f"{record.file_name}, {width}x{height}, {len(annotations)} instances"
    picture = tag("img", src=source, alt=note, style="width:100%;border-radius:6px")
    return tag("figure", picture, tag("figcaption", note))
