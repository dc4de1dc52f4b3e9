"""Deformable DETR and ISDA as plain functions of state dicts in their original names.

Written from the papers (arXiv 2010.04159, 2202.12251) in float64, with ``grid_sample``, loops and
a softmax, and without a module of the package.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Sizes = list[tuple[int, int]]


class Weights:
    """Tensors below a prefix of their names, in float64."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str = ""):
        self.tensors, self.prefix = tensors, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name].double()

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def at(self, name: str) -> "Weights":
        return Weights(self.tensors, f"{self.prefix}{name}.")


@dataclass(frozen=True)
class Layout:
    """What an implementation calls the parts of Deformable DETR."""

    backbone: str
    convolution: tuple[str, ...]  # of the levels of stride 8, 16, 32, 64
    group_norm: tuple[str, ...]
    level_embed: str
    queries: str
    reference: str
    encoder: str
    # Attention, its norm, the two linear layers, their norm.
    encoder_parts: tuple[str, str, str, str, str]
    decoder: str
    # The same for attention among queries, attention into the image, and the linear layers.
    decoder_parts: tuple[str, str, str, str, str, str, str]
    classes: str
    # Of the variants with boxes: a layer's box head and its linear layers; of two stages, the layer
    # number of the proposals, their linear layer and its norm.
    boxes: str = "bbox_embed.1"
    linears: tuple[str, str, str] = ("layers.0", "layers.1", "layers.2")
    proposing: tuple[str, str] = ("", "")


AUTHORS = Layout(
    backbone="backbone.0.body",
    convolution=tuple(f"input_proj.{i}.0" for i in range(4)),
    group_norm=tuple(f"input_proj.{i}.1" for i in range(4)),
    level_embed="transformer.level_embed",
    queries="query_embed.weight",
    reference="transformer.reference_points",
    encoder="transformer.encoder.layers",
    encoder_parts=("self_attn", "norm1", "linear1", "linear2", "norm2"),
    decoder="transformer.decoder.layers",
    # Among queries comes first, but is the layer's second attention by number.
    decoder_parts=("self_attn", "norm2", "cross_attn", "norm1", "linear1", "linear2", "norm3"),
    classes="class_embed.1",
    proposing=("transformer.enc_output", "transformer.enc_output_norm"),
)
HUGGING_FACE = Layout(
    backbone="model.backbone.conv_encoder.model",
    convolution=tuple(f"model.input_proj.{i}.0" for i in range(4)),
    group_norm=tuple(f"model.input_proj.{i}.1" for i in range(4)),
    level_embed="model.level_embed",
    queries="model.query_position_embeddings.weight",
    reference="model.reference_points",
    encoder="model.encoder.layers",
    encoder_parts=("self_attn", "self_attn_layer_norm", "fc1", "fc2", "final_layer_norm"),
    decoder="model.decoder.layers",
    decoder_parts=(
        *("self_attn", "self_attn_layer_norm", "encoder_attn", "encoder_attn_layer_norm"),
        *("fc1", "fc2", "final_layer_norm"),
    ),
    classes="class_embed.1",
    proposing=("model.enc_output", "model.enc_output_norm"),
)
MMDETECTION = Layout(
    backbone="backbone",
    convolution=(*(f"neck.convs.{i}.conv" for i in range(3)), "neck.extra_convs.0.conv"),
    group_norm=(*(f"neck.convs.{i}.gn" for i in range(3)), "neck.extra_convs.0.gn"),
    level_embed="bbox_head.transformer.level_embeds",
    queries="bbox_head.query_embedding.weight",
    reference="bbox_head.transformer.reference_points",
    encoder="bbox_head.transformer.encoder.layers",
    encoder_parts=("attentions.0", "norms.0", "ffns.0.layers.0.0", "ffns.0.layers.1", "norms.1"),
    decoder="bbox_head.transformer.decoder.layers",
    decoder_parts=(
        *("attentions.0.attn", "norms.0", "attentions.1", "norms.1"),
        *("ffns.0.layers.0.0", "ffns.0.layers.1", "norms.2"),
    ),
    classes="bbox_head.cls_branches.1",
    boxes="bbox_head.reg_branches.1",
    linears=("0", "2", "4"),
    proposing=("bbox_head.transformer.enc_output", "bbox_head.transformer.enc_output_norm"),
)
MMDETECTION_3 = Layout(
    backbone="backbone",
    convolution=MMDETECTION.convolution,
    group_norm=MMDETECTION.group_norm,
    level_embed="level_embed",
    queries="query_embedding.weight",
    reference="reference_points_fc",
    encoder="encoder.layers",
    encoder_parts=("self_attn", "norms.0", "ffn.layers.0.0", "ffn.layers.1", "norms.1"),
    decoder="decoder.layers",
    decoder_parts=(
        *("self_attn.attn", "norms.0", "cross_attn", "norms.1"),
        *("ffn.layers.0.0", "ffn.layers.1", "norms.2"),
    ),
    classes="bbox_head.cls_branches.1",
    boxes=MMDETECTION.boxes,
    linears=MMDETECTION.linears,
    proposing=("memory_trans_fc", "memory_trans_norm"),
)


def linear(w: Weights, x: Tensor) -> Tensor:
    return x @ w["weight"].T + w["bias"]


def layer_norm(w: Weights, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w["weight"] + w["bias"]
    )


def batch_norm(w: Weights, x: Tensor) -> Tensor:
    scale = w["weight"] / (w["running_var"] + 1e-5).sqrt()
    return x * scale[:, None, None] + (w["bias"] - w["running_mean"] * scale)[:, None, None]


def normed_conv(conv: Weights, norm: Weights, x: Tensor, stride: int = 1) -> Tensor:
    """Convolution, with a bias if there is one, and GroupNorm of 32 groups."""
    x = F.conv2d(x, conv["weight"], stride=stride, padding=conv["weight"].shape[-1] // 2)
    if "bias" in conv:
        x = x + conv["bias"][:, None, None]
    return F.group_norm(x, 32, norm["weight"], norm["bias"])


def resnet(w: Weights, x: Tensor) -> list[Tensor]:
    """C2..C5."""
    x = F.conv2d(x, w["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(batch_norm(w.at("bn1"), x).relu(), 3, stride=2, padding=1)
    features = []
    for stage in range(1, 5):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in w:
            stride = 2 if stage > 1 and block == 0 else 1
            x = residual_block(w.at(f"layer{stage}.{block}"), x, stride)
            block += 1
        features.append(x)
    return features


def residual_block(w: Weights, x: Tensor, stride: int) -> Tensor:
    last = 3 if "conv3.weight" in w else 2
    y = x
    for index in range(1, last + 1):
        kernel = w[f"conv{index}.weight"]
        # In the first 3x3 convolution.
        step = stride if index == last - 1 else 1
        y = F.conv2d(y, kernel, stride=step, padding=kernel.shape[-1] // 2)
        y = batch_norm(w.at(f"bn{index}"), y)
        y = y.relu() if index < last else y
    if "downsample.0.weight" in w:
        x = batch_norm(w.at("downsample.1"), F.conv2d(x, w["downsample.0.weight"], stride=stride))
    return (x + y).relu()


def valid_sizes(image_size: tuple[int, int], padded: tuple[int, int], sizes: Sizes) -> Sizes:
    """Cells of each level whose nearest pixel is in the image."""
    return [
        tuple(
            sum(cell * pixels // cells < extent for cell in range(cells))
            for cells, pixels, extent in zip(size, padded, image_size)
        )
        for size in sizes
    ]


def sine(coordinate: float, features: int) -> list[float]:
    phases = [coordinate / 10000 ** (2 * (i // 2) / features) for i in range(features)]
    return [math.cos(p) if i % 2 else math.sin(p) for i, p in enumerate(phases)]


def position_encoding(size: tuple[int, int], valid: tuple[int, int], dim: int) -> Tensor:
    """Cell by cell: y, then x; what it says of padding is of no consequence."""
    rows = []
    for y in range(size[0]):
        for x in range(size[1]):
            relative = [
                (min(cell + 1, extent) - 0.5) / (extent + 1e-6) * 2 * math.pi
                for cell, extent in ((y, valid[0]), (x, valid[1]))
            ]
            rows.append(sine(relative[0], dim // 2) + sine(relative[1], dim // 2))
    return torch.tensor(rows, dtype=torch.float64)


def attention(w: Weights, query: Tensor, value: Tensor, heads: int) -> Tensor:
    """Ordinary attention; the projections are packed into one tensor or separate."""
    if "in_proj_weight" in w:
        matrices, biases = w["in_proj_weight"].chunk(3), w["in_proj_bias"].chunk(3)
    else:
        matrices = [w[f"{letter}_proj.weight"] for letter in "qkv"]
        biases = [w[f"{letter}_proj.bias"] for letter in "qkv"]
    q, k, v = (x @ m.T + b for x, m, b in zip((query, query, value), matrices, biases))
    outputs = []
    for q_head, k_head, v_head in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1)):
        scores = q_head @ k_head.mT / math.sqrt(q_head.shape[-1])
        outputs.append(scores.softmax(-1) @ v_head)
    return linear(w.at("out_proj"), torch.cat(outputs, -1))


def deformable_attention(
    w: Weights,
    query: Tensor,
    points: Tensor,
    tokens: Tensor,
    sizes: Sizes,
    padding: Tensor,
    heads: int,
) -> Tensor:
    """Equation 3 of Deformable DETR for one image.

    Args:
        query: ``(Q, C)``.
        points: ``(Q, levels, 2)``, or boxes ``(Q, levels, 4)`` as (centre, size): offsets are then
            in halves of a box, over the points.
        tokens: ``(S, C)``.
        padding: ``(S,)``.
    """
    value = linear(w.at("value_proj"), tokens) * ~padding[:, None]
    offsets = linear(w.at("sampling_offsets"), query).unflatten(-1, (heads, len(sizes), -1, 2))
    weights = linear(w.at("attention_weights"), query).unflatten(-1, (heads, -1)).softmax(-1)
    weights = weights.unflatten(-1, (len(sizes), -1))
    levels = value.split([h * width for h, width in sizes])
    outputs = []
    for head in range(heads):
        total = 0
        for level, (height, width) in enumerate(sizes):
            grid = levels[level].chunk(heads, -1)[head].T.view(1, -1, height, width)
            shift = offsets[:, head, level]  # (Q, points, 2)
            if points.shape[-1] == 4:
                shift = shift / shift.shape[1] * points[:, None, level, 2:] / 2
            else:
                shift = shift / torch.tensor([width, height])
            where = points[:, None, level, :2] + shift
            read = F.grid_sample(grid, 2 * where[None] - 1, align_corners=False)
            total = total + (read[0] * weights[:, head, level]).sum(-1).T
        outputs.append(total)
    return linear(w.at("output_proj"), torch.cat(outputs, -1))


def levels_of(w: Weights, names: Layout, features: list[Tensor]) -> list[Tensor]:
    """P3..P6 from C2..C5."""
    inputs = [*features[1:], features[-1]]
    return [
        normed_conv(w.at(conv), w.at(norm), x, stride)
        for conv, norm, x, stride in zip(
            names.convolution, names.group_norm, inputs, (1, 1, 1, 2), strict=True
        )
    ]


@dataclass
class Encoded:
    """An image after the encoder."""

    memory: Tensor  # (S, C)
    sizes: Sizes  # of the levels
    valid: Sizes  # cells of each level that are inside the image
    padding: Tensor  # (S,)
    ratios: Tensor  # (levels, 2) as (x, y)
    centres: Tensor  # (S, 2) as (x, y), relative to the image


def encoded(
    w: Weights, names: Layout, levels: list[Tensor], image_size, padded, heads: int
) -> Encoded:
    """
    Args:
        levels: P3..P6, each ``(C, h, w)``.
    """
    sizes = [tuple(level.shape[1:]) for level in levels]
    valid = valid_sizes(image_size, padded, sizes)
    dim = levels[0].shape[0]
    tokens = torch.cat([level.flatten(1).T for level in levels])
    position = torch.cat(
        [
            position_encoding(size, inside, dim) + w[names.level_embed][level]
            for level, (size, inside) in enumerate(zip(sizes, valid))
        ]
    )
    padding = torch.cat(
        [~inside_mask(size, extent).flatten() for size, extent in zip(sizes, valid)]
    )
    ratios = torch.tensor(
        [[vw / width, vh / height] for (height, width), (vh, vw) in zip(sizes, valid)],
        dtype=torch.float64,
    )
    centres = torch.tensor(
        [
            [(x + 0.5) / vw, (y + 0.5) / vh]
            for (height, width), (vh, vw) in zip(sizes, valid)
            for y in range(height)
            for x in range(width)
        ],
        dtype=torch.float64,
    )
    memory = encode(w, names, tokens, position, centres[:, None] * ratios, sizes, padding, heads)
    return Encoded(memory, sizes, valid, padding, ratios, centres)


def decode(w: Weights, names: Layout, image: Encoded, heads: int) -> tuple[Tensor, Tensor]:
    """The last decoder layer's queries ``(N, C)`` and their reference points, for one image."""
    query_pos, queries = w[names.queries].chunk(2, dim=1)
    reference = linear(w.at(names.reference), query_pos).sigmoid()
    for layer in layers(w, names.decoder, names.decoder_parts[-1]):
        queries = decoder_layer(layer, names, queries, query_pos, reference, image, heads)
    return queries, reference


def decode_boxes(
    w: Weights,
    names: Layout,
    queries: Tensor,
    boxes: Tensor,
    image: Encoded,
    heads: int,
    refine: bool,
) -> tuple[Tensor, Tensor]:
    """The last decoder layer's queries ``(N, C)`` and boxes ``(N, 4)``, with the last layer's head.

    Args:
        queries: ``(N, C)``; without a position.
        boxes: ``(N, 4)`` as (centre, size) that the first layer looks around.
        refine: other layers look around the boxes that the layer before them predicts.
    """
    for layer in layers(w, names.decoder, names.decoder_parts[-1]):
        queries = decoder_layer(layer, names, queries, 0, boxes, image, heads)
        predicted = moved(w.at(names.boxes), names, boxes, queries)
        boxes = predicted if refine else boxes
    return queries, predicted


def decoder_layer(
    layer: Weights, names: Layout, queries, query_pos, references, image: Encoded, heads: int
) -> Tensor:
    own, own_norm, cross, cross_norm, up, down, last = names.decoder_parts
    attended = attention(layer.at(own), queries + query_pos, queries, heads)
    queries = layer_norm(layer.at(own_norm), queries + attended)
    ratios = image.ratios.repeat(1, references.shape[1] // 2)
    attended = deformable_attention(
        layer.at(cross),
        queries + query_pos,
        references[:, None] * ratios,
        image.memory,
        image.sizes,
        image.padding,
        heads,
    )
    queries = layer_norm(layer.at(cross_norm), queries + attended)
    return feedforward(layer, up, down, last, queries)


def moved(head: Weights, names: Layout, boxes: Tensor, states: Tensor) -> Tensor:
    """Boxes whose logits a box head has shifted."""
    first, second, third = (head.at(name) for name in names.linears)
    shift = linear(third, linear(second, linear(first, states).relu()).relu())
    return (boxes.log() - (1 - boxes).log() + shift).sigmoid()


def proposals(w: Weights, names: Layout, image: Encoded, number: int) -> tuple[Tensor, Tensor]:
    """Logits ``(number,)`` for an object, and boxes ``(number, 4)``, of the best tokens."""
    linear_layer, norm = names.proposing
    tokens = layer_norm(w.at(norm), linear(w.at(linear_layer), image.memory))
    sides = [0.05 * 2**i for i, (h, width) in enumerate(image.sizes) for _ in range(h * width)]
    sides = torch.tensor(sides, dtype=torch.float64)[:, None].expand(-1, 2)
    layer = len(layers(w, names.decoder, names.decoder_parts[-1]))  # the next of the heads
    classes, boxes = (n.replace(".1", f".{layer}") for n in (names.classes, names.boxes))
    logits = linear(w.at(classes), tokens)[:, 0].masked_fill(image.padding, -math.inf)
    best = logits.topk(number).indices
    starts = torch.cat([image.centres, sides], dim=1)[best]
    return logits[best], moved(w.at(boxes), names, starts, tokens[best])


def inside_mask(size: tuple[int, int], valid: tuple[int, int]) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[: valid[0], : valid[1]] = True
    return mask


def encode(w, names: Layout, tokens, position, points, sizes: Sizes, padding, heads: int) -> Tensor:
    own, own_norm, up, down, last = names.encoder_parts
    for layer in layers(w, names.encoder, last):
        attended = deformable_attention(
            layer.at(own), tokens + position, points, tokens, sizes, padding, heads
        )
        tokens = layer_norm(layer.at(own_norm), tokens + attended)
        tokens = feedforward(layer, up, down, last, tokens)
    return tokens


def layers(w: Weights, name: str, part: str) -> list[Weights]:
    found = []
    while f"{name}.{len(found)}.{part}.weight" in w:
        found.append(w.at(f"{name}.{len(found)}"))
    return found


def feedforward(layer: Weights, up: str, down: str, norm: str, x: Tensor) -> Tensor:
    inner = linear(layer.at(up), x).relu()
    return layer_norm(layer.at(norm), x + linear(layer.at(down), inner))


def encoded_images(
    w: Weights, names: Layout, images: Tensor, image_sizes: Sizes, heads: int
) -> list[Encoded]:
    """From normalised, padded images ``(B, 3, H, W)``."""
    levels = levels_of(w, names, resnet(w.at(names.backbone), images.double()))
    padded = tuple(images.shape[-2:])
    return [
        encoded(w, names, [level[i] for level in levels], size, padded, heads)
        for i, size in enumerate(image_sizes)
    ]


def deformable_detr(
    tensors: dict[str, Tensor], names: Layout, images: Tensor, image_sizes: Sizes, heads: int
) -> Tensor:
    """Class logits ``(B, N, rows)`` of normalised, padded images ``(B, 3, H, W)``."""
    w = Weights(tensors)
    return torch.stack(
        [
            linear(w.at(names.classes), decode(w, names, image, heads)[0])
            for image in encoded_images(w, names, images, image_sizes, heads)
        ]
    )


def isda(tensors: dict[str, Tensor], image: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Class logits ``(N, K)`` and mask logits ``(N, H / 4, W / 4)`` of an image without padding."""
    w = Weights(tensors)
    features = resnet(w.at("backbone"), image[None].double())
    levels = levels_of(w, MMDETECTION, features)
    finest = normed_conv(w.at("neck.first_conv.conv"), w.at("neck.first_conv.gn"), features[0])
    size = tuple(image.shape[-2:])
    encoded_image = encoded(w, MMDETECTION, [x[0] for x in levels], size, size, heads)
    queries, reference = decode(w, MMDETECTION, encoded_image, heads)
    branch = w.at("bbox_head.kernel_branches.0")
    numbers = linear(branch.at("0"), queries).relu()
    numbers = linear(branch.at("4"), linear(branch.at("2"), numbers).relu())
    kernels = torch.cat([numbers, (reference / (1 - reference)).log()], dim=-1)
    mask_features = isda_mask_features(w, [finest, *levels[:3]])[0]
    masks = torch.einsum("nc,chw->nhw", kernels, mask_features)
    return linear(w.at(MMDETECTION.classes), queries), masks


def isda_mask_features(w: Weights, levels: list[Tensor]) -> Tensor:
    """``(1, mask_dim, H / 4, W / 4)`` from P2..P5."""
    height, width = levels[3].shape[-2:]
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height, dtype=torch.float64),
        torch.linspace(-1, 1, width, dtype=torch.float64),
        indexing="ij",
    )
    inputs = [*levels[:3], torch.cat([levels[3], torch.stack([x, y])[None]], dim=1)]
    total = 0
    for level, features in enumerate(inputs):
        for conv in range(max(level, 1)):
            module = w.at(f"mask_feat_head.convs_all_levels.{level}.conv{conv}")
            features = normed_conv(module.at("conv"), module.at("gn"), features).relu()
            if level > 0:
                features = F.interpolate(
                    features, scale_factor=2, mode="bilinear", align_corners=False
                )
        total = total + features
    last = w.at("mask_feat_head.conv_pred.0")
    return normed_conv(last.at("conv"), last.at("gn"), total).relu()
