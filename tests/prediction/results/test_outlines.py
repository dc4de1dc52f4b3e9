import importlib.util

import numpy as np
import pytest
from examples_of_results import awkward_masks, filled

from isda.prediction.results.outlines import polygons_of

MASKS = awkward_masks()


def area(ring):
    x, y = ring.T
    return (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2


@pytest.mark.parametrize("name", MASKS)
def test_outlines_lose_no_pixel(name):
    polygons = polygons_of(MASKS[name])
    rings = [ring for polygon in polygons for ring in (polygon.outline, *polygon.holes)]
    np.testing.assert_array_equal(filled(rings, MASKS[name].shape), MASKS[name])
    assert sum(area(ring) for ring in rings) == MASKS[name].sum()
    for polygon in polygons:
        assert area(polygon.outline) > 0
        assert all(area(hole) < 0 for hole in polygon.holes)


@pytest.mark.parametrize("name", MASKS)
def test_no_ring_touches_itself_or_has_a_point_too_many(name):
    for polygon in polygons_of(MASKS[name]):
        for ring in (polygon.outline, *polygon.holes):
            assert len(np.unique(ring, axis=0)) == len(ring)
            sides = np.roll(ring, -1, axis=0) - ring
            assert ((sides != 0).sum(axis=1) == 1).all()  # along the edges of pixels
            assert ((sides[:, 0] == 0) != (np.roll(sides, 1, axis=0)[:, 0] == 0)).all()  # corners


@pytest.mark.skipif(importlib.util.find_spec("shapely") is None, reason="needs shapely")
@pytest.mark.parametrize("name", MASKS)
def test_polygons_are_valid_as_the_standard_has_it(name):
    import shapely

    parts = [shapely.Polygon(p.outline, p.holes) for p in polygons_of(MASKS[name])]
    whole = shapely.MultiPolygon(parts)
    assert whole.is_valid, shapely.is_valid_reason(whole)
    y, x = np.mgrid[: MASKS[name].shape[0], : MASKS[name].shape[1]] + 0.5
    np.testing.assert_array_equal(shapely.contains_xy(whole, x, y), MASKS[name])


def test_known_outlines():
    mask = np.zeros((5, 6), bool)
    mask[1:4, 2:5] = True
    mask[2, 3] = False
    ((outline, holes),) = polygons_of(mask)
    assert outline.tolist() == [[2, 1], [5, 1], [5, 4], [2, 4]]
    assert [sorted(hole.tolist()) for hole in holes] == [[[3, 2], [3, 3], [4, 2], [4, 3]]]
    assert polygons_of(mask[:0]) == polygons_of(mask & False) == []


def test_a_large_mask_is_no_matter_of_minutes():
    """A circle of 2,000 pixels, amid 4,000 x 4,000."""
    y, x = np.ogrid[:4000, :4000]
    mask = (x - 1800) ** 2 + (y - 2100) ** 2 < 1000**2
    ((outline, holes),) = polygons_of(mask)
    assert holes == []
    assert area(outline) == mask.sum()
