"""The results of ``isda benchmark`` as Markdown and as pictures."""

import os
from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure  # not pyplot: needs no display and keeps no state

from isda.benchmarking.components import COMPONENTS, PHASES
from isda.visualization import write_figure

__all__ = ["digits", "markdown", "plot_ap_over_latency", "plot_components", "ratio_text"]

MEGABYTE = 2**20
_ABSENT = ""


def markdown(report: Mapping) -> str:
    """What was measured under which circumstances, a table of models, and one per breakdown."""
    rows = report["rows"]
    inference = f"Size and inference, {_size_text(report['size'])}:"
    training = (
        f"Training steps, {_size_text(report['train_size'])}, batch {report['train_batch']}, "
        f"{report['instances']} instances in each image:"
    )
    parts = [_circumstances(report)]
    for title, columns in (
        (inference, _inference_columns(report)),
        (training, _TRAINING_COLUMNS),
    ):
        parts += _section(title, _measured(columns, rows), rows)
    for title, key, names, cell in (
        ("Parameters", "parameters", COMPONENTS, _count_cell(1e6, "M")),
        ("Multiply-adds of one image", "flops", COMPONENTS, _count_cell(1e9, "G")),
        ("Latency", "latency", COMPONENTS, _seconds_cell),
        ("Training step", "training", PHASES, _seconds_cell),
    ):
        shown = [row for row in rows if row.get(key)]
        used = [n for n in names if any(row[key]["components"].get(n) for row in shown)]
        columns = {n: lambda row, n=n, k=key, c=cell: c(row[k], n) for n in used}
        parts += _section(f"{title}, by component:", columns, shown)
    return "\n\n".join(parts) + "\n"


def _circumstances(report: Mapping) -> str:
    environment = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
    clock = "processor time" if report["cpu_time"] else "time by the clock"
    text = (
        f"Synthetic images, untrained weights; {environment}; {clock}. "
        f"{report['rounds']} rounds, in which the models take turns; ratios are to "
        f"{report['rows'][0]['name']}, taken round by round: median (quartiles)."
    )
    if report["opts"]:
        text += f" Overrides: `{' '.join(report['opts'])}`."
    return text


def _size_text(size: Sequence[int]) -> str:
    height, width = size
    return f"{height}×{width}"


def _inference_columns(report: Mapping) -> dict[str, tuple[str, Callable]]:
    """Titles, what has to be measured, and how it is written."""
    return {
        "Parameters": ("parameters", lambda p: f"{digits(p['total'] / 1e6)} M"),
        "Multiply-adds": ("flops", lambda f: f"{digits(f['total'] / 1e9)} G"),
        "Latency": ("latency", lambda x: seconds_text(x["median"])),
        "95 %": ("latency", lambda x: seconds_text(x["p95"])),
        "Ratio": ("latency", ratio_text),
        f"Images/s, batch {report['batch']}": (
            "throughput",
            lambda x: digits(x["images_per_second"]),
        ),
        "Ratio of times": ("throughput", ratio_text),
        "Instances": ("latency", lambda x: str(x["instances"])),
        "Memory": ("latency", _memory),
        "AP": ("ap", lambda ap: f"{ap:.1f}"),
    }


def _measured(columns: Mapping, rows: Sequence[Mapping]) -> dict[str, Callable[[Mapping], str]]:
    """The columns for which at least one row has something to say."""
    return {
        title: lambda row, k=key, c=cell: _ABSENT if row.get(k) is None else c(row[k])
        for title, (key, cell) in columns.items()
        if any(row.get(key) is not None for row in rows)
    }


def _section(
    title: str, columns: Mapping[str, Callable[[Mapping], str]], rows: Sequence[Mapping]
) -> list[str]:
    """Title and table, of which nothing is left where there are no columns."""
    if not columns:
        return []
    lines = [["Model", *columns], ["---", *["---:"] * len(columns)]]
    lines += [[row["name"], *(cell(row) for cell in columns.values())] for row in rows]
    return [title, "\n".join(f"|{'|'.join(line)}|" for line in lines)]


def seconds_text(seconds: float) -> str:
    """Milliseconds below one second."""
    return f"{digits(1000 * seconds)} ms" if seconds < 1 else f"{digits(seconds)} s"


def digits(value: float) -> str:
    """Three of them, or all of an integer part that has more."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def ratio_text(result: Mapping) -> str:
    ratio = result["ratio"]
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"


def _memory(result: Mapping) -> str:
    peak = result["peak_bytes"]
    return "not measured" if peak is None else f"{peak / MEGABYTE:.0f} MB"


def _count_cell(unit: float, letter: str) -> Callable[[Mapping, str], str]:
    def cell(result: Mapping, name: str) -> str:
        count = result["components"].get(name)
        return _ABSENT if not count else f"{digits(count / unit)} {letter}"

    return cell


def _seconds_cell(result: Mapping, name: str) -> str:
    seconds = result["components"].get(name)
    if not seconds:
        return _ABSENT
    return f"{seconds_text(seconds)} ({100 * seconds / result['median']:.0f} %)"


_TRAINING_COLUMNS = {
    "Step": ("training", lambda x: seconds_text(x["median"])),
    "95 %": ("training", lambda x: seconds_text(x["p95"])),
    "Ratio": ("training", ratio_text),
    "Memory": ("training", _memory),
}


def plot_components(rows: Sequence[Mapping], path: str | os.PathLike) -> None:
    """One bar per model, of its latency's components; beside it, of its training step's."""
    panels = [
        (key, title, names)
        for key, title, names in (
            ("latency", "seconds per image", COMPONENTS),
            ("training", "seconds per training step", PHASES),
        )
        if any(row.get(key) for row in rows)
    ]
    figure = Figure(figsize=(6 * len(panels), 1.5 + 0.5 * len(rows)), layout="constrained")
    for axes, (key, title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        shown = [row for row in rows if row.get(key)]
        left = [0.0] * len(shown)
        for index, name in enumerate(names):
            widths = [row[key]["components"].get(name, 0.0) for row in shown]
            if any(widths):
                labels = [row["name"] for row in shown]
                axes.barh(labels, widths, left=left, label=name, color=f"C{index}")
                left = [start + width for start, width in zip(left, widths)]
        axes.invert_yaxis()
        axes.set_xlabel(title)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    write_figure(path, figure)


def plot_ap_over_latency(rows: Sequence[Mapping], path: str | os.PathLike) -> None:
    """A point per model that has both."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    shown = [row for row in rows if _has_both(row)]
    for index, row in enumerate(shown):
        marker = "os^Dv"[index % 5]
        axes.plot(row["latency"]["median"], row["ap"], marker, ms=8, alpha=0.8, label=row["name"])
    axes.set(xlabel="seconds per image", ylabel="mask AP")
    axes.set_xlim(0, 1.1 * max(row["latency"]["median"] for row in shown))
    axes.set_ylim(0, 1.2 * max(row["ap"] for row in shown) or 1)
    axes.legend(loc="lower right")  # names at the points would cover each other
    axes.grid(alpha=0.3)
    write_figure(path, figure)


def _has_both(row: Mapping) -> bool:
    return bool(row.get("latency")) and row.get("ap") is not None
