import itertools
import math

import pytest
import torch

from isda.structures import EmbeddedPrediction, EmbeddedTarget, SetPrediction, SetTarget
from isda.training import criterion as criterion_module
from isda.training.criterion import EmbeddingCriterion, MaskCriterion, averaged_count
from isda.training.matching import EmbeddingMatcher, MaskMatcher

NUM_LAYERS, BATCH, NUM_QUERIES, NUM_CLASSES, CHANNELS = 3, 2, 5, 4, 6


def random_predictions(dtype=torch.float32):
    torch.manual_seed(0)
    features = torch.randn(BATCH, CHANNELS, 6, 7, dtype=dtype).requires_grad_()
    return [
        SetPrediction(
            torch.randn(BATCH, NUM_QUERIES, NUM_CLASSES, dtype=dtype).requires_grad_(),
            torch.randn(BATCH, NUM_QUERIES, CHANNELS, dtype=dtype).requires_grad_(),
            features,
        )
        for _ in range(NUM_LAYERS)
    ]


def random_targets(counts=(3, 2), valid=((5, 7), (6, 4))):
    torch.manual_seed(1)
    return [
        SetTarget(torch.randint(NUM_CLASSES, (count,)), torch.rand(count, *size))
        for count, size in zip(counts, valid, strict=True)
    ]


def gradients(predictions):
    leaves = [predictions[0].mask_features]
    leaves += [x for p in predictions for x in (p.class_logits, p.kernels)]
    return [leaf.grad for leaf in leaves]


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


@torch.no_grad()
def losses_by_loops(predictions, targets):
    """The formulas of the paper in Python's floats (float64); the matching is taken as given."""
    matches = MaskMatcher()(predictions, targets)
    count = max(sum(len(m.layers) for m in matches) / NUM_LAYERS, 1)
    focal, dice = [0.0] * NUM_LAYERS, [0.0] * NUM_LAYERS
    classes = {}
    for image, (match, target) in enumerate(zip(matches, targets, strict=True)):
        for layer, query, instance in zip(match.layers, match.queries, match.targets, strict=True):
            layer, query = int(layer), int(query)
            classes[layer, image, query] = int(target.classes[instance])
            overlap = squares = 0.0
            height, width = target.masks.shape[1:]
            for row, column in itertools.product(range(height), range(width)):
                kernel = predictions[layer].kernels[image, query].double()
                logit = kernel @ predictions[layer].mask_features[image, :, row, column].double()
                m, g = 1 / (1 + math.exp(-logit)), target.masks[instance, row, column].item()
                overlap, squares = overlap + m * g, squares + m * m + g * g
            dice[layer] += 1 - 2 * overlap / (squares + 0.002)
    indices = [NUM_LAYERS, BATCH, NUM_QUERIES, NUM_CLASSES]
    for layer, image, query, label in itertools.product(*map(range, indices)):
        logit = predictions[layer].class_logits[image, query, label].item()
        p = 1 / (1 + math.exp(-logit))
        if classes.get((layer, image, query)) == label:
            focal[layer] -= 0.25 * (1 - p) ** 2 * log_sigmoid(logit)
        else:
            focal[layer] -= 0.75 * p**2 * log_sigmoid(-logit)
    return [2 * x / count for x in focal], [3 * x / count for x in dice]


@pytest.mark.parametrize("counts", [(3, 2), (0, 2), (0, 0), (7, 1)])
def test_losses_against_loops(counts):
    predictions, targets = random_predictions(), random_targets(counts)
    losses = MaskCriterion(MaskMatcher())(predictions, targets)
    focal, dice = losses_by_loops(predictions, targets)
    names = ["0", "1", None]
    expected = {}
    for name, values in (("loss_cls", focal), ("loss_mask", dice)):
        for suffix, value in zip(names, values, strict=True):
            expected[f"{name}_{suffix}" if suffix else name] = value
    found = {name: loss.item() for name, loss in losses.items()}
    assert found == pytest.approx(expected, rel=1e-5)
    assert all(loss.dtype == torch.float32 and loss.dim() == 0 for loss in losses.values())


def test_names_of_one_layer():
    losses = MaskCriterion(MaskMatcher())(random_predictions()[:1], random_targets())
    assert list(losses) == ["loss_cls", "loss_mask"]


def test_weights():
    args = (random_predictions(), random_targets())
    once = MaskCriterion(MaskMatcher(), class_weight=1, mask_weight=1)(*args)
    weighted = MaskCriterion(MaskMatcher(), class_weight=5, mask_weight=7)(*args)
    for name, loss in once.items():
        factor = 5 if name.startswith("loss_cls") else 7
        assert weighted[name].item() == pytest.approx(factor * loss.item(), rel=1e-6)


def test_padding_is_not_looked_at():
    predictions, targets = random_predictions(), random_targets()
    before = MaskCriterion(MaskMatcher())(predictions, targets)
    with torch.no_grad():
        predictions[0].mask_features[0, :, 5:] = 100
        predictions[0].mask_features[1, :, :, 4:] = 100
    after = MaskCriterion(MaskMatcher())(predictions, targets)
    assert before == after
    sum(after.values()).backward()
    grad = predictions[0].mask_features.grad
    assert not grad[0, :, 5:].any()
    assert not grad[1, :, :, 4:].any()
    assert grad[0, :, :5].all()


def test_only_matched_kernels_receive_a_mask_gradient():
    predictions, targets = random_predictions(), random_targets()
    matches = MaskMatcher()(predictions, targets)
    losses = MaskCriterion(MaskMatcher())(predictions, targets)
    sum(loss for name, loss in losses.items() if name.startswith("loss_mask")).backward()
    for layer, prediction in enumerate(predictions):
        for image, match in enumerate(matches):
            touched = prediction.kernels.grad[image].any(dim=1).nonzero()[:, 0].tolist()
            assert touched == sorted(match.queries[match.layers == layer].tolist())
        assert prediction.class_logits.grad is None


def test_without_instances_every_input_still_has_a_gradient():
    predictions = random_predictions()
    losses = MaskCriterion(MaskMatcher())(predictions, random_targets((0, 0)))
    sum(losses.values()).backward()
    for gradient in gradients(predictions):
        assert gradient is not None
        assert gradient.isfinite().all()
    assert all(losses[name] == 0 for name in ("loss_mask", "loss_mask_0", "loss_mask_1"))
    assert all(p.class_logits.grad.all() for p in predictions)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_recomputed_chunks_change_nothing(rows, monkeypatch):
    results = []
    for elements in (2**22, rows * 35):
        monkeypatch.setattr(criterion_module, "_CHUNK_ELEMENTS", elements)
        predictions = random_predictions()
        losses = MaskCriterion(MaskMatcher())(
            predictions, random_targets((4, 5), valid=((5, 7), (5, 7)))
        )
        sum(losses.values()).backward()
        results.append([*losses.values(), *gradients(predictions)])
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole)


def test_chunks_keep_memory_from_growing_with_the_instances(monkeypatch):
    def saved_elements(elements):
        monkeypatch.setattr(criterion_module, "_CHUNK_ELEMENTS", elements)
        predictions, saved = random_predictions(), {}

        def pack(tensor):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        targets = random_targets((5, 5), valid=((6, 7), (6, 7)))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses = MaskCriterion(MaskMatcher())(predictions, targets)
        assert losses
        return sum(saved.values()) / 4

    one_mask_matrix = NUM_LAYERS * 5 * 6 * 7
    assert saved_elements(2**22) - saved_elements(42) > 2 * one_mask_matrix


def test_predictions_that_are_not_finite_show_in_the_loss():
    predictions = random_predictions()
    with torch.no_grad():
        predictions[1].kernels[0] = float("nan")
    losses = MaskCriterion(MaskMatcher())(predictions, random_targets())
    # The culprit is named: no other term turns non-finite with it.
    assert [name for name, loss in losses.items() if not loss.isfinite()] == ["loss_mask_1"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_predictions_are_lifted_to_float32(dtype):
    exact, targets = random_predictions(), random_targets()
    rounded = random_predictions(dtype)
    for low, full in zip(rounded, exact, strict=True):  # compare at the same, rounded, numbers
        with torch.no_grad():
            full.class_logits.copy_(low.class_logits)
            full.kernels.copy_(low.kernels)
            full.mask_features.copy_(low.mask_features)
    criterion = MaskCriterion(MaskMatcher())
    expected = criterion(exact, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = criterion(rounded, targets)
    for name, loss in found.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name])


@pytest.mark.parametrize(("count", "expected"), [(0, 1), (0.5, 1), (1, 1), (7.5, 7.5)])
def test_averaged_count_is_at_least_one(count, expected):
    assert averaged_count(count, torch.device("cpu")).item() == expected


# ---- boxes with embedded masks ----

DIM, SIDE = 5, 4
PAIR_LOSSES = ("loss_bbox", "loss_giou", "loss_embed", "loss_mask")
PROJECTION = torch.randn(DIM, SIDE * SIDE, generator=torch.Generator().manual_seed(3))


def decode(embeddings):
    return (embeddings @ PROJECTION.to(embeddings.dtype)).sigmoid().view(-1, SIDE, SIDE)


def random_boxes(*shape):
    corners = torch.rand(*shape, 2) * 60
    return torch.cat([corners, corners + 2 + 40 * torch.rand(*shape, 2)], dim=-1)


def random_embedded():
    torch.manual_seed(0)
    return [
        EmbeddedPrediction(
            torch.randn(BATCH, NUM_QUERIES, NUM_CLASSES).requires_grad_(),
            random_boxes(BATCH, NUM_QUERIES).requires_grad_(),
            torch.randn(BATCH, NUM_QUERIES, DIM).requires_grad_(),
        )
        for _ in range(NUM_LAYERS)
    ]


def random_embedded_targets(counts=(3, 2), sizes=((80, 120), (200, 90))):
    torch.manual_seed(1)
    return [
        EmbeddedTarget(
            classes=torch.randint(NUM_CLASSES, (count,)),
            boxes=random_boxes(count),
            masks=torch.rand(count, SIDE, SIDE) > 0.5,
            embeddings=torch.randn(count, DIM),
            image_size=size,
        )
        for count, size in zip(counts, sizes, strict=True)
    ]


def embedding_criterion(**weights):
    return EmbeddingCriterion(EmbeddingMatcher(), decode, **weights)


def giou_by_hand(box, other):
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    overlap = max(min(box[2], other[2]) - max(box[0], other[0]), 0)
    overlap *= max(min(box[3], other[3]) - max(box[1], other[1]), 0)
    hull = max(box[2], other[2]) - min(box[0], other[0])
    hull *= max(box[3], other[3]) - min(box[1], other[1])
    union = sum(areas) - overlap
    return overlap / union - (hull - union) / hull


@torch.no_grad()
def pair_losses_by_loops(predictions, targets):
    """istr.md's table in Python's floats; the matching is taken as given."""
    matches = EmbeddingMatcher()(predictions, targets)
    count = max(sum(len(m.layers) for m in matches) / NUM_LAYERS, 1)
    sums = {name: [0.0] * NUM_LAYERS for name in PAIR_LOSSES}
    for image, (match, target) in enumerate(zip(matches, targets, strict=True)):
        for layer, query, instance in zip(match.layers, match.queries, match.targets, strict=True):
            box = predictions[layer].boxes[image, query].tolist()
            other = target.boxes[instance].tolist()
            scales = 2 * target.image_size[::-1]
            sums["loss_bbox"][layer] += sum(
                abs(a - b) / scale for a, b, scale in zip(box, other, scales, strict=True)
            )
            sums["loss_giou"][layer] += 1 - giou_by_hand(box, other)
            r = predictions[layer].embeddings[image, query].double()
            errors = (r - target.embeddings[instance]).tolist()
            sums["loss_embed"][layer] += sum(e * e for e in errors) / DIM
            m = decode(r[None]).flatten().tolist()
            g = target.masks[instance].flatten().tolist()
            overlap = sum(a * b for a, b in zip(m, g, strict=True))
            squares = sum(a * a for a in m) + sum(b * b for b in g)
            sums["loss_mask"][layer] += 1 - 2 * overlap / (squares + 1e-5)
    weights = {"loss_bbox": 5, "loss_giou": 2, "loss_embed": 2, "loss_mask": 2}
    return {name: [weights[name] * x / count for x in sums[name]] for name in PAIR_LOSSES}


@pytest.mark.parametrize("counts", [(3, 2), (0, 2), (0, 0), (7, 1)])
def test_embedding_losses_against_loops(counts):
    predictions, targets = random_embedded(), random_embedded_targets(counts)
    losses = embedding_criterion()(predictions, targets)
    names = ["0", "1", None]
    expected = {}
    for name, values in pair_losses_by_loops(predictions, targets).items():
        for suffix, value in zip(names, values, strict=True):
            expected[f"{name}_{suffix}" if suffix else name] = value
    found = {n: loss.item() for n, loss in losses.items() if not n.startswith("loss_cls")}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert all(loss.dtype == torch.float32 and loss.dim() == 0 for loss in losses.values())
    # The focal loss is the one that ISDA's tests compare with loops.
    as_isda = [SetPrediction(p.class_logits, None, None) for p in predictions]
    matches = EmbeddingMatcher()(predictions, targets)
    shared = MaskCriterion(lambda *_: matches)
    shared.pair_losses = lambda *_: {}
    for name, loss in shared(as_isda, targets).items():
        torch.testing.assert_close(losses[name], loss)


@pytest.mark.parametrize("name", ["class", "box", "giou", "embedding", "mask"])
def test_embedding_weights(name):
    args = (random_embedded(), random_embedded_targets())
    zeros = {f"{n}_weight": 0.0 for n in ("class", "box", "giou", "embedding", "mask")}
    losses = embedding_criterion(**(zeros | {f"{name}_weight": 3.0}))(*args)
    once = embedding_criterion(**{f"{name}_weight": 1.0})(*args)
    short = {"class": "loss_cls", "box": "loss_bbox", "embedding": "loss_embed"}
    for key, loss in losses.items():
        weighted = key.startswith(short.get(name, f"loss_{name}"))
        assert loss.item() == pytest.approx(3 * once[key].item() if weighted else 0, rel=1e-5), key
    assert any(loss > 0 for loss in losses.values())


def test_each_loss_reaches_what_it_is_about():
    reached = {
        "loss_cls": {"class_logits"},
        "loss_bbox": {"boxes"},
        "loss_giou": {"boxes"},
        "loss_embed": {"embeddings"},
        "loss_mask": {"embeddings"},
    }
    for name, expected in reached.items():
        predictions, targets = random_embedded(), random_embedded_targets()
        losses = embedding_criterion()(predictions, targets)
        matches = EmbeddingMatcher()(predictions, targets)
        losses[f"{name}_1"].backward()
        for field in ("class_logits", "boxes", "embeddings"):
            grad = getattr(predictions[1], field).grad
            assert (grad is not None and bool(grad.any())) == (field in expected), (name, field)
            if field in expected and name != "loss_cls":
                for image, match in enumerate(matches):
                    touched = grad[image].any(dim=1).nonzero()[:, 0].tolist()
                    assert touched == sorted(match.queries[match.layers == 1].tolist())


def test_without_instances_every_embedded_input_still_has_a_gradient():
    predictions = random_embedded()
    losses = embedding_criterion()(predictions, random_embedded_targets((0, 0)))
    sum(losses.values()).backward()
    for prediction in predictions:
        for field in ("class_logits", "boxes", "embeddings"):
            assert getattr(prediction, field).grad.isfinite().all(), field
        assert prediction.class_logits.grad.all()
    assert all(loss == 0 for name, loss in losses.items() if not name.startswith("loss_cls"))


def test_embedded_predictions_that_are_not_finite_show_in_their_loss():
    predictions = random_embedded()
    with torch.no_grad():
        predictions[1].boxes[0] = float("nan")
    losses = embedding_criterion()(predictions, random_embedded_targets())
    culprits = [name for name, loss in losses.items() if not loss.isfinite()]
    assert culprits == ["loss_bbox_1", "loss_giou_1"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_embedded_predictions_are_lifted_to_float32(dtype):
    exact, rounded = random_embedded(), random_embedded()
    for one, other in zip(exact, rounded, strict=True):
        for field in ("class_logits", "embeddings"):
            low = getattr(other, field).detach().to(dtype)
            setattr(other, field, low)
            setattr(one, field, low.float())
    expected = embedding_criterion()(exact, random_embedded_targets())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = embedding_criterion()(rounded, random_embedded_targets())
    for name, loss in found.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name])


def test_another_mask_loss():
    """L1 of the masks; summed over pairs, divided by their number, in chunks or not."""

    def mean_error(probs, targets, weights=None):
        assert weights is None
        return (probs - targets).abs().mean(dim=1)

    predictions, targets = random_predictions(), random_targets()
    losses = MaskCriterion(MaskMatcher(), mask_loss=mean_error)(predictions, targets)
    errors = []
    for image, (match, target) in enumerate(zip(MaskMatcher()(predictions, targets), targets)):
        height, width = target.masks.shape[1:]
        for layer, query, instance in zip(match.layers, match.queries, match.targets):
            if layer == NUM_LAYERS - 1:
                kernel = predictions[layer].kernels[image, query]
                features = predictions[layer].mask_features[image, :, :height, :width]
                probs = torch.einsum("c,chw->hw", kernel, features).sigmoid()
                errors.append((probs - target.masks[instance]).abs().mean())
    torch.testing.assert_close(losses["loss_mask"], 3 * torch.stack(errors).mean())
