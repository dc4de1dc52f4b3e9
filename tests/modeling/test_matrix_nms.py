"""Matrix NMS and point NMS against loops and a worked example."""

import math

import pytest
import torch

from isda.modeling.matrix_nms import matrix_nms, point_nms


def looped(scores, classes, masks, kernel, sigma):
    """The definition, mask by mask, in float64."""

    def iou(i, j):
        if classes[i] != classes[j]:
            return 0.0
        return (masks[i] & masks[j]).sum().item() / max((masks[i] | masks[j]).sum().item(), 1)

    def f(x):
        return math.exp(-sigma * x**2) if kernel == "gaussian" else 1 - x

    lowered = []
    for j, score in enumerate(scores.tolist()):
        factors = [1.0]
        for i in range(j):
            worst = max([iou(k, i) for k in range(i)], default=0.0)
            factors.append(f(iou(i, j)) / max(f(worst), 1e-6 if kernel == "linear" else 0))
        lowered.append(score * min(factors))
    return torch.tensor(lowered, dtype=torch.float64)


def nested(*sizes):
    return torch.stack([torch.arange(20) < size for size in sizes])


def test_worked_example():
    """IoUs .8 of the first two, .75 of the first and third, .6 of the last two."""
    scores = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
    masks = nested(12, 15, 9)
    lowered = matrix_nms(scores, torch.zeros(3, dtype=torch.long), masks)
    assert lowered.tolist() == pytest.approx([0.9, 0.2224, 0.2273], abs=5e-5)
    assert matrix_nms(scores, torch.arange(3), masks).equal(scores)


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_equals_loops_and_never_rises(kernel):
    torch.manual_seed(0)
    scores = torch.rand(40, dtype=torch.float64).sort(descending=True).values
    classes = torch.randint(3, (40,))
    masks = torch.rand(40, 6, 7) < torch.rand(40, 1, 1)
    lowered = matrix_nms(scores, classes, masks, kernel, sigma=1.5)
    expected = looped(scores, classes, masks, kernel, 1.5)
    torch.testing.assert_close(lowered, expected, rtol=1e-5, atol=1e-6)
    assert (lowered <= scores).all()


def test_identical_masks_with_the_linear_kernel():
    lowered = matrix_nms(torch.ones(3), torch.zeros(3, dtype=torch.long), nested(5, 5, 5), "linear")
    assert lowered.tolist() == [1, 0, 0]


def test_large_masks_under_autocast():
    """Counts above what half precision holds, 65504, and above what bfloat16 counts."""
    masks = torch.ones(2, 260, 260, dtype=torch.bool)
    masks[1, 0, 0] = False
    scores, classes = torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = matrix_nms(scores, classes, masks)
    iou = (260**2 - 1) / 260**2
    assert lowered.tolist() == pytest.approx([0.9, 0.8 * math.exp(-2 * iou**2)], rel=1e-6)


def test_nothing_and_an_unknown_kernel():
    none = torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4, 4).bool()
    assert matrix_nms(*none).shape == (0,)
    with pytest.raises(ValueError, match="one of gaussian, linear, got 'round'"):
        matrix_nms(*none, kernel="round")


def test_point_nms_keeps_what_no_earlier_neighbour_exceeds():
    torch.manual_seed(0)
    probs = torch.rand(2, 5, 5).mul(8).round().div(8)  # with ties
    found = point_nms(probs)
    for c in range(2):
        for i in range(5):
            for j in range(5):
                around = probs[c, max(i - 1, 0) : i + 1, max(j - 1, 0) : j + 1]
                kept = probs[c, i, j] == around.max()
                assert found[c, i, j] == (probs[c, i, j] if kept else 0)
