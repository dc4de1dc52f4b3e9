import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isda.modeling.deformable_transformer import DeformableTransformer
from isda.modeling.tokens import flatten_levels

PADDED = (128, 192)
IMAGES = [(128, 192), (70, 101), (9, 130)]
SIZES = [(16, 24), (8, 12), (4, 6), (2, 3)]  # P3..P6
STRIDES = [8, 16, 32, 64]


def tiny_transformer(**changes):
    """Small, and with every parameter random: at its start attention ignores the queries."""
    torch.manual_seed(0)
    sizes = {
        "hidden_dim": 32,
        "num_queries": 7,
        "num_heads": 4,
        "num_points": 2,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "feedforward_dim": 48,
        "dropout": 0.0,
    }
    transformer = DeformableTransformer(**(sizes | changes))
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return transformer


def padding_mask():
    mask = torch.ones(len(IMAGES), *PADDED, dtype=torch.bool)
    for row, (height, width) in zip(mask, IMAGES, strict=True):
        row[:height, :width] = False
    return mask


def random_levels(channels=32):
    torch.manual_seed(1)
    return [torch.randn(len(IMAGES), channels, *size) for size in SIZES]


def valid_cells(image, level):
    """Cells per axis (height, width) whose first pixel is in the image, counted one by one."""
    stride = STRIDES[level]
    return tuple(
        sum(cell * stride < IMAGES[image][axis] for cell in range(SIZES[level][axis]))
        for axis in (0, 1)
    )


def test_parameter_counts_of_the_paper():
    transformer = DeformableTransformer()

    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(transformer.encoder) == 4_541_184
    assert count(transformer.decoder) == 6_123_264
    assert transformer.level_embed.numel() == 1_024
    assert count(transformer.reference_points) == 514
    assert count(transformer.query_embed) == 153_600
    assert count(transformer) == 4_541_184 + 6_123_264 + 1_024 + 514 + 153_600


def assert_xavier(weight):
    bound = math.sqrt(6 / sum(weight.shape))
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_initialisation():
    torch.manual_seed(0)
    transformer = DeformableTransformer(encoder_layers=1, decoder_layers=1)
    encoder, decoder = transformer.encoder[0], transformer.decoder[0]
    assert decoder.self_attn.in_proj_weight.shape == (768, 256)
    for weight in [
        decoder.self_attn.in_proj_weight,  # 768×256 as one matrix
        decoder.self_attn.out_proj.weight,
        encoder.feedforward.linear1.weight,
        encoder.feedforward.linear2.weight,
        decoder.feedforward.linear1.weight,
        decoder.feedforward.linear2.weight,
        transformer.reference_points.weight,
        *(m.value_proj.weight for m in (encoder.self_attn, decoder.cross_attn)),
        *(m.output_proj.weight for m in (encoder.self_attn, decoder.cross_attn)),
    ]:
        assert_xavier(weight)
    for weight in (transformer.query_embed.weight, transformer.level_embed):
        assert weight.mean().item() == pytest.approx(0, abs=0.1)
        assert weight.std().item() == pytest.approx(1, rel=0.1)
    assert not transformer.reference_points.bias.any()
    assert not decoder.self_attn.in_proj_bias.any()
    for attention in (encoder.self_attn, decoder.cross_attn):
        assert not attention.sampling_offsets.weight.any()
        assert not attention.attention_weights.weight.any()
        assert not attention.attention_weights.bias.any()
        assert not attention.value_proj.bias.any()
        assert not attention.output_proj.bias.any()


def test_sampling_offsets_start_as_a_compass():
    attention = DeformableTransformer(encoder_layers=1, decoder_layers=1).decoder[0].cross_attn
    compass = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    offsets = attention.sampling_offsets.bias.view(8, 4, 4, 2)
    for head, (x, y) in enumerate(compass):
        for level in range(4):
            for point in range(4):
                expected = torch.tensor([x, y], dtype=torch.float32) * (point + 1)
                torch.testing.assert_close(offsets[head, level, point], expected)


def test_dropout_is_where_the_paper_has_it():
    transformer = tiny_transformer(encoder_layers=1, decoder_layers=1, dropout=0.25).train()
    runs = []
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Dropout):
            assert module.p == 0.25
            module.register_forward_hook(lambda *_, name=name: runs.append(name))
    transformer(random_levels(), padding_mask())
    assert transformer.decoder[0].self_attn.dropout == 0.25  # on the attention weights
    assert runs == [
        "encoder.0.dropout",
        "encoder.0.feedforward.dropout",
        "encoder.0.feedforward.dropout",
        "decoder.0.self_dropout",
        "decoder.0.cross_dropout",
        "decoder.0.feedforward.dropout",
        "decoder.0.feedforward.dropout",
    ]


def tokens_of(transformer):
    return flatten_levels(random_levels(), padding_mask(), transformer.level_embed)


def test_valid_ratios_against_counting():
    tokens = tokens_of(tiny_transformer())
    for image in range(len(IMAGES)):
        for level, (height, width) in enumerate(SIZES):
            valid_height, valid_width = valid_cells(image, level)
            expected = torch.tensor([valid_width / width, valid_height / height])
            torch.testing.assert_close(tokens.valid_ratios[image, level], expected)


def test_an_exact_extent_means_the_same_pixel_in_every_level():
    """Cells times stride times fraction are pixels, whatever an image's sides are."""
    transformer = tiny_transformer()
    strides = [8, 16, 32, 64]
    tokens = flatten_levels(random_levels(), padding_mask(), transformer.level_embed, strides)
    boxes = torch.rand(len(IMAGES), 5, 4)
    per_level = tokens.per_level(boxes)
    for image, (height, width) in enumerate(IMAGES):
        expected = boxes[image] * torch.tensor([width, height, width, height])
        for level, (rows, columns) in enumerate(SIZES):
            covered = torch.tensor([columns, rows, columns, rows]) * strides[level]
            torch.testing.assert_close(per_level[image, :, level] * covered, expected)
    first = 0
    for (rows, columns), stride in zip(SIZES, strides, strict=True):
        for image, (height, width) in enumerate(IMAGES):
            last = tokens.centres()[image, first + rows * columns - 1].tolist()
            centre = ((columns - 0.5) * stride / width, (rows - 0.5) * stride / height)
            assert last == pytest.approx(centre, rel=1e-5)
        first += rows * columns


def test_token_reference_points_against_loops():
    tokens = tokens_of(tiny_transformer())
    points = tokens.per_level(tokens.centres())
    token = 0
    for own, (height, width) in enumerate(SIZES):
        for row in range(height):
            for column in range(width):
                for image in range(len(IMAGES)):
                    rows, columns = valid_cells(image, own)
                    for level, (level_height, level_width) in enumerate(SIZES):
                        level_rows, level_columns = valid_cells(image, level)
                        x = (column + 0.5) / columns * level_columns / level_width
                        y = (row + 0.5) / rows * level_rows / level_height
                        found = points[image, token, level].tolist()
                        assert found == pytest.approx([x, y], rel=1e-5)
                token += 1
    assert token == points.shape[1]


def test_position_is_sine_encoding_plus_level_embedding():
    transformer = tiny_transformer()
    tokens = tokens_of(transformer)
    # The first token of a level: half a cell from the corner, on both axes.
    start = SIZES[0][0] * SIZES[0][1]
    rows, columns = valid_cells(1, 1)
    expected = [
        (math.cos if i % 2 else math.sin)(
            0.5 / (cells + 1e-6) * 2 * math.pi / 10000 ** (2 * (i // 2) / 16)
        )
        for cells in (rows, columns)
        for i in range(16)
    ]
    found = tokens.position[1, start] - transformer.level_embed[1]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def deformable_attention(module, query, points, value, padding):
    """Level by level, head by head and point by point, from the module's weights."""
    batch, num_queries, channels = query.shape
    heads, num_points = module.num_heads, module.num_points
    value = module.value_proj(value) * ~padding[..., None]
    offsets = module.sampling_offsets(query).view(batch, num_queries, heads, 4, num_points, 2)
    logits = module.attention_weights(query).view(batch, num_queries, heads, 4 * num_points)
    weights = logits.softmax(-1).view(batch, num_queries, heads, 4, num_points)
    output = torch.zeros(batch, num_queries, heads, channels // heads, dtype=query.dtype)
    start = 0
    for level, (height, width) in enumerate(SIZES):
        cells = value[:, start : start + height * width].transpose(1, 2)
        start += height * width
        per_head = cells.reshape(batch, heads, -1, height, width)
        for head in range(heads):
            for point in range(num_points):
                pixels = points[:, :, level] * torch.tensor([width, height])
                pixels = pixels + offsets[:, :, head, level, point]
                grid = 2 * pixels / torch.tensor([width, height]) - 1
                sampled = F.grid_sample(per_head[:, head], grid[:, None], align_corners=False)
                share = weights[:, :, head, level, point, None]
                output[:, :, head] += share * sampled[:, :, 0].transpose(1, 2)
    return module.output_proj(output.flatten(2))


def layer_norm(norm, x):
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / scale * norm.weight + norm.bias


def feedforward(module, x):
    inner = (x @ module.linear1.weight.T + module.linear1.bias).clamp(min=0)
    return layer_norm(module.norm, x + inner @ module.linear2.weight.T + module.linear2.bias)


def in_float64(tokens):
    tokens.content, tokens.position = tokens.content.double(), tokens.position.double()
    return tokens


def test_encoder_layer_against_another_formulation():
    transformer = tiny_transformer()
    tokens = tokens_of(transformer)
    points = tokens.per_level(tokens.centres()).double()
    tokens, layer = in_float64(tokens), transformer.encoder[0].double()
    x = tokens.content
    attended = deformable_attention(
        layer.self_attn, x + tokens.position, points, x, tokens.padding_mask
    )
    expected = feedforward(layer.feedforward, layer_norm(layer.norm, x + attended))
    torch.testing.assert_close(layer(x, tokens, points), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("layers", "every", "all_tokens"),
    [(4, 1, [1, 1, 1, 1]), (4, 2, [0, 1, 0, 1]), (4, 3, [1, 0, 0, 1]), (2, 9, [0, 1])],
)
def test_layers_that_leave_the_finest_level_alone(layers, every, all_tokens):
    """They give the coarser tokens what a whole layer gives them, and keep the others."""
    transformer = tiny_transformer(encoder_layers=layers, finest_every=every)
    tokens = tokens_of(transformer)
    points, finest = tokens.per_level(tokens.centres()), 16 * 24
    expected = tokens.content
    for layer, whole in zip(transformer.encoder, all_tokens, strict=True):
        updated = layer(expected, tokens, points)
        if not whole:
            updated[:, :finest] = expected[:, :finest]
        expected = updated
    torch.testing.assert_close(transformer._encode(tokens), expected)


def test_decoder_layer_against_another_formulation():
    transformer = tiny_transformer()
    tokens = in_float64(tokens_of(transformer))
    layer, memory = transformer.decoder[0].double(), tokens.content
    torch.manual_seed(2)
    x, position = torch.randn(2, len(IMAGES), 7, 32, dtype=torch.float64)
    points = torch.rand(len(IMAGES), 7, 4, 2, dtype=torch.float64)
    mha = layer.self_attn
    attended, _ = F.multi_head_attention_forward(
        *[t.transpose(0, 1) for t in (x + position, x + position, x)],
        embed_dim_to_check=32,
        num_heads=4,
        in_proj_weight=mha.in_proj_weight,
        in_proj_bias=mha.in_proj_bias,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=mha.out_proj.weight,
        out_proj_bias=mha.out_proj.bias,
        training=False,
    )
    middle = layer_norm(layer.self_norm, x + attended.transpose(0, 1))
    attended = deformable_attention(
        layer.cross_attn, middle + position, points, memory, tokens.padding_mask
    )
    expected = feedforward(layer.feedforward, layer_norm(layer.cross_norm, middle + attended))
    found = layer(x, position, points, memory, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_reference_points_come_from_the_query_positions():
    transformer = tiny_transformer()
    decoded = transformer(random_levels(), padding_mask())
    position = transformer.query_embed.weight[:, :32]
    linear = transformer.reference_points
    expected = 1 / (1 + torch.exp(-(position @ linear.weight.T + linear.bias)))
    assert decoded.states.shape == (2, len(IMAGES), 7, 32)
    for points in decoded.reference_points:
        torch.testing.assert_close(points, expected)


def test_decoder_reads_every_level_within_its_valid_extent():
    transformer = tiny_transformer()
    given = []
    for layer in transformer.decoder:
        layer.cross_attn.register_forward_pre_hook(lambda _, inputs: given.append(inputs[1]))
    decoded = transformer(random_levels(), padding_mask())
    for points in given:
        for image in range(len(IMAGES)):
            for level, (height, width) in enumerate(SIZES):
                valid_height, valid_width = valid_cells(image, level)
                ratios = torch.tensor([valid_width / width, valid_height / height])
                expected = decoded.reference_points[image] * ratios
                torch.testing.assert_close(points[image, :, level], expected)
    assert len(given) == 2


def test_permuting_the_queries_permutes_the_outputs():
    transformer = tiny_transformer().eval()
    before = transformer(random_levels(), padding_mask())
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    with torch.no_grad():
        transformer.query_embed.weight.copy_(transformer.query_embed.weight[order])
    after = transformer(random_levels(), padding_mask())
    assert not torch.allclose(before.states, after.states, atol=1e-2)
    torch.testing.assert_close(after.states, before.states[:, :, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.reference_points, before.reference_points[:, order])


@pytest.mark.parametrize("planted", [1e4, float("nan")])
def test_padding_content_does_not_matter(planted):
    transformer = tiny_transformer().eval()
    levels, mask = random_levels(), padding_mask()
    clean = transformer(levels, mask).states
    for index, level in enumerate(levels):
        for image, content in enumerate(level):
            height, width = valid_cells(image, index)
            content[:, height:] = planted
            content[:, :, width:] = planted
    torch.testing.assert_close(transformer(levels, mask).states, clean, rtol=0, atol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_no_number(dropout):
    results = []
    for checkpointing in (False, True):
        transformer = tiny_transformer(dropout=dropout, gradient_checkpointing=checkpointing)
        levels = [level.requires_grad_() for level in random_levels()]
        torch.manual_seed(3)  # of the dropout
        loss = transformer(levels, padding_mask()).states.square().sum()
        loss.backward()
        results.append([loss, *(x.grad for x in (*levels, *transformer.parameters()))])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_gradient_checkpointing_keeps_fewer_tensors():
    kept = []
    for checkpointing in (False, True):
        transformer = tiny_transformer(gradient_checkpointing=checkpointing)
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            transformer(random_levels(), padding_mask())
        kept.append(sum(sizes))
    assert kept[1] < 0.2 * kept[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_dim": 36, "num_heads": 8},
            "hidden_dim must be a .*, got 36 and 8",
        ),
        ({"hidden_dim": 6, "num_heads": 2}, r"hidden_dim must be a positive .*of 4, got 6 and"),
        ({"hidden_dim": 0}, r"hidden_dim must be a positive multiple of .*, got 0 and 4"),
        ({"num_heads": 0}, r"hidden_dim must be a positive multiple of num_heads"),
        ({"num_queries": -3}, r"num_queries must be at least 1, got -3"),
        ({"decoder_layers": 0}, r"decoder_layers must be at least 1, got 0"),
        ({"encoder_layers": -1}, r"encoder_layers must be at least 0, got -1"),
        ({"dropout": 1.5}, r"dropout must be at least 0 and below 1, got 1\.5"),
        ({"num_points": 0}, r"num_points must be at least 1, got 0"),
        ({"feedforward_dim": 0}, r"feedforward_dim must be at least 1, got 0"),
    ],
)
def test_messages(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_transformer(**changes)
