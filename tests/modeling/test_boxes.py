import itertools
import math

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform

from isda.modeling.boxes import bounded_boxes, decode_boxes

EXTENTS = torch.tensor([[640.0, 480.0], [33.0, 1333.0]])  # width, height


def random_boxes(num=50, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, num, 2, generator=generator, dtype=dtype) * EXTENTS[:, None].to(dtype)
    sizes = 1 + torch.rand(2, num, 2, generator=generator, dtype=dtype) * 300
    return torch.cat([corners, corners + sizes], dim=-1)


def assert_usable(boxes):
    """What ROIAlign, GIoU and the next step rely on."""
    assert boxes.dtype == torch.float32
    assert boxes.isfinite().all()
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    assert (boxes.abs() <= 150 * EXTENTS.repeat(1, 2)[:, None] * 1.001).all()


def test_decoding_against_detectron2():
    boxes, torch_seed = random_boxes(), torch.manual_seed(1)
    deltas = torch.randn(2, 50, 4, generator=torch_seed)
    theirs = Box2BoxTransform(weights=(2.0, 2.0, 1.0, 1.0), scale_clamp=math.log(100_000 / 16))
    expected = theirs.apply_deltas(deltas.flatten(0, 1), boxes.flatten(0, 1)).view_as(boxes)
    torch.testing.assert_close(decode_boxes(deltas, boxes, EXTENTS), expected)
    torch.testing.assert_close(decode_boxes(torch.zeros(2, 50, 4), boxes, EXTENTS), boxes)


def test_a_side_grows_by_a_bounded_factor():
    box = torch.tensor([[[10.0, 10.0, 11.0, 11.0]]])
    grown = decode_boxes(torch.tensor([[[0.0, 0.0, 50.0, 0.0]]]), box, torch.tensor([[1e3, 1e3]]))
    width, height = (grown[0, 0, 2:] - grown[0, 0, :2]).tolist()
    assert width == pytest.approx(100_000 / 16, rel=1e-4)
    assert height == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("extreme", [3.0, 30.0, 1e4, 1e30, 3e38])
def test_no_delta_makes_a_box_that_cannot_be_used(extreme):
    signs = torch.tensor(list(itertools.product([-extreme, 0, extreme], repeat=4)))
    deltas = signs.expand(2, -1, -1)
    boxes = random_boxes(len(signs))
    for _ in range(6):
        boxes = decode_boxes(deltas, boxes, EXTENTS)
        assert_usable(boxes)
    for _ in range(6):  # and back from there
        boxes = decode_boxes(-deltas, boxes, EXTENTS)
        assert_usable(boxes)


def test_limits_are_those_of_the_own_image():
    centres = torch.tensor([[[1e9, -1e9]], [[1e9, -1e9]]])
    boxes = bounded_boxes(centres, torch.full((2, 1, 2), 1e9), EXTENTS)
    for box, (width, height) in zip(boxes[:, 0].tolist(), EXTENTS.tolist(), strict=True):
        assert box == pytest.approx([50 * width, -150 * height, 150 * width, -50 * height])


@pytest.mark.parametrize("size", [0.0, -0.3, -1e9])
def test_sizes_are_at_least_a_hundredth_of_a_pixel(size):
    boxes = bounded_boxes(torch.full((2, 1, 2), 20.0), torch.full((2, 1, 2), size), EXTENTS)
    assert_usable(boxes)
    torch.testing.assert_close(
        boxes[..., 2:] - boxes[..., :2], torch.full((2, 1, 2), 0.01), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_deltas_give_boxes_in_float32(dtype):
    deltas = torch.full((2, 50, 4), 0.125, dtype=dtype)
    boxes = decode_boxes(deltas, random_boxes(), EXTENTS)
    assert boxes.dtype == torch.float32
    assert torch.equal(boxes, decode_boxes(deltas.float(), random_boxes(), EXTENTS))


def test_nan_stays_nan_for_training_to_report():
    deltas = torch.zeros(2, 50, 4)
    deltas[0, 3, 2] = float("nan")
    boxes = decode_boxes(deltas, random_boxes(), EXTENTS)
    assert boxes.isnan().any(dim=2).nonzero().tolist() == [[0, 3]]


def test_gradients():
    deltas = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    boxes = random_boxes(4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda d, b: decode_boxes(d, b, EXTENTS.double()), (deltas, boxes)
    )
