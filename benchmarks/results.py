"""The results: a table while they come in, then JSON, Markdown and a plot."""

import logging
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import torch

from isda import strict_json
from isda.benchmarking.timing import quartiles_of_ratios
from isda.machine import processor_name

__all__ = ["Row", "machine", "print_header", "print_row", "write"]

logger = logging.getLogger("msda")

_COLUMNS = ("workload", "offsets", "type", "pass", "threads", "contender", "calm rounds", "ms",
            "x grid_sample", "x torch-ms-deform-attn", "x 2020 kernel")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A contender's times of one setting, per round that counts."""

    kind: str
    batch: int
    offsets: str
    dtype: str
    tokens: int
    points: int
    passes: str
    threads: int
    contender: str
    calm_rounds: int
    seconds: list[float]
    references: dict[str, list[float]] = field(default_factory=dict)  # in the same rounds
    axis: str = ""  # what a series of rows varies

    @property
    def milliseconds(self) -> float:
        return 1000 * statistics.median(self.seconds)

    def speedup(self, reference: str) -> tuple[float, float, float] | None:
        """Median and quartiles of how many times faster than the reference it is."""
        if reference not in self.references:
            return None
        low, middle, high = quartiles_of_ratios(self.references[reference], self.seconds)
        return middle, low, high

    def cells(self) -> list[str]:
        few = len(self.seconds) > self.calm_rounds
        references = (column.removeprefix("x ") for column in _COLUMNS[8:])
        return [
            f"{self.kind} B{self.batch}",
            self.offsets,
            self.dtype,
            self.passes,
            str(self.threads),
            self.contender,
            f"~{self.calm_rounds}" if few else str(self.calm_rounds),
            f"{self.milliseconds:.2f}",
            *(_ratio(self.speedup(reference)) for reference in references),
        ]


def _ratio(speedup: tuple[float, float, float] | None) -> str:
    return "" if speedup is None else "{:.2f} ({:.2f}-{:.2f})".format(*speedup)


def machine(device: str) -> dict:
    """What the numbers depend on."""
    about = {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor_name(),
        "cores": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        about |= {"gpu": properties.name, "cuda": torch.version.cuda,
                  "capability": f"{properties.major}.{properties.minor}"}  # fmt: skip
    return about


def print_header() -> None:
    logger.info("%s\n%s", _line(_COLUMNS), _line(["---"] * len(_COLUMNS)))


def print_row(row: Row) -> None:
    logger.info("%s", _line(row.cells()))


def _line(cells: Sequence[str]) -> str:
    return f"|{'|'.join(cells)}|"


def write(path: Path, about: dict, rows: Sequence[Row], memory: Sequence[dict]) -> None:
    """``path`` with .json, .md and, where Matplotlib is installed, .png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**about, "rows": [asdict(row) for row in rows], "memory": list(memory)}
    path.with_suffix(".json").write_text(
        strict_json.dumps(content, indent=1) + "\n", encoding="utf-8"
    )
    path.with_suffix(".md").write_text(_markdown(about, rows, memory), encoding="utf-8")
    series = [row for row in rows if row.axis]
    if not series:
        return
    try:
        _plot(path.with_suffix(".png"), about, series)
    except ImportError as error:
        logger.warning("no plot: %s", error)


def _markdown(about: dict, rows: Sequence[Row], memory: Sequence[dict]) -> str:
    lines = [f"- {name}: {value}" for name, value in about.items() if value]
    plain = [row for row in rows if not row.axis]
    lines += ["", "Ratios: how many times faster than the reference, median (quartiles).", ""]
    lines += [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
    lines += [_line(row.cells()) for row in plain]
    if memory:
        lines += ["", "Peak memory of a call beyond its inputs, and of what it returns, in MB.", ""]
        names = ("workload", "pass", "contender", "peak", "results")
        lines += [_line(names), _line(["---"] * len(names))]
        lines += [_line(_memory_cells(entry)) for entry in memory]
    return "\n".join(lines) + "\n"


def _memory_cells(entry: dict) -> list[str]:
    peak = entry["peak_bytes"]
    return [
        f"{entry['kind']} B{entry['batch']}",
        entry["passes"],
        entry["contender"],
        "unknown" if peak is None else f"{peak / 1e6:.1f}",
        f"{entry['result_bytes'] / 1e6:.1f}",
    ]


def _plot(path: Path, about: dict, rows: Sequence[Row]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes_names = list(dict.fromkeys(row.axis for row in rows))
    passes = list(dict.fromkeys(row.passes for row in rows))
    threads = max(row.threads for row in rows)
    figure, panels = pyplot.subplots(
        len(passes), len(axes_names), figsize=(4 * len(axes_names), 3 * len(passes)), squeeze=False
    )
    for line, one_pass in zip(panels, passes, strict=True):
        for panel, axis in zip(line, axes_names, strict=True):
            chosen = [r for r in rows if (r.axis, r.passes, r.threads) == (axis, one_pass, threads)]
            for name in dict.fromkeys(row.contender for row in chosen):
                mine = [row for row in chosen if row.contender == name]
                sizes, times = [getattr(r, axis) for r in mine], [r.milliseconds for r in mine]
                panel.plot(sizes, times, marker="o", ms=3, label=name)
            panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=f"{one_pass}, ms")
            ticks = sorted({getattr(row, axis) for row in chosen})
            panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            panel.set_xticks([], minor=True)
            panel.grid(alpha=0.3, which="both")
    panels[0, 0].legend(fontsize=7)
    where = about.get("gpu") or f"{about['processor']}, threads: {threads}"
    figure.suptitle(f"Deformable attention, encoder: {where}, PyTorch {about['torch']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
