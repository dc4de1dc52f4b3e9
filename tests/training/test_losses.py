import math

import pytest
import torch

from isda.training.losses import dice_loss, focal_cost, soft_iou_terms


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
