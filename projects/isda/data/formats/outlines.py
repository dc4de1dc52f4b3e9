"""Outlines of the shapes that annotation tools draw, as COCO's polygons."""

import math
from collections.abc import Sequence

import numpy as np

from isda.data.formats.annotated import UnusableShapeError

__all__ = ["as_points", "circle", "ellipse", "polygon", "rectangle", "rotated_rectangle"]

_DEVIATION = 0.1  # pixels between an arc and its polygon
_DECIMALS = 2


def as_points(values: object, fewest: int) -> np.ndarray:
    """``(n, 2)`` float64 (x, y) out of a list of pairs.

    Raises:
        UnusableShapeError: they are not pairs of finite numbers, or fewer than ``fewest``.
    """
    try:
        points = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UnusableShapeError("malformed") from error
    if points.size == 0:
        points = points.reshape(0, 2)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise UnusableShapeError("malformed")
    if len(points) < fewest:
        raise UnusableShapeError(f"with fewer than {fewest} points")
    return points


def polygon(points: Sequence) -> list[float]:
    """A closed outline through points; one that repeats its start at the end is the same."""
    corners = as_points(points, 3)
    if (corners[0] == corners[-1]).all():
        corners = as_points(corners[:-1], 3)
    return corners.round(_DECIMALS).reshape(-1).tolist()


def rectangle(points: Sequence) -> list[float]:
    """The upright rectangle of two opposite corners, in whatever order."""
    corners = as_points(points, 2)
    (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
    return polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def rotated_rectangle(
    center: Sequence[float], extent: Sequence[float], angle: float
) -> list[float]:
    """A rectangle turned around its center.

    Args:
        center: (x, y).
        extent: (width, height).
        angle: of the turn from x to y, in radians.
    """
    (center,), (half,) = as_points([center], 1), as_points([extent], 1) / 2
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
    cos, sin = math.cos(angle), math.sin(angle)
    return polygon(corners @ np.array([[cos, sin], [-sin, cos]]) + center)


def circle(center: Sequence[float], radius: float) -> list[float]:
    """A circle, as :func:`ellipse`."""
    return ellipse(center, (radius, radius))


def ellipse(center: Sequence[float], radii: Sequence[float], angle: float = 0.0) -> list[float]:
    """An ellipse by as many corners as keep its polygon within a tenth of a pixel.

    Args:
        center: (x, y).
        radii: along x and y before the turn.
        angle: of the turn from x to y, in radians.

    Raises:
        UnusableShapeError: a number is not finite, or a radius not positive.
    """
    (center,) = as_points([center], 1)
    (radii,) = as_points([radii], 1)
    if not _is_number(angle):
        raise UnusableShapeError("malformed")
    if radii.min() <= 0:
        raise UnusableShapeError("of zero area")
    sagitta = min(_DEVIATION / radii.max(), 1.0)
    corners = max(math.ceil(math.pi / math.acos(1 - sagitta)), 8)
    turn = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    x, y = radii[0] * np.cos(turn), radii[1] * np.sin(turn)
    cos, sin = math.cos(angle), math.sin(angle)
    return polygon(np.stack([cos * x - sin * y, sin * x + cos * y], axis=1) + center)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
