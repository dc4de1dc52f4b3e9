import math

import pytest
import torch
from torchvision.ops import generalized_box_iou

from isda.training.losses import dice_loss, focal_cost, generalized_iou, soft_iou_terms


def test_dice_against_loops():
    torch.manual_seed(0)
    probs, targets = torch.rand(3, 7), torch.rand(3, 7)
    targets[2] = 0
    for found, p_row, g_row in zip(
        dice_loss(probs, targets), probs.tolist(), targets.tolist(), strict=True
    ):
        overlap = sum(p * g for p, g in zip(p_row, g_row, strict=True))
        total = sum(p * p for p in p_row) + sum(g * g for g in g_row) + 0.002
        assert found.item() == pytest.approx(1 - 2 * overlap / total, abs=1e-6)


def test_dice_gradient():
    torch.manual_seed(0)
    probs = torch.rand(3, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: dice_loss(p, targets), probs)


def test_focal_cost_against_loops():
    torch.manual_seed(0)
    logits = 5 * torch.randn(4, 3)
    logits[0] = torch.tensor([60.0, -60.0, 0.0])  # where the logarithm needs its guard
    for found, logit in zip(focal_cost(logits).flatten(), logits.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        positive = -0.25 * (1 - p) ** 2 * math.log(max(p, 1e-12))
        negative = -0.75 * p**2 * math.log(max(1 - p, 1e-12))
        assert found.item() == pytest.approx(positive - negative, rel=1e-3, abs=1e-6)


def test_focal_cost_is_finite_for_any_logit():
    assert focal_cost(torch.tensor([-1e30, -200.0, 200.0, 1e30])).isfinite().all()


def test_soft_iou_terms_add_up_over_pixels():
    torch.manual_seed(0)
    kernels, features, masks = torch.randn(5, 4), torch.randn(4, 9), torch.rand(3, 9)
    overlap, area = soft_iou_terms(kernels, features, masks)
    for query in range(5):
        probs = [(kernels[query] @ features[:, p]).sigmoid().item() for p in range(9)]
        assert area[query].item() == pytest.approx(sum(probs), rel=1e-5)
        for target in range(3):
            expected = sum(m * g for m, g in zip(probs, masks[target].tolist(), strict=True))
            assert overlap[query, target].item() == pytest.approx(expected, rel=1e-5)
    first = soft_iou_terms(kernels, features[:, :4], masks[:, :4])
    rest = soft_iou_terms(kernels, features[:, 4:], masks[:, 4:])
    torch.testing.assert_close(first[0] + rest[0], overlap)
    torch.testing.assert_close(first[1] + rest[1], area)


def test_focal_cost_guards_its_logarithm_where_asked():
    logit = torch.tensor(-60.0)
    assert focal_cost(logit, log_eps=1e-8).item() == pytest.approx(-0.25 * math.log(1e-8))
    assert focal_cost(logit).item() == pytest.approx(-0.25 * math.log(1e-12))


def random_boxes(num, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    corners = 50 * torch.rand(num, 2, generator=generator, dtype=dtype)
    sizes = 1 + 40 * torch.rand(num, 2, generator=generator, dtype=dtype)
    return torch.cat([corners, corners + sizes], dim=1)


def test_generalized_iou_against_torchvision():
    boxes, others = random_boxes(30), random_boxes(20, seed=1)
    expected = generalized_box_iou(boxes, others)
    torch.testing.assert_close(generalized_iou(boxes[:, None], others), expected)
    torch.testing.assert_close(generalized_iou(boxes[:20], others), expected[:20].diag())
    torch.testing.assert_close(generalized_iou(boxes, boxes), torch.ones(30))
    assert expected.min() < -0.1
    assert expected.max() > 0.5


def test_generalized_iou_is_finite_for_degenerate_boxes():
    boxes = [[5, 5, 5, 5], [5, 5, 5, 9], [0, 0, 10, 10], [-1e5, -1e5, 1e5, 1e5], [7, 7, 7, 7]]
    boxes += [[0, 0, 1, 1], [0, 0, 0.01, 0.01], [-1e17, -1e17, 1e17, 1e17]]
    boxes = torch.tensor(boxes, dtype=torch.float32, requires_grad=True)
    iou = generalized_iou(boxes[:, None], boxes)
    assert iou.isfinite().all()
    assert ((iou >= -1) & (iou <= 1.00001)).all()
    (grad,) = torch.autograd.grad(iou.sum(), boxes)
    assert grad.isfinite().all()
    # A box of 0.01 pixels is still one.
    assert iou[6, 6].item() == pytest.approx(1, abs=2e-3)


def test_generalized_iou_lets_nan_through():
    boxes = torch.tensor([[0.0, 0.0, float("nan"), 5.0], [0.0, 0.0, 5.0, 5.0]])
    assert generalized_iou(boxes, boxes[1]).isnan().tolist() == [True, False]


def test_generalized_iou_gradient():
    boxes = random_boxes(6, dtype=torch.float64).requires_grad_()
    others = random_boxes(6, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(generalized_iou, (boxes, others))
