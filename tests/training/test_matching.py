import itertools
import math

import numpy as np
import pytest
import torch

from isda.structures import SetPrediction, SetTarget
from isda.training import matching
from isda.training.matching import MaskMatcher, assign

CELLS = (5, 6)  # of the padded batch


def random_predictions(num_layers=2, batch=2, num_queries=4, num_classes=3, channels=4):
    torch.manual_seed(0)
    features = torch.randn(batch, channels, *CELLS)
    return [
        SetPrediction(
            torch.randn(batch, num_queries, num_classes),
            torch.randn(batch, num_queries, channels),
            features,
        )
        for _ in range(num_layers)
    ]


def random_target(num_instances, valid=(4, 5), num_classes=3):
    return SetTarget(
        torch.randint(num_classes, (num_instances,)), torch.rand(num_instances, *valid)
    )


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def cost_by_loops(prediction, target, image, query, instance):
    """isda.md's formula for one pair, with Python's floats (float64)."""
    p = sigmoid(prediction.class_logits[image, query, target.classes[instance]].item())
    positive = -0.25 * (1 - p) ** 2 * math.log(p + 1e-12)
    negative = -0.75 * p**2 * math.log(1 - p + 1e-12)
    overlap = predicted = given = 0.0
    height, width = target.masks.shape[1:]
    for row, column in itertools.product(range(height), range(width)):
        kernel = prediction.kernels[image, query].double()
        logit = kernel @ prediction.mask_features[image, :, row, column].double()
        m, g = sigmoid(logit.item()), target.masks[instance, row, column].item()
        overlap, predicted, given = overlap + m * g, predicted + m, given + g
    iou = overlap / (predicted + given - overlap + 1e-6)
    return 2 * (positive - negative) + 3 * (1 - iou)


def test_cost_against_loops():
    predictions = random_predictions()
    targets = [random_target(3), random_target(2, valid=(5, 6))]
    for image, target in enumerate(targets):
        cost = MaskMatcher().cost(predictions, target, image)
        assert cost.shape == (2, 4, len(target.classes))
        assert cost.dtype == torch.float32
        for layer, query, instance in itertools.product(*map(range, cost.shape)):
            expected = cost_by_loops(predictions[layer], target, image, query, instance)
            assert cost[layer, query, instance].item() == pytest.approx(expected, abs=1e-5)


def test_cost_weights():
    predictions, target = random_predictions(), random_target(3)
    both = MaskMatcher(5.0, 7.0).cost(predictions, target, 0)
    classes = MaskMatcher(1.0, 0.0).cost(predictions, target, 0)
    masks = MaskMatcher(0.0, 1.0).cost(predictions, target, 0)
    torch.testing.assert_close(both, 5 * classes + 7 * masks)


@pytest.mark.parametrize(
    ("num_queries", "num_targets"), [(5, 3), (4, 4), (4, 1), (3, 0), (3, 5), (1, 4)]
)
def test_assignment_is_the_cheapest(num_queries, num_targets):
    cost = np.random.default_rng(0).random((num_queries, num_targets))
    queries, targets = assign(cost)
    pairs = min(num_queries, num_targets)
    assert len(set(queries)) == len(set(targets)) == pairs
    cheapest = min(
        sum(cost[q, t] for q, t in zip(some, others, strict=True))
        for some in itertools.permutations(range(num_queries), pairs)
        for others in itertools.combinations(range(num_targets), pairs)
    )
    assert cost[queries, targets].sum() == pytest.approx(cheapest)


@pytest.mark.parametrize("counts", [(3, 2), (0, 2), (0, 0), (7, 1)])
def test_matches_of_a_batch(counts):
    predictions = random_predictions(num_layers=3)
    targets = [random_target(count) for count in counts]
    matcher = MaskMatcher()
    for image, (match, target) in enumerate(
        zip(matcher(predictions, targets), targets, strict=True)
    ):
        pairs = min(4, len(target.classes))
        assert match.layers.tolist() == [layer for layer in range(3) for _ in range(pairs)]
        for indices in (match.layers, match.queries, match.targets):
            assert indices.dtype == torch.int64
        cost = matcher.cost(predictions, target, image).numpy()
        for layer in range(3):
            here = match.layers == layer
            queries, instances = assign(cost[layer])
            assert match.queries[here].tolist() == queries.tolist()
            assert match.targets[here].tolist() == instances.tolist()


def test_perfect_predictions_are_matched_to_their_targets():
    predictions = random_predictions(num_layers=1, batch=1, channels=4)
    features = torch.full((1, 4, 2, 2), -9.0)
    for query, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        features[0, query, row, column] = 9.0
    predictions[0].kernels, predictions[0].mask_features = torch.eye(4)[None], features
    masks = torch.zeros(2, 2, 2)
    masks[0, 1, 1] = masks[1, 0, 1] = 1
    (match,) = MaskMatcher(class_cost=0.0)(predictions, [SetTarget(torch.tensor([0, 1]), masks)])
    assert sorted(zip(match.queries.tolist(), match.targets.tolist(), strict=True)) == [
        (1, 1),
        (3, 0),
    ]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_costs_that_are_not_finite_are_avoided(bad):
    cost = np.array([[bad, 1.0], [2.0, bad], [bad, bad]])
    queries, targets = assign(cost)
    assert list(zip(queries, targets, strict=True)) == [(0, 1), (1, 0)]
    queries, targets = assign(np.full((3, 2), bad))
    assert len(queries) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_are_matched_all_the_same(bad):
    predictions = random_predictions()
    predictions[0].class_logits[0, 1, 2] = bad
    predictions[1].kernels[1] = bad
    matches = MaskMatcher()(predictions, [random_target(3), random_target(2)])
    assert [len(match.layers) for match in matches] == [6, 4]


def test_chunks_change_nothing(monkeypatch):
    predictions, target = random_predictions(), random_target(3)
    terms = matching.soft_iou_terms
    whole = MaskMatcher().cost(predictions, target, 0)
    for elements in (1, 24, 8 * 7):  # one, three and seven pixels for 2 layers × 4 queries
        monkeypatch.setattr(matching, "_CHUNK_ELEMENTS", elements)
        calls = []

        def counted(*args, calls=calls):
            calls.append(args[1].shape[1])
            return terms(*args)

        with monkeypatch.context() as patch:
            patch.setattr(matching, "soft_iou_terms", counted)
            chunked = MaskMatcher().cost(predictions, target, 0)
        assert max(calls) == max(elements // 8, 1)
        assert sum(calls) == 4 * 5
        torch.testing.assert_close(chunked, whole)


@pytest.mark.parametrize("counts", [(3, 2), (0, 0)])
def test_costs_reach_the_host_in_one_transfer(counts, monkeypatch):
    calls = []
    for name in ("cpu", "item", "tolist", "__bool__", "__int__", "__float__", "__index__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, original=original, name=name):
            calls.append(name)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    MaskMatcher()(random_predictions(num_layers=6), [random_target(c) for c in counts])
    assert calls == ["cpu"]


def test_matching_needs_no_gradient():
    predictions = random_predictions()
    for prediction in predictions:
        prediction.kernels.requires_grad_()
        prediction.class_logits.requires_grad_()
    costs = []
    matcher = MaskMatcher()
    original = matcher.cost
    matcher.cost = lambda *args: costs.append(original(*args)) or costs[-1]
    matcher(predictions, [random_target(3), random_target(2)])
    assert len(costs) == 2
    assert not any(cost.requires_grad for cost in costs)
