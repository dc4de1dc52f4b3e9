import pytest
import torch

from isda.structures import SetPrediction, SetTarget
from isda.training.criterion import MaskCriterion
from isda.training.matching import MaskMatcher
from isda.training.points import inclusion_probabilities, sample_cells


def target(count: int = 3, size: tuple[int, int] = (24, 40)) -> SetTarget:
    """Rectangles of several sizes."""
    generator = torch.Generator().manual_seed(count)
    height, width = size
    masks, boxes = torch.zeros(count, *size), torch.zeros(count, 4)
    for mask, box in zip(masks, boxes, strict=True):
        top = int(torch.randint(height - 6, (), generator=generator))
        left = int(torch.randint(width - 8, (), generator=generator))
        mask[top : top + 6, left : left + 8] = 1
        box.copy_(torch.tensor([(left + 4) / width, (top + 3) / height, 7.7 / width, 5.7 / height]))
    return SetTarget(torch.arange(count) % 2, masks, boxes)


def density_by_loops(boxes, size, num_cells):
    """Half of the cells evenly, half in boxes of twice the sides, each box as much as another."""
    height, width = size
    density = torch.full(size, 0.5 / (height * width), dtype=torch.float64)
    for x, y, w, h in boxes.tolist():
        cells = [
            (row, column)
            for row in range(height)
            for column in range(width)
            if row + 1 > (y - h) * height
            and row < (y + h) * height
            and column + 1 > (x - w) * width
            and column < (x + w) * width
        ]
        for cell in cells:
            density[cell] += 0.5 / len(boxes) / len(cells)
    return (num_cells * density).clamp(max=1)


@pytest.mark.parametrize("count", [0, 1, 3, 30])
def test_probabilities_are_those_of_boxes_filled_one_by_one(count):
    boxes = target(count).boxes if count else torch.zeros(0, 4)
    found = inclusion_probabilities(boxes, (24, 40), 100)
    if count:
        expected = density_by_loops(boxes, (24, 40), 100)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    else:
        torch.testing.assert_close(found, torch.full((24, 40), 100 / 960))
    assert found.sum() <= 100 * 1.0001


def test_every_cell_where_there_are_no_more():
    whole = target()
    assert sample_cells(whole, 960) is whole
    assert sample_cells(whole, 959) is not whole


def test_sampled_masks_are_those_of_the_cells():
    torch.manual_seed(0)
    whole = target()
    sampled = sample_cells(whole, 200)
    rows, columns = sampled.cells
    assert 100 < len(rows) < 250
    assert torch.equal(sampled.masks, whole.masks[:, rows, columns])
    features = torch.randn(7, 32, 48)  # padded
    assert torch.equal(sampled.columns(features), features[:, rows, columns])
    assert torch.equal(whole.columns(features), features[:, :24, :40].flatten(1))


def test_weighted_sums_are_unbiased():
    """Over 400 samples the mean is within four standard errors of the sum over all cells."""
    torch.manual_seed(0)
    whole, values = target(), torch.rand(24, 40)
    sums = torch.stack(
        [
            (values[tuple(sampled.cells)] * sampled.weights).sum()
            for sampled in (sample_cells(whole, 200) for _ in range(400))
        ]
    )
    error = sums.std() / 400**0.5
    assert abs(sums.mean() - values.sum()) < 4 * error
    assert error / values.sum() < 0.01


def predictions(count: int) -> list[SetPrediction]:
    torch.manual_seed(1)
    features = torch.randn(1, 8, 24, 40)
    return [
        SetPrediction(torch.randn(1, 5, 2), torch.randn(1, 5, 8), features, torch.rand(1, 5, 4))
        for _ in range(count)
    ]


def test_costs_and_losses_are_expected_to_be_those_of_all_cells():
    """Dice and IoU are ratios of unbiased sums: their own bias is of second order.

    With a quarter of the cells the mean over 100 samples is off by less than 2 % (four standard
    errors are about 1 %).
    """
    torch.manual_seed(0)
    layers, whole = predictions(2), target()
    matcher = MaskMatcher()
    criterion = MaskCriterion(matcher)
    matches = matcher(layers, [whole])
    samples = [sample_cells(whole, 240) for _ in range(100)]
    exact = criterion.pair_losses(layers, [whole], matches)["loss_mask"]
    losses = [criterion.pair_losses(layers, [s], matches)["loss_mask"] for s in samples]
    torch.testing.assert_close(torch.stack(losses).mean(0), exact, rtol=0.02, atol=0)
    costs = torch.stack([matcher.cost(layers, s, 0) for s in samples])
    torch.testing.assert_close(costs.mean(0), matcher.cost(layers, whole, 0), rtol=0.02, atol=0.02)


def test_all_cells_with_weights_of_one_change_nothing():
    layers, whole = predictions(1), target()
    cells = torch.ones(24, 40).nonzero().T
    listed = SetTarget(whole.classes, whole.masks.flatten(1), whole.boxes, cells, torch.ones(960))
    matcher = MaskMatcher()
    torch.testing.assert_close(matcher.cost(layers, listed, 0), matcher.cost(layers, whole, 0))
    criterion = MaskCriterion(matcher)
    for name, loss in criterion(layers, [listed]).items():
        torch.testing.assert_close(loss, criterion(layers, [whole])[name])


def test_gradients_reach_the_features_at_the_cells_only():
    torch.manual_seed(0)
    features = torch.randn(1, 8, 32, 48, requires_grad=True)
    layers = [SetPrediction(torch.randn(1, 5, 2), torch.randn(1, 5, 8), features)]
    sampled = sample_cells(target(), 200)
    MaskCriterion(MaskMatcher())(layers, [sampled])["loss_mask"].backward()
    touched = features.grad[0].abs().sum(dim=0) > 0
    expected = torch.zeros(32, 48, dtype=torch.bool)
    expected[tuple(sampled.cells)] = True
    assert torch.equal(touched, expected)
