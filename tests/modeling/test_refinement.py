import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes
from torch import nn

from isda.modeling.initialization import prior_bias
from isda.modeling.refinement import (
    DynamicConvolution,
    LearnedQueries,
    RefinementHead,
    RefinementStep,
    build_pooler,
    image_features,
)

STRIDES = (4, 8, 16, 32)
SMALL = {"hidden_dim": 16, "num_heads": 4, "feedforward_dim": 24, "dynamic_dim": 8, "roi_size": 3}


def small_step(num_classes=3, embedding_dim=5, **sizes):
    return RefinementStep(num_classes=num_classes, embedding_dim=embedding_dim, **(SMALL | sizes))


def small_head(num_steps=3):
    torch.manual_seed(0)
    return RefinementHead([small_step() for _ in range(num_steps)], build_pooler(STRIDES, 3))


def random_levels(channels=16, height=64, width=96, batch=2):
    torch.manual_seed(1)
    return [torch.randn(batch, channels, height // s, width // s) for s in STRIDES]


# ---- learned queries and the image feature ----


def test_image_feature_against_loops():
    levels, sizes = random_levels(), [(64, 96), (33, 50)]
    features = image_features(levels, sizes)
    assert features.shape == (2, 16)
    for image, (height, width) in enumerate(sizes):
        for channel in (0, 7, 15):
            expected = 0.0
            for level, stride in zip(levels, STRIDES, strict=True):
                rows, columns = range(0, height, stride), range(0, width, stride)
                cells = [
                    level[image, channel, y // stride, x // stride].item()
                    for y in rows
                    for x in columns
                ]
                expected += sum(cells) / len(cells)
            assert features[image, channel].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("planted", [1e6, float("nan")])
def test_padded_cells_do_not_count(planted):
    levels, sizes = random_levels(), [(33, 50), (64, 96)]
    expected = image_features(levels, sizes)
    for level, stride in zip(levels, STRIDES, strict=True):
        level[0, :, math.ceil(33 / stride) :] = planted
        level[0, :, :, math.ceil(50 / stride) :] = planted
    assert torch.equal(image_features(levels, sizes), expected)


def test_queries_start_from_the_whole_unpadded_image():
    sizes, extents = [(64, 96), (33, 50)], torch.tensor([[96.0, 64.0], [50.0, 33.0]])
    levels = random_levels()
    queries = LearnedQueries(num_queries=4, hidden_dim=16)
    features, boxes = queries(levels, sizes, extents)
    assert boxes[0].tolist() == [[0, 0, 96, 64]] * 4
    assert boxes[1].tolist() == [[0, 0, 50, 33]] * 4
    torch.testing.assert_close(
        features, queries.features.weight + image_features(levels, sizes)[:, None]
    )
    without = LearnedQueries(num_queries=4, hidden_dim=16, image_feature=False)
    features, _ = without(levels, sizes, extents)
    assert torch.equal(features, without.features.weight.expand(2, 4, 16))


def test_learned_boxes_may_have_become_negative():
    queries = LearnedQueries(num_queries=2, hidden_dim=16)
    with torch.no_grad():
        queries.boxes.weight[1] = torch.tensor([0.5, 0.5, -0.2, 0.0])
    _, boxes = queries(random_levels(), [(64, 96)] * 2, torch.tensor([[96.0, 64.0]] * 2))
    assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_embedding_is_normal():
    torch.manual_seed(0)
    features = LearnedQueries(num_queries=300, hidden_dim=256).features.weight
    assert features.mean().item() == pytest.approx(0, abs=0.02)
    assert features.std().item() == pytest.approx(1, abs=0.02)


# ---- one step ----


def test_number_of_parameters():
    step = RefinementStep(num_classes=80, embedding_dim=60)
    count = sum(p.numel() for p in step.parameters())
    assert count == 13_581_072
    assert 6 * count == 81_486_432


@pytest.mark.parametrize("num_classes", [1, 4, 8, 16, 60, 64, 80, 256])
def test_only_the_class_bias_is_the_prior(num_classes):
    # Sizes that a rule by shape would confuse with K: 4 deltas, 60 embedding numbers, 64 dynamic
    # channels and 16 or 256 channels.
    step = RefinementStep(
        **(SMALL | {"dynamic_dim": 64, "hidden_dim": 256 if num_classes > 16 else 16}),
        num_classes=num_classes,
        embedding_dim=60,
    )
    touched = [n for n, p in step.named_parameters() if ((p + 4.595).abs() < 0.01).any()]
    assert touched == ["classes.bias"]
    assert torch.equal(step.classes.bias, torch.full((num_classes,), prior_bias()))


def test_initial_values():
    torch.manual_seed(0)
    step = RefinementStep(num_classes=80)
    for name, parameter in step.named_parameters():
        if parameter.dim() > 1:
            bound = math.sqrt(6 / sum(parameter.shape))
            assert parameter.abs().max() <= bound, name
            assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name
    for name, module in step.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert (module.bias == 0).all(), name
    assert (step.self_attn.in_proj_bias == 0).all()
    assert (step.self_attn.out_proj.bias == 0).all()
    assert 0 < step.linear1.bias.abs().max() <= 1 / math.sqrt(256)


def test_steps_are_initialised_separately():
    first, second, _ = small_head().steps
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        if one.dim() > 1:
            assert not torch.equal(one, other), name


def test_dynamic_convolution_against_loops():
    torch.manual_seed(0)
    module = DynamicConvolution(hidden_dim=6, dynamic_dim=4, roi_size=2).double()
    for norm in (module.norm1, module.norm2, module.norm3):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    queries = torch.randn(2, 3, 6, dtype=torch.float64)
    rois = torch.randn(6, 6, 2, 2, dtype=torch.float64)
    found = module(queries, rois)
    assert found.shape == (2, 3, 6)
    for image in range(2):
        for query in range(3):
            numbers = module.dynamic_layer(queries[image, query])
            first, second = numbers[:24].reshape(6, 4), numbers[24:].reshape(4, 6)
            cells = []
            for y in range(2):
                for x in range(2):
                    cell = rois[3 * image + query, :, y, x]
                    cell = F.elu(module.norm1(cell @ first))
                    cells.append(F.elu(module.norm2(cell @ second)))
            expected = F.elu(module.norm3(module.out_layer(torch.cat(cells))))
            torch.testing.assert_close(found[image, query], expected)


def test_a_step_in_its_parts():
    torch.manual_seed(0)
    step = small_step().double()
    queries = torch.randn(2, 4, 16, dtype=torch.float64)
    rois = torch.randn(8, 16, 3, 3, dtype=torch.float64)
    q, k, v = (queries @ step.self_attn.in_proj_weight.T).chunk(3, dim=-1)
    heads = [x.unflatten(-1, (4, 4)).transpose(1, 2) for x in (q, k, v)]
    weights = (heads[0] @ heads[1].mT / 2).softmax(dim=-1)
    attended = (weights @ heads[2]).transpose(1, 2).flatten(2) @ step.self_attn.out_proj.weight.T
    x = step.norm1(queries + attended)
    x = step.norm2(x + step.dynamic_conv(x, rois))
    inner = x @ step.linear1.weight.T + step.linear1.bias
    inner = torch.where(inner > 0, inner, inner.exp() - 1)
    x = step.norm3(x + inner @ step.linear2.weight.T + step.linear2.bias)
    torch.testing.assert_close(step(queries, rois), x)
    assert step.class_logits(x).shape == (2, 4, 3)
    assert step.box_deltas(x).shape == (2, 4, 4)
    assert step.embeddings(x).shape == (2, 4, 5)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("num_classes", {"num_classes": 0}),
        ("embedding_dim", {"embedding_dim": 0}),
        ("dynamic_dim", {"dynamic_dim": 0}),
        ("feedforward_dim", {"feedforward_dim": -1}),
        ("num_heads", {"num_heads": 0}),
        ("hidden_dim", {"hidden_dim": 18}),
    ],
)
def test_a_wrong_size_is_named(name, sizes):
    with pytest.raises(ValueError, match=f"{name} must be"):
        small_step(**sizes)


# ---- all steps ----


def run(head, levels, queries, boxes):
    extents = torch.tensor([[96.0, 64.0], [50.0, 33.0]])
    return head(levels, queries, boxes, extents)


def random_queries(num_queries=5):
    torch.manual_seed(2)
    corners = 40 * torch.rand(2, num_queries, 2)
    boxes = torch.cat([corners, corners + 1 + 50 * torch.rand(2, num_queries, 2)], dim=-1)
    return torch.randn(2, num_queries, 16), boxes


def test_permuted_queries_permute_every_output():
    head, levels, (queries, boxes) = small_head(), random_levels(), random_queries()
    order = torch.tensor([3, 0, 4, 1, 2])
    before = run(head, levels, queries, boxes)
    after = run(head, levels, queries[:, order], boxes[:, order])
    assert len(before) == len(after) == 3
    for one, other in zip(before, after, strict=True):
        for name in ("class_logits", "boxes", "embeddings"):
            expected, found = getattr(one, name)[:, order], getattr(other, name)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(one.embeddings, other.embeddings, atol=1e-2)


def test_at_inference_only_the_last_step_is_predicted():
    head, levels, (queries, boxes) = small_head(), random_levels(), random_queries()
    in_training = run(head, levels, queries, boxes)
    (last,) = run(head.eval(), levels, queries, boxes)
    torch.testing.assert_close(last.class_logits, in_training[-1].class_logits)
    torch.testing.assert_close(last.boxes, in_training[-1].boxes)
    torch.testing.assert_close(last.embeddings, in_training[-1].embeddings)


def test_each_step_pools_and_moves_the_boxes_of_the_one_before():
    head, levels, (queries, boxes) = small_head(), random_levels(), random_queries()
    pooled, pooler = [], head.pooler.forward

    def recorded(levels, boxes):
        pooled.append(torch.stack([b.tensor for b in boxes]))
        return pooler(levels, boxes)

    head.pooler.forward = recorded
    predictions = run(head, levels, queries, boxes)
    for seen, expected in zip(
        pooled, [boxes, predictions[0].boxes, predictions[1].boxes], strict=True
    ):
        assert torch.equal(seen, expected)


def test_boxes_pass_no_gradient_to_the_step_before():
    head, levels, (queries, boxes) = small_head(), random_levels(), random_queries()
    boxes.requires_grad_()
    predictions = run(head, levels, queries, boxes)
    grads = [
        torch.autograd.grad(p.boxes.sum(), boxes, retain_graph=True, allow_unused=True)[0]
        for p in predictions
    ]
    assert grads[0].any()
    assert grads[1] is None
    assert grads[2] is None
    first_box_tower = head.steps[0].deltas.weight
    (grad,) = torch.autograd.grad(
        predictions[2].boxes.sum(), first_box_tower, retain_graph=True, allow_unused=True
    )
    assert grad is None
    (grad,) = torch.autograd.grad(predictions[2].boxes.sum(), head.steps[0].linear1.weight)
    assert grad.any()  # by way of the queries


def test_boxes_are_not_rounded_for_features_of_low_precision():
    head, levels, (queries, boxes) = small_head(1), random_levels(), random_queries()
    boxes += 0.37
    expected = head.pooler(levels, [Boxes(b) for b in boxes])
    rois = []
    step = head.steps[0]
    forward = step.forward
    step.forward = lambda queries, pooled: rois.append(pooled) or forward(queries, pooled)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (prediction,) = run(head, [level.bfloat16() for level in levels], queries, boxes)
    assert prediction.boxes.dtype == torch.float32
    torch.testing.assert_close(rois[0].float(), expected, rtol=0.02, atol=0.02)


def test_boxes_are_pooled_from_the_level_of_their_size():
    pooler = build_pooler(STRIDES, 7)
    levels = [torch.full((1, 1, 1024 // s, 1024 // s), float(i)) for i, s in enumerate(STRIDES)]
    for side, level in [(0.01, 0), (111, 0), (113, 1), (223, 1), (225, 2), (449, 3), (2e3, 3)]:
        box = 500 + side / 2 * torch.tensor([[-1.0, -1.0, 1.0, 1.0]])
        rois = pooler(levels, [Boxes(box)])
        assert rois.shape == (1, 1, 7, 7)
        assert rois.max().item() == level


@pytest.mark.parametrize("strides", [(8, 16, 32), (4, 16), ()])
def test_strides_that_are_no_pyramid_are_refused(strides):
    with pytest.raises(ValueError, match="in_features have the strides"):
        build_pooler(strides, 7)


def test_other_values_that_are_refused():
    with pytest.raises(ValueError, match="pooler_resolution must be at least 1, got 0"):
        build_pooler(STRIDES, 0)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        RefinementHead([], build_pooler(STRIDES, 3))
    with pytest.raises(ValueError, match="num_queries must be at least 1, got 0"):
        LearnedQueries(num_queries=0, hidden_dim=16)
