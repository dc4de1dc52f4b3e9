import itertools
import math

import numpy as np
import pytest
import torch

from isda.structures import EmbeddedPrediction, EmbeddedTarget, SetPrediction, SetTarget
from isda.training import matching
from isda.training.matching import EmbeddingMatcher, MaskMatcher, assign

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


# ---- boxes with embedded masks ----

IMAGE_SIZE = (80, 120)  # height, width


def random_boxes(*shape):
    corners = torch.rand(*shape, 2) * 60
    return torch.cat([corners, corners + 2 + 40 * torch.rand(*shape, 2)], dim=-1)


def random_embedded(num_steps=2, batch=2, num_queries=4, num_classes=3, dim=5, seed=0):
    torch.manual_seed(seed)
    return [
        EmbeddedPrediction(
            torch.randn(batch, num_queries, num_classes),
            random_boxes(batch, num_queries),
            torch.randn(batch, num_queries, dim),
        )
        for _ in range(num_steps)
    ]


def random_embedded_target(num_instances, image_size=IMAGE_SIZE, num_classes=3, dim=5):
    return EmbeddedTarget(
        classes=torch.randint(num_classes, (num_instances,)),
        boxes=random_boxes(num_instances),
        masks=torch.rand(num_instances, 4, 4) > 0.5,
        embeddings=torch.randn(num_instances, dim),
        image_size=image_size,
    )


def embedded_cost_by_loops(prediction, target, image, query, instance):
    """istr.md's formula for one pair, with Python's floats (float64)."""
    p = sigmoid(prediction.class_logits[image, query, target.classes[instance]].item())
    focal = -0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p)
    box, other = prediction.boxes[image, query].tolist(), target.boxes[instance].tolist()
    height, width = target.image_size
    scales = (width, height, width, height)
    distance = sum(abs(a - b) / s for a, b, s in zip(box, other, scales, strict=True))
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    overlap_w = max(min(box[2], other[2]) - max(box[0], other[0]), 0)
    overlap_h = max(min(box[3], other[3]) - max(box[1], other[1]), 0)
    overlap = overlap_w * overlap_h
    union = sum(areas) - overlap
    hull_w = max(box[2], other[2]) - min(box[0], other[0])
    hull_h = max(box[3], other[3]) - min(box[1], other[1])
    giou = overlap / union - (hull_w * hull_h - union) / (hull_w * hull_h)
    r, g = prediction.embeddings[image, query].tolist(), target.embeddings[instance].tolist()
    norms = math.sqrt(sum(a * a for a in r)) * math.sqrt(sum(b * b for b in g))
    cosine = sum(a * b for a, b in zip(r, g, strict=True)) / norms
    return 2 * focal + 5 * distance - 2 * giou - 2 * (1 + cosine) / 2


def test_embedded_cost_against_loops():
    predictions = random_embedded()
    targets = [random_embedded_target(3), random_embedded_target(2, image_size=(200, 90))]
    for image, target in enumerate(targets):
        cost = EmbeddingMatcher().cost(predictions, target, image)
        assert cost.shape == (2, 4, len(target.classes))
        assert cost.dtype == torch.float32
        for step, query, instance in itertools.product(*map(range, cost.shape)):
            expected = embedded_cost_by_loops(predictions[step], target, image, query, instance)
            assert cost[step, query, instance].item() == pytest.approx(expected, abs=1e-5)


def test_embedded_cost_weights():
    predictions, target = random_embedded(), random_embedded_target(3)
    weights = (3.0, 5.0, 7.0, 11.0)
    parts = [
        EmbeddingMatcher(*(float(i == j) for j in range(4))).cost(predictions, target, 0)
        for i in range(4)
    ]
    expected = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(EmbeddingMatcher(*weights).cost(predictions, target, 0), expected)


def planted(seed=0):
    """A prediction of which query 4 is the only ground truth, to the last number."""
    (prediction,) = random_embedded(num_steps=1, batch=1, num_queries=6, seed=seed)
    target = random_embedded_target(1)
    prediction.class_logits[0, 4] = torch.where(
        torch.arange(3) == target.classes[0], torch.tensor(9.0), torch.tensor(-9.0)
    )
    prediction.boxes[0, 4], prediction.embeddings[0, 4] = target.boxes[0], target.embeddings[0]
    return prediction, target


@pytest.mark.parametrize("seed", range(5))
def test_a_perfect_query_is_matched(seed):
    prediction, target = planted(seed)
    (match,) = EmbeddingMatcher()([prediction], [target])
    assert match.queries.tolist() == [4]


def test_of_two_alike_in_class_and_box_the_right_embedding_wins():
    prediction, target = planted()
    for name in ("class_logits", "boxes"):
        getattr(prediction, name)[0, 1] = getattr(prediction, name)[0, 4]
    prediction.embeddings[0, 1] = -target.embeddings[0]
    (match,) = EmbeddingMatcher()([prediction], [target])
    assert match.queries.tolist() == [4]
    prediction.embeddings[0, [1, 4]] = prediction.embeddings[0, [4, 1]]
    (match,) = EmbeddingMatcher()([prediction], [target])
    assert match.queries.tolist() == [1]
    blind = EmbeddingMatcher(embedding_cost=0.0).cost([prediction], target, 0)
    assert blind[0, 1] == blind[0, 4]


def test_the_mask_term_sees_no_class():
    prediction, target = planted()
    only_masks = EmbeddingMatcher(0.0, 0.0, 0.0, 2.0)
    before = only_masks.cost([prediction], target, 0)
    target.classes = (target.classes + 1) % 3
    assert torch.equal(only_masks.cost([prediction], target, 0), before)


@pytest.mark.parametrize("counts", [(3, 2), (0, 2), (0, 0), (7, 1)])
def test_embedded_costs_reach_the_host_in_one_transfer(counts, monkeypatch):
    calls = []
    predictions = random_embedded(num_steps=6)
    targets = [random_embedded_target(count) for count in counts]
    for name in ("cpu", "item", "tolist", "__bool__", "__int__", "__float__", "__index__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, original=original, name=name):
            calls.append(name)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    matches = EmbeddingMatcher()(predictions, targets)
    assert calls == ["cpu"]
    assert [len(m.layers) for m in matches] == [6 * min(count, 4) for count in counts]


@pytest.mark.parametrize("name", ["class_logits", "boxes", "embeddings"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_embedded_predictions_that_are_not_finite_are_matched_all_the_same(name, bad):
    predictions = random_embedded()
    getattr(predictions[1], name)[1, 2] = bad
    targets = [random_embedded_target(3), random_embedded_target(2)]
    matches = EmbeddingMatcher()(predictions, targets)
    assert [len(match.layers) for match in matches] == [6, 4]


def test_an_embedding_of_zeros_has_a_finite_cost():
    prediction, target = planted()
    prediction.embeddings[:] = 0
    assert EmbeddingMatcher().cost([prediction], target, 0).isfinite().all()
