"""The chapters of a report: each returns HTML, or None where there is nothing to tell."""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from isda.report.charts import Series, ceiling, line_chart, number
from isda.report.configuration import config_file, differences
from isda.report.markup import (
    Html,
    details,
    figure,
    join,
    listing,
    paragraph,
    section,
    table,
    tag,
)
from isda.report.training import Training, best
from isda.visualization import training_minutes

__all__ = ["configuration", "course", "data", "header", "machine", "troubles"]

TASKS = {"segm": "Mask AP", "bbox": "Box AP"}
_LAYER = re.compile(r"_\d+$")  # losses of decoder layers before the last
_BESIDE = re.compile(r"_(enc|dn)$")  # of ISDA's proposals and noised queries
_MAX_COLORS = 8


def header(training: Training, title: str) -> Html:
    """Title, state, and the figures that one looks for first."""
    names = training.names("test")
    cards = [card for task in TASKS for card in _ap_cards(training, task, names)]
    cards += _size_cards(training)
    subtitle = [training.config.get("MODEL.META_ARCHITECTURE"), config_file(training)]
    return tag(
        "header",
        paragraph("Training report", class_="kicker"),
        tag("h1", title, " ", tag("span", training.state, class_=f"badge {training.state}")),
        paragraph(" · ".join(part for part in subtitle if part), class_="subtitle"),
        tag("div", *cards, class_="cards"),
    )


def _ap_cards(training: Training, task: str, names: Sequence[str]) -> list[Html]:
    cards = []
    for name in names or [None]:
        values = training.metric(f"{task}/AP", name)
        top = best(values)
        if top is None:
            continue
        iteration, value = top
        where = f" on {name}" if len(names) > 1 else ""
        final = f"{values[-1][1]:.1f}"
        last = "" if final == f"{value:.1f}" else f", {final} at the end"
        note = f"at iteration {iteration}{_epoch(training, iteration)}{last}"
        cards.append(_card(TASKS[task] + where, f"{value:.1f}", note))
    return cards


def _size_cards(training: Training) -> list[Html]:
    done, planned = training.iterations, training.planned
    note = "all that were planned" if planned == done else f"of {planned}" if planned else None
    cards = [_card("Iterations", f"{done}", note)]
    try:
        steps = training_minutes(training.records)[-1] * 60
    except ValueError:
        steps = None
    if training.seconds is not None:
        inside = f"{_duration(steps)} of it in steps" if steps else None
        cards.append(_card("Duration", _duration(training.seconds), inside))
    elif steps:
        cards.append(_card("Time in steps", _duration(steps), "without evaluations"))
    losses = training.metric("total_loss")
    if losses:
        first = f"from {number(losses[0][1])} at the start" if len(losses) > 1 else None
        cards.append(_card("Loss", number(losses[-1][1]), first))
    return cards


def _card(title: str, value: str, note: str | None) -> Html:
    note = tag("span", note, class_="note") if note else None
    return tag(
        "div",
        tag("span", title, class_="title"),
        tag("span", value, class_="value"),
        note,
        class_="card",
    )


def _epoch(training: Training, iteration: int) -> str:
    epochs = training.config.get("SOLVER.EPOCHS")
    if not epochs or not training.planned:
        return ""
    return f", epoch {round(iteration / training.planned * epochs, 1):g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def troubles(training: Training, notes: Sequence[object]) -> Html | None:
    """What is missing from the report, and what the training warned of."""
    warned = [
        join(
            [
                tag("b", f"{w.level.lower()} ", class_="level"),
                w.message,
                tag("span", f" {w.source}" + f", {w.count} times" * (w.count > 1), class_="note"),
            ]
        )
        for w in training.warnings()
    ]
    parts = []
    if notes:
        parts += [tag("h3", "About this report"), listing(notes)]
    if warned:
        parts += [tag("h3", "The training warned"), listing(warned)]
    return section("Notes", *parts, anchor="notes") if parts else None


def course(training: Training) -> Html:
    """Curves of losses, learning rate, gradients, time and AP over the iterations."""
    keys = {key for record in training.records for key in record if key.startswith("loss_")}
    last = sorted(key for key in keys if not _LAYER.search(key))
    beside = [key for key in last if _BESIDE.search(key)][:_MAX_COLORS]
    last = [key for key in last if not _BESIDE.search(key)][:_MAX_COLORS]
    layers = "Of the last decoder layer or step; those before it are trained alike."
    time = {"a step": "time", "waiting for data, of that": "data_time"}
    charts = [
        _ap_chart(training),
        _chart(training, "Loss", {"total_loss": "total_loss"}, "total loss", logarithmic=True),
        _chart(
            training,
            "Parts of the loss",
            {key: key for key in last},
            "loss",
            logarithmic=True,
            note=layers if any(_LAYER.search(key) for key in keys) else None,
        ),
        _chart(
            training,
            "Losses beside those of the layers",
            {key: key for key in beside},
            "loss",
            logarithmic=True,
            note="enc: the boxes that the encoder proposes; dn: noised ground truths.",
        ),
        _chart(training, "Learning rate", {"lr": "lr"}, "highest of all parameters"),
        _chart(training, "Gradients", {"grad_norm": "grad_norm"}, "2-norm", logarithmic=True),
        _chart(training, "Time", time, "seconds"),
    ]
    drawn = [chart for chart in charts if chart is not None]
    return section("Course", tag("div", *drawn, class_="grid"), anchor="course")


def _ap_chart(training: Training) -> Html | None:
    names = training.names("test")
    series = []
    for name in names or [None]:
        for task, title in TASKS.items():
            values = training.metric(f"{task}/AP", name)
            if values and len(series) < _MAX_COLORS:
                highlight = values.index(best(values))
                label = title if len(names) < 2 else f"{title}, {name}"
                color = len(series) + 1
                series.append(Series(label, *zip(*values), color, True, highlight=highlight))
    if not series:
        return None
    highest = max(max(curve.ys) for curve in series)
    chart = line_chart(
        series,
        x_label="iteration",
        y_label="percent",
        x_range=(0, training.iterations),
        y_range=(0, ceiling(highest)),
    )
    return figure("Average precision", chart, "The best value of each is circled.")


def _chart(
    training: Training,
    title: str,
    keys: Mapping[str, str],
    label: str,
    *,
    logarithmic: bool = False,
    note: str | None = None,
) -> Html | None:
    """One figure of the metrics ``{name: key}``."""
    series = []
    for name, key in keys.items():
        values = training.metric(key)
        values = [pair for pair in values if pair[1] > 0 or not logarithmic]
        if values:
            series.append(Series(name, *zip(*values), len(series) + 1))
    if not series:
        return None
    lowest, highest = 0.0, ceiling(max(max(curve.ys) for curve in series))
    chart = line_chart(
        series,
        x_label="iteration",
        y_label=label,
        logarithmic=logarithmic,
        x_range=(0, training.iterations),
        y_range=None if logarithmic else (lowest, highest),
        legend=len(series) > 1,
    )
    return figure(title, chart, note)


def data(training: Training) -> tuple[Html | None, list[str]]:
    """Images, instances and classes of each data set; and what could not be read."""
    rows, classes, notes = [], {}, []
    for use in ("train", "test"):
        for name in training.names(use):
            try:
                found = training.data(name)
            except (OSError, ValueError) as error:
                notes.append(f"{error}; so there are no figures on it")
                continue
            instances = found.instances
            per_image = _per_image(found.content["images"], instances)
            rows.append(
                [
                    name,
                    {"train": "training", "test": "evaluation"}[use],
                    len(found.content["images"]),
                    len(instances),
                    f"{_median(per_image):g} ({min(per_image)} to {max(per_image)})",
                    sum(count == 0 for count in per_image),
                    _side(instances),
                ]
            )
            classes[name] = _class_counts(found, instances)
    if not rows:
        return None, notes
    titles = ["Data set", "used for", "images", "instances", "per image", "empty", "median side"]
    parts = [table(titles, rows, numbers=range(2, 7))]
    parts.append(
        paragraph(
            "Per image: median, smallest and largest number of instances. Side: of a square of the "
            "instance's area, in pixels. Crowds are not counted.",
            class_="note",
        )
    )
    names = list(dict.fromkeys(name for counts in classes.values() for name in counts))
    if len(names) > 1:
        counted = [[name, *(counts.get(name, 0) for counts in classes.values())] for name in names]
        chart = table(["Class", *classes], counted, numbers=range(1, 1 + len(classes)))
        parts.append(
            details(f"Instances of the {len(names)} classes", chart, opened=len(names) < 9)
        )
    return section("Data", *parts, anchor="data"), notes


def _per_image(images: Sequence[Mapping], instances: Sequence[Mapping]) -> list[int]:
    counts = {image["id"]: 0 for image in images}
    for instance in instances:
        counts[instance["image_id"]] += 1
    return list(counts.values()) or [0]


def _class_counts(found, instances: Sequence[Mapping]) -> dict[str, int]:
    names = found.class_names
    counts = dict.fromkeys(names.values(), 0)
    for instance in instances:
        counts[names[instance["category_id"]]] += 1
    return counts


def _median(values: Sequence[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return (ordered[middle] + ordered[~middle]) / 2


def _side(instances: Sequence[Mapping]) -> str:
    areas = [instance["area"] for instance in instances]
    return f"{math.sqrt(_median(areas)):.0f}" if areas else "–"


def configuration(training: Training) -> Html:
    """What the configuration changes, and all of it folded away."""
    if not training.config:
        return section(
            "Configuration", paragraph("There is no config.yaml in the folder."), anchor="config"
        )
    found, base = differences(training)
    sources = {difference.source for difference in found}
    rows = [
        [tag("code", d.key), tag("code", _shown(d.value)), tag("code", _shown(d.before)), d.source]
        for d in found
    ]
    known = len(sources) > 1 or base is not None
    titles = ["Key", "Here", base or "Default", *(["Set by"] if known else [])]
    rows = [row[: len(titles)] for row in rows]
    where = f"that {base} leaves otherwise" if base else "with another value than the default"
    text = (training.folder / "config.yaml").read_text(encoding="utf-8")
    return section(
        "Configuration",
        details(f"{len(rows)} keys {where}", table(titles, rows), opened=base is not None),
        details("The whole configuration", tag("pre", text)),
        anchor="config",
    )


def _shown(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if text else '""'


def machine(training: Training) -> Html | None:
    """Command, machine, versions and duration of every session."""
    if not training.sessions:
        return None
    blocks = []
    for index, session in enumerate(training.sessions, start=1):
        title = f"Session {index}" if len(training.sessions) > 1 else None
        rows = [(name, value) for name, value in _facts(session) if value]
        items = [item for name, value in rows for item in (tag("dt", name), tag("dd", value))]
        blocks += [tag("h3", title) if title else None, tag("dl", *items)]
    return section("Machine and software", *blocks, anchor="machine")


def _facts(session: Mapping) -> list[tuple[str, object]]:
    place, versions = session.get("machine", {}), session.get("versions", {})
    memory = session.get("peak_memory", {})
    peak = [f"{value:g} GiB {where}" for where, value in memory.items()]
    gpus = place.get("gpus", [])
    cores = f"{place.get('cores')} cores, threads of PyTorch: {place.get('threads')}"
    processes = place.get("processes", 1)
    return [
        ("Command", tag("code", session.get("command", ""))),
        ("Time", _time(session)),
        ("Iterations", _range(session)),
        ("Processor", f"{place.get('cpu')}, {cores}" if place else None),
        ("GPU", ", ".join(gpus) or "none was used"),
        ("Processes", processes if processes > 1 else None),
        ("Memory", f"{place['memory']:g} GiB" if place.get("memory") else None),
        ("Peak memory", ", ".join(peak)),
        ("System", place.get("system")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Commit", tag("code", session["commit"]) if session.get("commit") else "not known"),
    ]


def _time(session: Mapping) -> str:
    started = datetime.fromisoformat(session["started"])
    text = f"{started:%Y-%m-%d %H:%M}"
    if "seconds" not in session:
        return f"from {text}; it did not end by itself, so its duration is not known"
    ended = started + timedelta(seconds=session["seconds"])
    same_day = ended.date() == started.date()
    end = f"{ended:%H:%M}" if same_day else f"{ended:%Y-%m-%d %H:%M}"
    return f"{text} to {end}, {_duration(session['seconds'])}"


def _range(session: Mapping) -> str | None:
    if "iterations" not in session:
        return None
    text = f"{session['first_iteration']} to {session['iterations']}"
    return f"{text} of {session['planned_iterations']}"
