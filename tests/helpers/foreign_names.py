"""Names and shapes of other implementations' state dicts, of any size, and tensors for them."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    """The defaults are those of the published R-50 checkpoints."""

    dim: int = 256
    feedforward: int = 1024
    heads: int = 8
    points: int = 4
    encoder: int = 6
    decoder: int = 6
    queries: int = 300
    stem: int = 64
    width: int = 64  # of the first stage's inner convolutions
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    head_dim: int = 128
    mask_dim: int = 256

    def channels(self, stage: int) -> int:
        return self.width * 2**stage * (4 if self.bottleneck else 1)


# Two channels per group of GroupNorm's 32: with one, a bias before it would have no effect.
SMALL = Sizes(
    **{"dim": 64, "feedforward": 48, "heads": 4, "points": 2, "encoder": 2, "decoder": 2},
    **{"queries": 7, "stem": 8, "width": 8, "blocks": (1, 1, 1, 1), "bottleneck": False},
    **{"head_dim": 64, "mask_dim": 64},
)
# The same in our keys, for a model as small; what a ResNet looks like is read from the file.
SMALL_OPTIONS = [
    *("MODEL.BACKBONE.NAME", "build_basic_resnet_backbone"),
    *("MODEL.ISDA.HIDDEN_DIM", "64", "MODEL.ISDA.FEEDFORWARD_DIM", "48"),
    *("MODEL.ISDA.NUM_HEADS", "4", "MODEL.ISDA.NUM_POINTS", "2", "MODEL.ISDA.NUM_QUERIES", "7"),
    *("MODEL.ISDA.ENCODER_LAYERS", "2", "MODEL.ISDA.DECODER_LAYERS", "2"),
    *("MODEL.ISDA.MASK_HEAD_DIM", "64", "MODEL.ISDA.MASK_DIM", "64"),
]


def below(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def with_bias(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def batch_norm(name: str, channels: int, counter: bool) -> Shapes:
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{kind}": (channels,) for kind in kinds} | (
        {f"{name}.num_batches_tracked": ()} if counter else {}
    )


def resnet(sizes: Sizes, *, counter: bool = False, classifier: bool = False) -> Shapes:
    shapes = {"conv1.weight": (sizes.stem, 3, 7, 7)} | batch_norm("bn1", sizes.stem, counter)
    entering = sizes.stem
    for stage, blocks in enumerate(sizes.blocks):
        inner, out = sizes.width * 2**stage, sizes.channels(stage)
        for block in range(blocks):
            prefix = f"layer{stage + 1}.{block}."
            convs = [(inner, entering, 3), (out, inner, 3)]
            if sizes.bottleneck:
                convs = [(inner, entering, 1), (inner, inner, 3), (out, inner, 1)]
            for index, (after, before, kernel) in enumerate(convs, start=1):
                shapes[f"{prefix}conv{index}.weight"] = (after, before, kernel, kernel)
                shapes |= batch_norm(f"{prefix}bn{index}", after, counter)
            if block == 0 and (stage > 0 or entering != out):
                shapes[f"{prefix}downsample.0.weight"] = (out, entering, 1, 1)
                shapes |= batch_norm(f"{prefix}downsample.1", out, counter)
            entering = out
    return shapes | (with_bias("fc", 1000, entering) if classifier else {})


def deformable_attention(name: str, sizes: Sizes) -> Shapes:
    samples, dim = sizes.heads * 4 * sizes.points, sizes.dim
    return (
        with_bias(f"{name}.sampling_offsets", 2 * samples, dim)
        | with_bias(f"{name}.attention_weights", samples, dim)
        | with_bias(f"{name}.value_proj", dim, dim)
        | with_bias(f"{name}.output_proj", dim, dim)
    )


def packed_attention(name: str, dim: int) -> Shapes:
    packed = {f"{name}.in_proj_weight": (3 * dim, dim), f"{name}.in_proj_bias": (3 * dim,)}
    return packed | with_bias(f"{name}.out_proj", dim, dim)


def mlp(name: str, layers: tuple[int, ...], *widths: int) -> Shapes:
    shapes: Shapes = {}
    for layer, before, after in zip(layers, widths, widths[1:], strict=False):
        shapes |= with_bias(f"{name}.{layer}", after, before)
    return shapes


def copies(name: str, number: int, shapes: Shapes) -> Shapes:
    """One module, stored once per decoder layer."""
    return {f"{name}.{i}{tail}": s for i in range(number) for tail, s in shapes.items()}


def input_projections(name: str, sizes: Sizes) -> Shapes:
    shapes: Shapes = {}
    for level, (stage, kernel) in enumerate([(1, 1), (2, 1), (3, 1), (3, 3)]):
        channels = sizes.channels(stage)
        shapes |= with_bias(f"{name}.{level}.0", sizes.dim, channels, kernel, kernel)
        shapes |= with_bias(f"{name}.{level}.1", sizes.dim)
    return shapes


def feedforward(first: str, second: str, sizes: Sizes) -> Shapes:
    up = with_bias(first, sizes.feedforward, sizes.dim)
    return up | with_bias(second, sizes.dim, sizes.feedforward)


def stacked(name: str, layers: int, shapes: Shapes) -> Shapes:
    return {f"{name}.{i}.{tail}": shape for i in range(layers) for tail, shape in shapes.items()}


def branches(classes: str, boxes: str, sizes: Sizes, rows: int, layers: tuple[int, ...]) -> Shapes:
    dim = sizes.dim
    box = mlp("", layers, dim, dim, dim, 4)
    return copies(classes, sizes.decoder, with_bias("", rows, dim)) | (
        copies(boxes, sizes.decoder, box)
    )


def authors(sizes: Sizes = Sizes()) -> Shapes:
    dim = sizes.dim
    norms = {i: with_bias(f"norm{i}", dim) for i in (1, 2, 3)}
    linear = feedforward("linear1", "linear2", sizes)
    encoder = deformable_attention("self_attn", sizes) | norms[1] | linear | norms[2]
    decoder = deformable_attention("cross_attn", sizes) | packed_attention("self_attn", dim)
    decoder |= linear | norms[1] | norms[2] | norms[3]
    return {
        "transformer.level_embed": (4, dim),
        "query_embed.weight": (sizes.queries, 2 * dim),
        **with_bias("transformer.reference_points", 2, dim),
        **stacked("transformer.encoder.layers", sizes.encoder, encoder),
        **stacked("transformer.decoder.layers", sizes.decoder, decoder),
        **input_projections("input_proj", sizes),
        **branches("class_embed", "bbox_embed", sizes, 91, ("layers.0", "layers.1", "layers.2")),
        **below("backbone.0.body.", resnet(sizes)),
    }


def hugging_face(sizes: Sizes = Sizes()) -> Shapes:
    dim = sizes.dim
    linear = feedforward("fc1", "fc2", sizes)
    ends = with_bias("self_attn_layer_norm", dim) | linear | with_bias("final_layer_norm", dim)
    decoder = deformable_attention("encoder_attn", sizes) | ends
    decoder |= with_bias("encoder_attn_layer_norm", dim)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        decoder |= with_bias(f"self_attn.{name}", dim, dim)
    model = {
        "level_embed": (4, dim),
        "query_position_embeddings.weight": (sizes.queries, 2 * dim),
        **with_bias("reference_points", 2, dim),
        **stacked("encoder.layers", sizes.encoder, deformable_attention("self_attn", sizes) | ends),
        **stacked("decoder.layers", sizes.decoder, decoder),
        **input_projections("input_proj", sizes),
        **below("backbone.conv_encoder.model.", resnet(sizes)),
    }
    heads = branches("class_embed", "bbox_embed", sizes, 91, ("layers.0", "layers.1", "layers.2"))
    return below("model.", model) | heads


@dataclass(frozen=True)
class Parts:
    """What an implementation calls the parts in which Deformable DETR's variants differ."""

    classes: str
    boxes: str
    learned: tuple[str, ...]  # queries of the single stage, and where they start
    # Linear layers and their norms: of tokens that propose, and that make queries of proposals.
    tokens: tuple[str, str]
    queries: tuple[str, str]
    decoder: str = ""  # holds the heads once more


PARTS = {
    "deformable-detr": Parts(
        *("class_embed", "bbox_embed", ("query_embed", "transformer.reference_points")),
        ("transformer.enc_output", "transformer.enc_output_norm"),
        ("transformer.pos_trans", "transformer.pos_trans_norm"),
        "transformer.decoder",
    ),
    "hf-deformable-detr": Parts(
        *(
            "class_embed",
            "bbox_embed",
            ("model.query_position_embeddings", "model.reference_points"),
        ),
        ("model.enc_output", "model.enc_output_norm"),
        ("model.pos_trans", "model.pos_trans_norm"),
        "model.decoder",
    ),
    "mmdet-deformable-detr": Parts(
        *("bbox_head.cls_branches", "bbox_head.reg_branches"),
        ("bbox_head.query_embedding", "bbox_head.transformer.reference_points"),
        ("bbox_head.transformer.enc_output", "bbox_head.transformer.enc_output_norm"),
        ("bbox_head.transformer.pos_trans", "bbox_head.transformer.pos_trans_norm"),
    ),
    "mmdet-deformable-detr 3": Parts(
        *("bbox_head.cls_branches", "bbox_head.reg_branches"),
        ("query_embedding", "reference_points_fc"),
        ("memory_trans_fc", "memory_trans_norm"),
        ("pos_trans_fc", "pos_trans_norm"),
    ),
}


def variant(
    shapes: Shapes, parts: Parts, sizes: Sizes, *, refined: bool, two_stages: bool
) -> Shapes:
    """Deformable DETR with box refinement or two stages, of the shapes of the plain one."""
    dim, (classes, boxes) = sizes.dim, (parts.classes, parts.boxes)
    shapes = dict(shapes)
    if two_stages:
        shapes = {n: s for n, s in shapes.items() if n.rpartition(".")[0] not in parts.learned}
        for before in [n for n in shapes if n.startswith((f"{classes}.0.", f"{boxes}.0."))]:
            shapes[before.replace(".0.", f".{sizes.decoder}.", 1)] = shapes[before]
        for (linear, norm), width in ((parts.tokens, dim), (parts.queries, 2 * dim)):
            shapes |= with_bias(linear, width, width) | with_bias(norm, width)
    in_decoder = [boxes] * refined + [classes] * two_stages
    if parts.decoder:
        heads = [n for n in shapes if n.startswith(tuple(f"{head}." for head in in_decoder))]
        shapes |= {f"{parts.decoder}.{n}": shapes[n] for n in heads}
    return shapes


def hugging_face_5(names: Iterable[str], own_resnet: bool = False) -> dict[str, str]:
    """Names in files of ``save_pretrained`` and, of transformers 5, in a model's state dict."""
    changes = {".conv_encoder.": ".", "self_attn.out_proj": "self_attn.o_proj"}
    changes |= {".fc1.": ".mlp.fc1.", ".fc2.": ".mlp.fc2."}
    renamed = {}
    for name in names:
        new = hugging_face_resnet(name) if own_resnet else name
        for old, now in changes.items():
            new = new.replace(old, now)
        renamed[name] = new
    return renamed


def hugging_face_resnet(name: str) -> str:
    """The name in transformers' ResNet of a tensor of torchvision's; others as they are."""
    before, mark, rest = name.partition("layer" if re.search(r"layer[1-4]\.", name) else "conv1.")
    if not mark:
        before, mark, rest = name.partition("bn1.")
    if not mark or "layers" in name:
        return name
    if mark != "layer":
        kind = "convolution" if mark == "conv1." else "normalization"
        return f"{before}embedder.embedder.{kind}.{rest}"
    stage, block, layer, *last = rest.split(".")
    if layer == "downsample":
        place, kind = "shortcut", ("convolution", "normalization")[int(last.pop(0))]
    else:
        place = f"layer.{int(layer[-1]) - 1}"
        kind = "normalization" if layer.startswith("bn") else "convolution"
    return f"{before}encoder.stages.{int(stage) - 1}.layers.{block}.{place}.{kind}.{last[0]}"


def mmdetection_neck(sizes: Sizes) -> Shapes:
    shapes: Shapes = {}
    for index in range(3):
        shapes[f"convs.{index}.conv.weight"] = (sizes.dim, sizes.channels(index + 1), 1, 1)
        shapes |= with_bias(f"convs.{index}.gn", sizes.dim)
    shapes["extra_convs.0.conv.weight"] = (sizes.dim, sizes.channels(3), 3, 3)
    return below("neck.", shapes | with_bias("extra_convs.0.gn", sizes.dim))


def mmdetection(sizes: Sizes = Sizes(), version: int = 2) -> Shapes:
    dim = sizes.dim
    first, second, ffn = ("attentions.0", "attentions.1", "ffns.0")
    if version == 3:
        first, second, ffn = ("self_attn", "cross_attn", "ffn")
    linear = feedforward(f"{ffn}.layers.0.0", f"{ffn}.layers.1", sizes)
    norms = [with_bias(f"norms.{i}", dim) for i in range(3)]
    encoder = deformable_attention(first, sizes) | linear | norms[0] | norms[1]
    decoder = packed_attention(f"{first}.attn", dim) | deformable_attention(second, sizes)
    decoder |= linear | norms[0] | norms[1] | norms[2]
    shapes = {
        **stacked("encoder.layers", sizes.encoder, encoder),
        **stacked("decoder.layers", sizes.decoder, decoder),
    }
    head = branches("cls_branches", "reg_branches", sizes, 80, ("0", "2", "4"))
    if version == 3:
        shapes["level_embed"] = (4, dim)
        shapes["query_embedding.weight"] = (sizes.queries, 2 * dim)
        shapes |= with_bias("reference_points_fc", 2, dim)
    else:
        shapes["level_embeds"] = (4, dim)
        shapes = below("bbox_head.transformer.", shapes | with_bias("reference_points", 2, dim))
        head["query_embedding.weight"] = (sizes.queries, 2 * dim)
    return {
        **below("backbone.", resnet(sizes, counter=True)),
        **mmdetection_neck(sizes),
        **shapes,
        **below("bbox_head.", head),
    }


def isda(sizes: Sizes = Sizes()) -> Shapes:
    """mmdetection's Deformable DETR with kernels in place of boxes, and the mask feature head."""
    shapes = {n: s for n, s in mmdetection(sizes).items() if "reg_branches" not in n}
    dim, head_dim = sizes.dim, sizes.head_dim
    kernels = mlp("", ("0", "2", "4"), dim, dim, dim, sizes.mask_dim - 2)
    shapes |= copies("bbox_head.kernel_branches", sizes.decoder, kernels)
    shapes["neck.first_conv.conv.weight"] = (dim, sizes.channels(0), 1, 1)
    shapes |= with_bias("neck.first_conv.gn", dim)
    for level, convs in enumerate((1, 1, 2, 3)):
        for conv in range(convs):
            name = f"mask_feat_head.convs_all_levels.{level}.conv{conv}"
            entering = head_dim if conv else dim + 2 * (level == 3)
            shapes[f"{name}.conv.weight"] = (head_dim, entering, 3, 3)
            shapes |= with_bias(f"{name}.gn", head_dim)
    shapes["mask_feat_head.conv_pred.0.conv.weight"] = (sizes.mask_dim, head_dim, 1, 1)
    return shapes | with_bias("mask_feat_head.conv_pred.0.gn", sizes.mask_dim)


_IN_DECODER = re.compile(r"(transformer|model)\.decoder\.(?=(class|bbox)_embed)")
_SHARED = re.compile(r"(class_embed|bbox_embed|cls_branches|reg_branches|kernel_branches)\.\d+")


def filled(shapes: Shapes, seed: int = 0, *, refined: bool = False) -> dict[str, Tensor]:
    """Random tensors that keep activations in range; copies of a shared module are equal.

    Args:
        refined: layers have heads of their own.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    shared: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        module = _IN_DECODER.sub("", name)
        module = module if refined else _SHARED.sub(r"\1", module)
        if module not in shared:
            shared[module] = _random(name, shape, generator)
        tensors[name] = shared[module]
    return tensors


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if not shape:
        return torch.tensor(3)
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        return 0.5 + torch.rand(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return noise * (2 if "sampling_offsets" in name else 0.2)
    if re.search(r"(level_embeds?|query\w*\.weight)$", name):
        return noise
    return noise / math.sqrt(math.prod(shape[1:]))


GRIDS = (40, 36, 24, 16, 12)


def _normed_conv(name: str, out: int, entering: int, modules=("conv", "gn"), kernel=3) -> Shapes:
    conv, norm = modules
    weight = {f"{name}.{conv}.weight": (out, entering, kernel, kernel)}
    return weight | with_bias(f"{name}.{norm}", out)


def _tower(name: str, entering: int, width: int, number: int) -> Shapes:
    shapes: Shapes = {}
    for index in range(number):
        shapes |= _normed_conv(f"{name}.{index}", width, entering if index == 0 else width)
    return shapes


def _pyramid(sizes: Sizes) -> Shapes:
    shapes: Shapes = {}
    for level in range(4):
        channels = sizes.channels(level)
        shapes |= with_bias(f"neck.lateral_convs.{level}.conv", sizes.dim, channels, 1, 1)
        shapes |= with_bias(f"neck.fpn_convs.{level}.conv", sizes.dim, sizes.dim, 3, 3)
    return shapes


def _mask_features(name: str, sizes: Sizes, modules=("conv", "gn")) -> Shapes:
    shapes: Shapes = {}
    for level in range(4):
        for index in range(max(level, 1)):
            entering = sizes.dim + 2 * (level == 3) if index == 0 else sizes.head_dim
            conv = f"{name}.convs_all_levels.{level}.conv{index}"
            shapes |= _normed_conv(conv, sizes.head_dim, entering, modules)
    return shapes


def _solo_trunk(sizes: Sizes) -> Shapes:
    return below("backbone.", resnet(sizes, counter=True)) | _pyramid(sizes)


def solo(sizes: Sizes, *, later: bool = True) -> Shapes:
    """Of the authors, or of later versions of mmdetection."""
    head, classes, masks, maps, output = (
        ("mask_head", "cls_convs", "mask_convs", "conv_mask_list", "conv_cls")
        if later
        else ("bbox_head", "cate_convs", "ins_convs", "solo_ins_list", "solo_cate")
    )
    shapes = _solo_trunk(sizes)
    shapes |= _tower(f"{head}.{classes}", sizes.dim, 256, 7)
    shapes |= _tower(f"{head}.{masks}", sizes.dim + 2, 256, 7)
    for level, side in enumerate(GRIDS):
        shapes |= with_bias(f"{head}.{maps}.{level}", side**2, 256, 1, 1)
    return shapes | with_bias(f"{head}.{output}", 80, 256, 3, 3)


def decoupled_solo(sizes: Sizes) -> Shapes:
    shapes = _solo_trunk(sizes) | _tower("bbox_head.cate_convs", sizes.dim, 256, 7)
    for axis in "xy":
        shapes |= _tower(f"bbox_head.ins_convs_{axis}", sizes.dim + 1, 256, 7)
        for level, side in enumerate(GRIDS):
            name = f"bbox_head.dsolo_ins_list_{axis}.{level}"
            shapes |= with_bias(name, side, 256, 3, 3)
    return shapes | with_bias("bbox_head.dsolo_cate", 80, 256, 3, 3)


def solov2(sizes: Sizes, *, later: bool = True) -> Shapes:
    """Of the authors, or of later versions of mmdetection."""
    head, classes, output, kernels, features, last = (
        *("mask_head", "cls_convs", "conv_cls", "conv_kernel"),
        *("mask_head.mask_feature_head", "conv_pred"),
    )
    if not later:
        head, classes, output, kernels = "bbox_head", "cate_convs", "solo_cate", "solo_kernel"
        features, last = "mask_feat_head", "conv_pred.0"
    shapes = _solo_trunk(sizes)
    shapes |= _tower(f"{head}.{classes}", sizes.dim, 512, 4)
    shapes |= _tower(f"{head}.kernel_convs", sizes.dim + 2, 512, 4)
    shapes |= with_bias(f"{head}.{output}", 80, 512, 3, 3)
    shapes |= with_bias(f"{head}.{kernels}", sizes.mask_dim, 512, 3, 3)
    shapes |= _mask_features(features, sizes)
    return shapes | _normed_conv(f"{features}.{last}", sizes.mask_dim, sizes.head_dim, kernel=1)


def adelaidet_solov2(backbone: Shapes, sizes: Sizes) -> Shapes:
    """With a backbone in Detectron2's names."""
    shapes = dict(backbone)
    for tower, entering in (("cate", sizes.dim), ("kernel", sizes.dim + 2)):
        for layer in range(4):
            conv = f"ins_head.{tower}_tower.{3 * layer}"
            shapes[f"{conv}.weight"] = (512, entering if layer == 0 else 512, 3, 3)
            shapes |= with_bias(f"ins_head.{tower}_tower.{3 * layer + 1}", 512)
    shapes |= with_bias("ins_head.cate_pred", 80, 512, 3, 3)
    shapes |= with_bias("ins_head.kernel_pred", sizes.mask_dim, 512, 3, 3)
    shapes |= _mask_features("mask_head", sizes, modules=("0", "1"))
    return shapes | _normed_conv(
        "mask_head.conv_pred", sizes.mask_dim, sizes.head_dim, ("0", "1"), kernel=1
    )
