"""Multi-scale deformable attention as a module."""

import pytest
import torch

from isda.layers import MSDeformAttention

SIZES = [(6, 8), (3, 4)]
TOKENS = 60


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = MSDeformAttention(embed_dim=16, num_levels=2, num_heads=4, num_points=3)
    for linear in (layer.sampling_offsets, layer.attention_weights):
        torch.nn.init.normal_(linear.weight, std=0.5)
        torch.nn.init.normal_(linear.bias)
    return layer


def random_inputs(points=2, batch=2, queries=5):
    query = torch.randn(batch, queries, 16)
    reference_points = torch.rand(batch, queries, 2, points)
    return query, reference_points, torch.randn(batch, TOKENS, 16)


def by_hand(layer, query, reference_points, value):
    """Equation 2 of the paper for one query and head after the other, sampling by grid_sample."""
    value = layer.value_proj(value).unflatten(-1, (4, 4))
    offsets = layer.sampling_offsets(query).view(*query.shape[:2], 4, 2, 3, 2)
    logits = layer.attention_weights(query).view(*query.shape[:2], 4, 6)
    weights = logits.softmax(-1).view(*query.shape[:2], 4, 2, 3)
    output = torch.zeros(*query.shape[:2], 4, 4)
    for b, q, m in torch.cartesian_prod(*map(torch.arange, output.shape[:3])).tolist():
        start = 0
        for level, (height, width) in enumerate(SIZES):
            cells = value[b, start : start + height * width, m].T.view(1, 4, height, width)
            start += height * width
            for p in range(3):
                reference = reference_points[b, q, level]
                if len(reference) == 2:
                    point = reference + offsets[b, q, m, level, p] / torch.tensor([width, height])
                else:
                    point = reference[:2] + offsets[b, q, m, level, p] / 3 * reference[2:] / 2
                grid = (2 * point - 1).view(1, 1, 1, 2)
                sample = torch.nn.functional.grid_sample(cells, grid, align_corners=False)
                output[b, q, m] += weights[b, q, m, level, p] * sample.view(4)
    return layer.output_proj(output.flatten(2))


@pytest.mark.parametrize("coordinates", [2, 4])
def test_output_is_the_papers_equation(layer, coordinates):
    inputs = random_inputs(coordinates)
    expected = by_hand(layer, *inputs)
    torch.testing.assert_close(layer(*inputs, SIZES), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(*inputs, torch.tensor(SIZES)), expected, rtol=1e-4, atol=1e-5)


def test_initial_offsets_point_in_eight_directions():
    layer = MSDeformAttention()
    bias = layer.sampling_offsets.bias.detach().view(8, 4, 4, 2)
    compass = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    steps = torch.arange(1, 5)[:, None]
    for head, direction in enumerate(compass):
        expected = (torch.tensor(direction) * steps).float().expand(4, 4, 2)
        torch.testing.assert_close(bias[head], expected, rtol=0, atol=1e-5)
    for linear in (layer.sampling_offsets, layer.attention_weights):
        assert not linear.weight.any()
    for bias in (layer.attention_weights.bias, layer.value_proj.bias, layer.output_proj.bias):
        assert not bias.any()
    bound = (6 / 512) ** 0.5  # Xavier's for 256 to 256
    for linear in (layer.value_proj, layer.output_proj):
        assert 0.99 * bound < linear.weight.abs().max() <= bound
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_parameters_are_those_of_the_checkpoints():
    shapes = {name: tuple(p.shape) for name, p in MSDeformAttention().named_parameters()}
    assert shapes == {
        "sampling_offsets.weight": (256, 256),
        "sampling_offsets.bias": (256,),
        "attention_weights.weight": (128, 256),
        "attention_weights.bias": (128,),
        "value_proj.weight": (256, 256),
        "value_proj.bias": (256,),
        "output_proj.weight": (256, 256),
        "output_proj.bias": (256,),
    }


def test_padding_reads_zero(layer):
    query, reference_points, value = random_inputs()
    torch.nn.init.normal_(layer.value_proj.bias)
    mask = torch.rand(2, TOKENS) < 0.4
    # A value whose projection is zero where there is padding.
    blank = -torch.linalg.solve(layer.value_proj.weight, layer.value_proj.bias)
    expected = layer(query, reference_points, torch.where(mask[..., None], blank, value), SIZES)
    found = layer(query, reference_points, value, SIZES, mask)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    changed = torch.where(mask[..., None], value + 7, value)
    assert torch.equal(layer(query, reference_points, changed, SIZES, mask), found)


def test_every_input_and_parameter_gets_a_gradient(layer):
    inputs = [tensor.requires_grad_() for tensor in random_inputs()]
    layer(*inputs, SIZES).square().sum().backward()
    for tensor in (*inputs, *layer.parameters()):
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("autocast", [False, True])
def test_locations_stay_float32(layer, monkeypatch, autocast):
    """A bf16 layer reads where the float32 layer reads, on a level with more cells than bf16."""
    seen = []

    def record(value, sizes, starts, locations, weights):
        seen.append((value.dtype, locations))
        return value.new_zeros(*locations.shape[:2], 16)

    monkeypatch.setattr("isda.layers.ms_deform_attn.ms_deform_attn", record)
    query, reference_points, value = random_inputs()
    query = query.bfloat16().float()
    layer.bfloat16().float()
    layer(query, reference_points, value, SIZES)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            layer(query, reference_points, value, SIZES)
    else:
        layer.bfloat16()(query.bfloat16(), reference_points, value.bfloat16(), SIZES)
    (_, expected), (dtype, found) = seen
    assert dtype == torch.bfloat16 and found.dtype == torch.float32
    extents = torch.tensor([[w, h] for h, w in SIZES])[:, None]
    cells = ((found - expected) * extents).abs().max()
    assert cells < 0.03  # of the offsets, which are in cells; the reference points are exact


def test_float64(layer):
    query, reference_points, value = (tensor.double() for tensor in random_inputs())
    expected = layer(query.float(), reference_points.float(), value.float(), SIZES)
    output = layer.double()(query, reference_points, value, SIZES)
    assert output.dtype == torch.float64
    torch.testing.assert_close(output.float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"embed_dim": 10, "num_heads": 4}, "embed_dim that num_heads divides, got embed_dim=10"),
        ({"num_points": 0}, "positive sizes .* num_points=0"),
    ],
)
def test_impossible_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        MSDeformAttention(**arguments)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("query", lambda t: t[..., :8], r"query must be \(batch, length, 16\), got \(2, 5, 8\)"),
        ("value", lambda t: t[0], r"value must be \(batch, length, 16\), got \(60, 16\)"),
        (
            "reference_points",
            lambda t: t[..., :1],
            r"reference_points must be \(2, 5, 2, '2 or 4'\), got \(2, 5, 2, 1\)",
        ),
        ("spatial_shapes", lambda s: s[:1], r"spatial_shapes must list 2 levels, got 1"),
        ("spatial_shapes", lambda s: [(6, 8), (3, 5)], "level 1 of 3x5 cells from token 48"),
        ("padding_mask", lambda m: m[:, :7], r"padding_mask must be \(2, 60\), got \(2, 7\)"),
    ],
)
def test_errors_name_the_culprit(layer, name, change, message):
    query, reference_points, value = random_inputs()
    arguments = {
        "query": query,
        "reference_points": reference_points,
        "value": value,
        "spatial_shapes": SIZES,
        "padding_mask": torch.zeros(2, TOKENS, dtype=torch.bool),
    }
    arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match=message):
        layer(**arguments)
