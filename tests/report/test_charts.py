import math
import re

import pytest

from isda.report.charts import Series, bars, ceiling, line_chart, number, shares

LEFT, RIGHT, TOP, BOTTOM = 46, 466, 26, 224  # of the area that curves are drawn in


def lines(chart):
    """Points of each curve, as drawn."""
    found = re.findall(r'<polyline points="([^"]*)"', chart)
    return [[tuple(map(float, p.split(","))) for p in points.split()] for points in found]


def ticks(chart, style):
    return [float(t) for t in re.findall(rf'<text [^>]*class="tick {style}">([^<]*)<', chart)]


def chart_of(xs, ys, **options):
    series = Series("a", xs, ys, 1, **options.pop("series", {}))
    return line_chart([series], x_label="x", y_label="y", **options)


def test_points_stand_where_their_values_say():
    chart = chart_of([0, 5, 10], [0, 40, 100], y_range=(0, 100))
    (points,) = lines(chart)
    expected = [(LEFT, BOTTOM), ((LEFT + RIGHT) / 2, BOTTOM - 0.4 * (BOTTOM - TOP)), (RIGHT, TOP)]
    for point, wanted in zip(points, expected, strict=True):
        assert point == pytest.approx(wanted, abs=0.06)


def test_a_logarithmic_axis_has_equal_steps_for_equal_factors():
    chart = chart_of([0, 1, 2], [0.1, 1, 10], logarithmic=True)
    (points,) = lines(chart)
    assert [y for _, y in points] == pytest.approx([BOTTOM, (BOTTOM + TOP) / 2, TOP], abs=0.06)
    assert {0.1, 1, 10} <= set(ticks(chart, "end"))


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize(
    "low, high", [(0.013, 0.0131), (0.98, 3.7), (2, 11), (150, 90000), (5, 5), (1e-7, 1e-4)]
)
def test_ticks_are_few_and_enclose_the_values(low, high, logarithmic):
    chart = chart_of([0, 1], [low, high], logarithmic=logarithmic)
    found = ticks(chart, "end")
    assert 2 <= len(found) <= 12
    assert found == sorted(set(found))
    assert found[0] <= low * 1.001 and found[-1] >= high * 0.999
    (points,) = lines(chart)
    assert all(TOP - 0.1 <= y <= BOTTOM + 0.1 for _, y in points)


def test_what_cannot_be_drawn_is_left_out():
    ys = [1.0, math.nan, math.inf, 3.0]
    assert len(lines(chart_of([0, 1, 2, 3], ys))[0]) == 2
    assert len(lines(chart_of([0, 1, 2], [1.0, 0.0, 2.0], logarithmic=True))[0]) == 2
    with pytest.raises(ValueError, match="at least one point"):
        chart_of([1], [math.nan])


def test_long_curves_are_averaged():
    xs = list(range(10_000))
    (points,) = lines(chart_of(xs, [x % 2 for x in xs], y_range=(0, 1)))
    assert len(points) == 300
    assert {y for _, y in points} <= {124.0, 125.0, 126.0, *(y for _, y in points if 118 < y < 132)}
    assert points[0][0] < points[-1][0] <= RIGHT


def test_single_points_and_marked_ones_tell_their_value():
    assert "<title>a 3 at 7</title>" in chart_of([7], [3.0])
    marked = chart_of([1, 2], [3.0, 4.0], series={"marked": True, "highlight": 1})
    assert marked.count('class="dot color1"') == 2
    assert marked.count('class="ring color1"') == 1
    assert "circle" not in chart_of([1, 2], [3.0, 4.0])


def test_names_are_escaped():
    chart = line_chart([Series("<b>", [1], [1], 1)], x_label="<x>", y_label="<y>")
    assert "<b>" not in chart and "<x>" not in chart and "<y>" not in chart
    assert "<i>" not in shares([("<i>", 1, "found")])


def test_numbers_are_short():
    assert [number(v) for v in (0.0, 3.14159, 12345, 1e-05, math.nan)] == [
        *("0", "3.14", "12345", "1e-5", "–")
    ]
    assert [ceiling(v) for v in (0, 7.2, 61, 100)] == [1.0, 8.0, 80.0, 100.0]


def test_bars_and_shares_are_in_proportion():
    assert "width:25.0%" in bars(25.0) and ">25.0<" in bars(25.0)
    assert "width:0.0%" in bars(math.nan) and ">–<" in bars(math.nan)
    written = shares([("found", 3, "found"), ("missed", 1, "missed"), ("merged", 0, "merged")])
    assert re.findall(r"flex-grow:(\d+)", written) == ["3", "1"]
    assert re.findall(r"<b>(\d)</b>( \(\d+%\))?", written) == [
        *(("3", " (75%)"), ("1", " (25%)"), ("0", " (0%)"))
    ]
    assert "%" not in shares([("found", 0, "found")])
