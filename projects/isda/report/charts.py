"""Small charts as SVG inside the page.

Not matplotlib's, which :func:`isda.visualization.plot_curves` uses for files: colors here are
classes of the page's style sheet, so that a chart follows the reader's light or dark setting, is
as sharp on paper as on a phone, and takes a few kilobytes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from isda.report.markup import Html, tag

__all__ = ["Series", "bars", "ceiling", "line_chart", "number", "shares"]

_WIDTH, _HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 26, 36
_MAX_POINTS = 300  # of a curve: more than this is wider than the chart's pixels


@dataclass(frozen=True)
class Series:
    """A curve."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: int  # of the style sheet's, from 1
    marked: bool = False  # with a dot at each point, which tells its value
    dashed: bool = False
    highlight: int | None = None  # index of the point to be circled


def number(value: float, digits: int = 3) -> str:
    """Short, without trailing zeros; a dash where there is no number."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
    return text.replace("e-0", "e-").replace("e+0", "e+")


def line_chart(
    series: Iterable[Series],
    *,
    x_label: str,
    y_label: str,
    logarithmic: bool = False,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    legend: bool = True,
) -> Html:
    """Curves over a common axis, and their names above.

    Points without a finite value are left out, as are values of 0 and less on a logarithmic axis.

    Args:
        x_label, y_label: what the axes show.
        logarithmic: of the y axis.
        x_range, y_range: of the axes; None takes what the values need.
        legend: False for a single curve that the title names.

    Raises:
        ValueError: no curve has any point.
    """
    curves = [_drawable(curve, logarithmic) for curve in series]
    curves = [curve for curve in curves if curve.xs]
    if not curves:
        raise ValueError("a chart needs at least one point")
    xs = [x for curve in curves for x in curve.xs]
    ys = [y for curve in curves for y in curve.ys]
    x_ticks = _linear_ticks(*(x_range or (min(xs), max(xs))))
    lowest, highest = y_range or (min(ys), max(ys))
    y_ticks = _log_ticks(lowest, highest) if logarithmic else _linear_ticks(lowest, highest)
    x_low, x_high = x_range or (min(xs), max(xs))
    x_of = _scale(x_low, x_high, _LEFT, _WIDTH - _RIGHT)
    y_low, y_high = (lowest, highest) if y_range else (y_ticks[0], y_ticks[-1])
    y_of = _scale(y_low, y_high, _HEIGHT - _BOTTOM, _TOP, logarithmic)
    x_ticks = [tick for tick in x_ticks if x_low <= tick <= x_high] or [x_low]
    drawing = tag(
        "svg",
        *_axes(x_ticks, y_ticks, x_of, y_of, x_label, y_label),
        *(part for curve in curves for part in _curve(curve, x_of, y_of)),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        class_="chart",
        aria_label=f"{y_label} over {x_label}: " + ", ".join(curve.name for curve in curves),
    )
    return tag("div", _legend(curves) if legend else None, drawing)


def _drawable(curve: Series, logarithmic: bool) -> Series:
    """With finite points only, and few enough of them."""
    pairs = [
        (x, y)
        for x, y in zip(curve.xs, curve.ys)
        if math.isfinite(x) and math.isfinite(y) and (y > 0 or not logarithmic)
    ]
    if not curve.marked and len(pairs) > _MAX_POINTS:
        pairs = _averaged(pairs, _MAX_POINTS)
    xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
    one = len(pairs) == 1  # a line needs two points to be seen
    return Series(
        curve.name, xs, ys, curve.color, curve.marked or one, curve.dashed, curve.highlight
    )


def _averaged(pairs: Sequence[tuple], count: int) -> list[tuple]:
    """``count`` means of as many neighbours each."""
    edges = [round(index * len(pairs) / count) for index in range(count + 1)]
    parts = [pairs[start:end] for start, end in zip(edges, edges[1:])]
    return [tuple(sum(values) / len(part) for values in zip(*part)) for part in parts]


def _scale(
    low: float, high: float, start: float, end: float, logarithmic: bool = False
) -> Callable[[float], float]:
    if logarithmic:
        inner = _scale(math.log10(low), math.log10(high), start, end)
        return lambda value: inner(math.log10(value))
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that enclose both ends."""
    if high <= low:
        low, high = low - abs(low or 1) / 2, high + abs(high or 1) / 2
    rough = (high - low) / count
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and 2 and 5 times them where there are few, that enclose both ends."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    factors = (1,) if math.log10(high / low) > 3 else (1, 2, 5)
    if math.log10(high / low) < 0.5:
        factors = (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    first = max(index for index, tick in enumerate(ticks) if tick <= low * 1.0001)
    last = min(index for index, tick in enumerate(ticks) if tick >= high * 0.9999)
    return ticks[first : max(last, first + 1) + 1]


def ceiling(value: float) -> float:
    """A round number not below ``value``, for the end of an axis that starts at 0."""
    return _linear_ticks(0.0, value)[-1] if value > 0 else 1.0


def _axes(x_ticks, y_ticks, x_of, y_of, x_label: str, y_label: str) -> Iterable[Html]:
    left, right, bottom = _LEFT, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for tick in y_ticks:
        y = round(y_of(tick), 1)
        yield tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid")
        yield tag("text", number(tick, 4), x=left - 6, y=y + 4, class_="tick end")
    for tick in x_ticks:
        x = round(x_of(tick), 1)
        yield tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis")
        yield tag("text", number(tick, 6), x=x, y=bottom + 17, class_="tick middle")
    yield tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis")
    yield tag("text", x_label, x=right, y=_HEIGHT - 4, class_="label end")
    yield tag("text", y_label, x=0, y=11, class_="label")


def _curve(curve: Series, x_of, y_of) -> Iterable[Html]:
    points = [(round(x_of(x), 1), round(y_of(y), 1)) for x, y in zip(curve.xs, curve.ys)]
    line = " ".join(f"{x:g},{y:g}" for x, y in points)
    dashed = " dashed" if curve.dashed else ""
    yield tag("polyline", points=line, class_=f"line color{curve.color}{dashed}")
    if not curve.marked:
        return
    for index, (x, y) in enumerate(points):
        title = tag("title", f"{curve.name} {number(curve.ys[index], 4)} at {curve.xs[index]:g}")
        if index == curve.highlight:
            yield tag("circle", cx=x, cy=y, r=7, class_=f"ring color{curve.color}")
        yield tag("circle", title, cx=x, cy=y, r=3, class_=f"dot color{curve.color}")


def _legend(curves: Sequence[Series]) -> Html:
    items = [
        tag(
            "li",
            tag("span", class_=f"key color{curve.color}" + " dashed" * curve.dashed),
            curve.name,
        )
        for curve in curves
    ]
    return tag("ul", *items, class_="legend")


def shares(parts: Sequence[tuple[str, int, str]]) -> Html:
    """One bar divided in proportion to counts.

    Args:
        parts: ``(name, count, class)``, the class of the style sheet naming the color.
    """
    total = sum(count for _, count, _ in parts)
    pieces = [
        tag(
            "span",
            class_=f"piece {style}",
            style=f"flex-grow:{count}",
            title=f"{name}: {count} of {total}",
        )
        for name, count, style in parts
        if count
    ]
    names = [
        tag(
            "li",
            tag("span", class_=f"key {style}"),
            f"{name} ",
            tag("b", count),
            f" ({count / total:.0%})" if total else None,
        )
        for name, count, style in parts
    ]
    return tag("div", tag("div", *pieces, class_="shares"), tag("ul", *names, class_="legend"))


def bars(value: float, highest: float = 100.0) -> Html:
    """A number in a cell, and a bar of its size below it."""
    width = 0.0 if not math.isfinite(value) else max(0.0, min(1.0, value / highest))
    return tag(
        "span",
        f"{value:.1f}" if math.isfinite(value) else "–",
        tag("span", tag("i", style=f"width:{width:.1%}"), class_="bar"),
        class_="barred",
    )
