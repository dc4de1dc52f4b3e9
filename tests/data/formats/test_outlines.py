"""Outlines against the inequalities that define the shapes."""

import math

import numpy as np
import pytest
from examples_of_formats import drawn, grid, iou

from isda.data.formats.annotated import UnusableShapeError
from isda.data.formats.outlines import as_points, circle, ellipse, polygon, rectangle

SIZE = (200, 300)


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, 2.6])
@pytest.mark.parametrize("radii", [(60, 20), (9, 31), (4, 4)])
def test_an_ellipse_covers_the_points_that_fulfil_its_equation(radii, angle):
    xs, ys = grid(SIZE)
    xs, ys = xs - 150, ys - 100
    along = xs * math.cos(angle) + ys * math.sin(angle)
    across = ys * math.cos(angle) - xs * math.sin(angle)
    inside = (along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1
    assert iou(drawn([ellipse((150, 100), radii, angle)], SIZE), inside) > 0.93


def test_a_circle_deviates_by_a_tenth_of_a_pixel_at_most():
    for radius in (3, 50, 700):
        corners = np.array(circle((0, 0), radius)).reshape(-1, 2)
        middles = (corners + np.roll(corners, 1, axis=0)) / 2
        assert np.hypot(*corners.T) == pytest.approx(radius, abs=0.02)
        assert np.hypot(*middles.T).min() > radius - 0.12
        assert len(corners) < 20 + 8 * math.sqrt(radius)


def test_corners_of_a_rectangle_may_come_in_any_order():
    expected = [10, 5, 30, 5, 30, 25, 10, 25]
    for corners in ([(10, 5), (30, 25)], [(30, 25), (10, 5)], [(30, 5), (10, 25)]):
        assert rectangle(corners) == expected


def test_a_polygon_that_is_closed_by_its_first_point_loses_the_last():
    assert polygon([(0, 0), (4, 0), (4, 3), (0, 0)]) == [0, 0, 4, 0, 4, 3]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (None, "malformed"),
        ("abc", "malformed"),
        ([1, 2, 3], "malformed"),
        ([[1, 2], [3]], "malformed"),
        ([[1, 2], [3, float("nan")], [4, 5]], "malformed"),
        ([[1, 2], [3, None], [4, 5]], "malformed"),
        ([], "with fewer than 3 points"),
        ([[1, 2], [3, 4]], "with fewer than 3 points"),
    ],
)
def test_what_is_no_outline(values, reason):
    with pytest.raises(UnusableShapeError, match=reason):
        as_points(values, 3)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (((5, 5), (0, 3)), "of zero area"),
        (((5, 5), (-2, 3)), "of zero area"),
        (((5, "x"), (2, 3)), "malformed"),
        (((5, 5), (2, 3), None), "malformed"),
        (((5, 5), (2, float("inf"))), "malformed"),
    ],
)
def test_what_is_no_ellipse(arguments, reason):
    with pytest.raises(UnusableShapeError, match=reason):
        ellipse(*arguments)
