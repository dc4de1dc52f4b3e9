"""Windows cover, overlap enough, and cost as few pixels as they can."""

import itertools
import math

import numpy as np
import pytest

from isda.tiles.grid import window_grid


@pytest.mark.parametrize("size", [(1, 1), (40, 64), (65, 64), (64, 500), (333, 129), (1000, 777)])
@pytest.mark.parametrize("overlap", [0, 1, 8, 21])
def test_every_pixel_is_in_a_window_and_neighbours_overlap(size, overlap):
    grid = window_grid(size, [64], overlap)
    seen = np.zeros(size, int)
    for top, bottom, left, right in grid:
        assert 0 <= top < bottom <= size[0]
        assert 0 <= left < right <= size[1]
        assert (bottom - top, right - left) == grid.window_size == tuple(min(64, s) for s in size)
        seen[top:bottom, left:right] += 1
    assert seen.min() == 1 or max(size) > 64
    assert seen.min() >= 1
    assert len(list(grid)) == len(grid)
    for starts in (grid.rows, grid.columns):
        for (_, end), (start, _) in itertools.pairwise(starts):
            assert end - start >= overlap


@pytest.mark.parametrize("length", range(260, 3000, 37))
def test_no_other_side_covers_a_line_with_fewer_pixels(length):
    sides, overlap = [205, 230, 256], 32
    grid = window_grid((length, 10), sides, overlap)
    costs = []
    for side in sides:  # count windows one by one
        count, end = 1, side
        while end < length:
            count, end = count + 1, end + side - overlap
        costs.append(count * side)
    assert len(grid.rows) * grid.window_size[0] == min(costs)
    assert grid.columns == [(0, 10)]
    assert len(grid.rows) <= math.ceil(length / 150)


def test_too_much_overlap_is_refused():
    with pytest.raises(ValueError, match="60 pixels cannot overlap by 21: at most a third"):
        window_grid((500, 500), [60, 64], 21)
