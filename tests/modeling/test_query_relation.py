import math

import pytest
import torch

from isda.modeling.query_relation import QueryRelation, pair_features
from isda.modeling.tokens import flatten_levels
from isda.modeling.transformer_layers import DecoderLayer


def random_queries(count: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return 0.1 + 0.4 * torch.rand(batch, count, 4), 4 * torch.randn(batch, count)


def iou(a: list[float], b: list[float]) -> float:
    """Of (centre x, centre y, width, height), axis by axis."""
    shared = math.prod(
        max(min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2)
            - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2), 0)
        for i in (0, 1)
    )  # fmt: skip
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def features_by_loops(boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Of one image, in float64."""
    boxes, scores = boxes.double().tolist(), scores.double().tolist()
    return torch.tensor(
        [
            [
                [
                    math.log(abs(a[0] - b[0]) / a[2] + 1),
                    math.log(abs(a[1] - b[1]) / a[3] + 1),
                    math.log(b[2] / a[2]),
                    math.log(b[3] / a[3]),
                    iou(a, b),
                    math.tanh(score_b - score_a),
                ]
                for b, score_b in zip(boxes, scores, strict=True)
            ]
            for a, score_a in zip(boxes, scores, strict=True)
        ],
        dtype=torch.float64,
    )


def test_pair_features_by_loops():
    torch.manual_seed(0)
    boxes, scores = random_queries(9)
    found = pair_features(boxes, scores)
    for image in range(2):
        expected = features_by_loops(boxes[image], scores[image])
        torch.testing.assert_close(found[image].double(), expected, rtol=1e-5, atol=1e-5)


def test_pair_features_by_hand():
    # A square, its double beside it with a higher score, and the same square with a lower one.
    boxes = torch.tensor([[[0.2, 0.2, 0.2, 0.2], [0.4, 0.2, 0.4, 0.4], [0.2, 0.2, 0.2, 0.2]]])
    features = pair_features(boxes, torch.tensor([[0.0, 50.0, -50.0]]))[0]
    # The overlap is 0.1 by 0.2 of areas 0.04 and 0.16.
    expected = [math.log(2), 0, math.log(2), math.log(2), 0.02 / 0.18, 1]
    torch.testing.assert_close(features[0, 1], torch.tensor(expected))
    torch.testing.assert_close(features[0, 2], torch.tensor([0, 0, 0, 0, 1.0, -1]))


@pytest.mark.parametrize("side", [0.0, 1e-12])
def test_boxes_without_area_stay_finite(side):
    boxes = torch.tensor([[[0.5, 0.5, side, side], [0.1, 0.9, 1.0, 1.0]]])
    features = pair_features(boxes, torch.tensor([[float("1e30"), -1e30]]))
    assert features.isfinite().all()


def test_what_is_read_by_loops():
    torch.manual_seed(1)
    relation = QueryRelation(8, num_heads=2, relation_dim=3)
    torch.nn.init.normal_(relation.value.weight)
    boxes, scores = random_queries(5, batch=1)
    pairs, _ = relation(boxes, scores)
    weights = torch.rand(1, 2, 5, 5)
    read = relation.read(weights, pairs)
    for i in range(5):
        gathered = [
            sum(weights[0, head, i, j] * pairs[0, i, j] for j in range(5)) for head in range(2)
        ]
        expected = relation.value.weight @ torch.cat(gathered)
        torch.testing.assert_close(read[0, i], expected)


def decoder_layer(relation: bool) -> DecoderLayer:
    sizes = {"num_levels": 1, "num_heads": 2, "num_points": 2, "feedforward_dim": 16}
    return DecoderLayer(hidden_dim=16, **sizes, dropout=0.0, relation=relation).eval()


def decoded(layer: DecoderLayer, count: int = 6, order=slice(None), mask=None) -> torch.Tensor:
    """Of random queries in an order, which belongs to all that a query has."""
    generator = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    level = draw(1, 16, 4, 4)
    tokens = flatten_levels([level], torch.zeros(1, 16, 16, dtype=torch.bool), draw(1, 16))
    content, position = draw(1, count, 16)[:, order], draw(1, count, 16)[:, order]
    boxes, scores = (0.1 + 0.4 * draw(1, count, 4))[:, order], draw(1, count)[:, order]
    references = tokens.per_level(boxes)
    with torch.no_grad():
        return layer(content, position, references, tokens.content, tokens, mask, boxes, scores)


@pytest.fixture
def related() -> DecoderLayer:
    torch.manual_seed(3)
    layer = decoder_layer(relation=True)
    torch.nn.init.normal_(layer.relation.bias.weight)
    torch.nn.init.normal_(layer.relation.value.weight)
    return layer


def test_at_first_attention_is_a_plain_one():
    torch.manual_seed(3)
    layer, plain = decoder_layer(relation=True), decoder_layer(relation=False)
    missing = plain.load_state_dict(layer.state_dict(), strict=False)
    assert not missing.missing_keys
    torch.testing.assert_close(decoded(layer), decoded(plain), rtol=1e-5, atol=1e-5)


def test_relations_change_what_is_read(related):
    plain = decoder_layer(relation=False)
    plain.load_state_dict(related.state_dict(), strict=False)
    assert (decoded(related) - decoded(plain)).abs().amax() > 0.1


def test_the_order_of_queries_is_no_matter(related):
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(decoded(related)[:, order], decoded(related, order=order))


def test_a_query_that_is_not_seen_has_no_influence(related):
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    mask[:, :5, 5] = True
    seen = decoded(related, order=torch.tensor([0, 1, 2, 3, 4, 5]), mask=mask)
    other = decoded(related, order=torch.tensor([0, 1, 2, 3, 4, 0]), mask=mask)
    torch.testing.assert_close(seen[:, :5], other[:, :5], rtol=0, atol=0)
    assert not torch.equal(seen[:, 5], other[:, 5])


def test_every_parameter_learns(related):
    boxes, scores = random_queries(6, batch=1)
    pairs, bias = related.relation(boxes, scores)
    weights = bias.softmax(dim=-1)
    related.relation.read(weights, pairs).square().sum().backward()
    for name, parameter in related.relation.named_parameters():
        assert parameter.grad.abs().amax() > 0, name
