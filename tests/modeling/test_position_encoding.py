import math

import pytest
import torch

from isda.modeling.position_encoding import inverse_sigmoid, sine_position_encoding


def padding_mask(height, width, valid_sizes):
    mask = torch.ones(len(valid_sizes), height, width, dtype=torch.bool)
    for row, (valid_height, valid_width) in zip(mask, valid_sizes, strict=True):
        row[:valid_height, :valid_width] = False
    return mask


def feature_of(cell, valid, index, num_features):
    coordinate = (cell + 0.5) / (valid + 1e-6) * 2 * math.pi
    phase = coordinate / 10000 ** (2 * (index // 2) / num_features)
    return math.sin(phase) if index % 2 == 0 else math.cos(phase)


@pytest.mark.parametrize("num_features", [2, 6, 128])
def test_sine_encoding_against_scalar_loops(num_features):
    sizes = [(3, 5), (2, 4), (1, 1)]
    encoding = sine_position_encoding(padding_mask(3, 5, sizes), num_features)
    assert encoding.shape == (3, 2 * num_features, 3, 5)
    assert encoding.dtype == torch.float32
    assert encoding.isfinite().all()  # in the padding too
    for image, (valid_height, valid_width) in enumerate(sizes):
        for row in range(valid_height):
            for column in range(valid_width):
                y = [feature_of(row, valid_height, i, num_features) for i in range(num_features)]
                x = [feature_of(column, valid_width, i, num_features) for i in range(num_features)]
                found = encoding[image, :, row, column]
                torch.testing.assert_close(found, torch.tensor(y + x), rtol=0, atol=1e-5)


def test_valid_cells_do_not_feel_padding():
    alone = sine_position_encoding(padding_mask(4, 6, [(4, 6)]), 16)
    padded = sine_position_encoding(padding_mask(7, 9, [(4, 6)]), 16)
    torch.testing.assert_close(padded[:, :, :4, :6], alone)


def test_inverse_sigmoid_and_its_clamp():
    probs = torch.tensor([0.0, 1e-6, 1e-5, 0.25, 0.5, 0.9, 1.0])
    limit = math.log(1e-5 / (1 - 1e-5))
    expected = torch.tensor([limit, limit, limit, math.log(1 / 3), 0.0, math.log(9), -limit])
    torch.testing.assert_close(inverse_sigmoid(probs), expected, rtol=1e-3, atol=1e-6)
