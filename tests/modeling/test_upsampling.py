import math

import pytest
import torch

from isda.modeling.upsampling import aligned_bilinear


def by_formula(row, factor):
    """Output i samples input (i − factor / 2) / factor, clamped to the ends, linearly."""
    samples = []
    for index in range(factor * len(row)):
        place = min(max((index - factor / 2) / factor, 0), len(row) - 1)
        before = math.floor(place)
        after = min(before + 1, len(row) - 1)
        samples.append(row[before] + (place - before) * (row[after] - row[before]))
    return samples


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 1)])
def test_aligned_bilinear_is_its_formula(factor, size):
    features = torch.randn(2, 3, *size, dtype=torch.float64)
    found = aligned_bilinear(features, factor)
    if factor == 1:
        assert found is features
        return
    for image, channel in [(0, 0), (1, 2)]:
        rows = [by_formula(row, factor) for row in features[image, channel].tolist()]
        columns = [by_formula(list(column), factor) for column in zip(*rows, strict=True)]
        expected = torch.tensor(list(zip(*columns, strict=True)), dtype=torch.float64)
        torch.testing.assert_close(found[image, channel], expected)


def test_a_location_keeps_its_place():
    """The cell of FCOS's location s/2 + j·s is pixel s/2 + j·s of the enlarged map, exactly."""
    row = torch.arange(6, dtype=torch.float64).square()
    enlarged = aligned_bilinear(row[None, None, None].expand(1, 1, 3, 6), 8)
    assert enlarged[0, 0, 12, 4::8].tolist() == row.tolist()


def test_odd_factors_are_refused():
    with pytest.raises(ValueError, match="by an even factor or by 1, not by 3"):
        aligned_bilinear(torch.zeros(1, 1, 2, 2), 3)


def test_a_large_box_survives_sampling_and_enlargement():
    """Sampled at [2::4, 2::4] and enlarged by 4, a box returns within 2 pixels."""
    mask = torch.zeros(96, 128)
    mask[21:78, 34:103] = 1
    back = aligned_bilinear(mask[2::4, 2::4][None, None], 4)[0, 0] > 0.5
    rows, columns = back.any(1).nonzero()[:, 0], back.any(0).nonzero()[:, 0]
    found = [int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1]
    assert all(abs(a - b) <= 2 for a, b in zip(found, (21, 78, 34, 103), strict=True)), found
