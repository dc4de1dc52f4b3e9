import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from isda import add_isda_config
from isda.modeling.fcos import (
    FCOSHead,
    PointwiseHead,
    decode_distances,
    fcos_decode,
)
from isda.modeling.pyramid import pyramid_shapes
from isda.structures import DensePrediction, Locations
from isda.training.fcos import fcos_targets

STRIDES = [8, 16, 32, 64, 128]
CPU = torch.device("cpu")


def count(module):
    return sum(p.numel() for p in module.parameters())


def levels_of(height, width, channels, batch=2):
    torch.manual_seed(0)
    return [torch.randn(batch, channels, -(-height // s), -(-width // s)) for s in STRIDES]


def test_parameters_of_the_paper():
    head = FCOSHead(channels=256, num_classes=80, strides=STRIDES)
    assert count(head) == 4_920_661
    assert count(FCOSHead(channels=256, num_classes=80, strides=STRIDES, scale_levels=True)) == (
        4_920_661 + 5
    )
    assert count(PointwiseHead(256, 169)) == 389_545
    assert count(PointwiseHead(256, 784)) == 1_807_120
    assert head.classes.bias.detach().sigmoid().allclose(torch.tensor(0.01))
    assert head.distances.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not head.centreness.bias.any()


def test_every_side_of_a_fresh_head_has_a_gradient():
    """ReLU passes none at values below 0, and those of a fresh head are alike everywhere."""
    for seed in range(5):
        torch.manual_seed(seed)
        head = FCOSHead(channels=32, num_classes=3, strides=STRIDES)
        distances = head(levels_of(64, 64, 32)).distances
        distances.sum().backward()
        assert (head.distances.bias.grad > 0).all()
        assert (distances > 0.5).all()


@pytest.mark.parametrize("scale_levels", [False, True])
def test_the_head_is_its_layers_level_by_level(scale_levels):
    head = FCOSHead(channels=32, num_classes=3, strides=STRIDES, scale_levels=scale_levels)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.2)
    levels = levels_of(64, 160, 32, batch=1)
    prediction = head(levels)
    start = 0
    for index, level in enumerate(levels):
        classes, boxes = level, level
        for tower in (head.class_tower, head.box_tower):
            x = level
            for conv in tower:
                x = F.conv2d(x, conv.weight, conv.bias, padding=1)
                x = F.relu(F.group_norm(x, 16, conv.norm.weight, conv.norm.bias))
            classes, boxes = (x, boxes) if tower is head.class_tower else (classes, x)
        scale = head.scales[index] if scale_levels else 1
        distances = F.relu(scale * head.distances(boxes))
        numbers = slice(start, start + level.shape[2] * level.shape[3])
        for found, expected in (
            (prediction.class_logits[0, numbers], head.classes(classes)),
            (prediction.distances[0, numbers], distances),
            (prediction.centreness[0, numbers, None], head.centreness(boxes)),
        ):
            expected = expected[0].permute(1, 2, 0).flatten(0, 1)  # row by row
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        points = prediction.locations.points(torch.arange(numbers.start, numbers.stop))
        middles = [(n + 0.5) * STRIDES[index] for n in range(max(level.shape))]
        assert points.tolist() == [
            [x, y] for y in middles[: level.shape[2]] for x in middles[: level.shape[3]]
        ]
        start += level.shape[2] * level.shape[3]
    assert start == prediction.class_logits.shape[1]


def test_a_convolution_at_chosen_locations_is_the_whole_one_there():
    torch.manual_seed(0)
    levels = [level.double().requires_grad_() for level in levels_of(72, 200, 6)]
    head = PointwiseHead(6, 5).double()
    sizes = [level.shape[-2:] for level in levels]
    locations = Locations.of(sizes, STRIDES, CPU)
    prediction = DensePrediction(locations, None, None, None, levels)
    everywhere = torch.cat([head.conv(x).flatten(2).transpose(1, 2) for x in levels], dim=1)
    images = torch.arange(2).repeat_interleave(len(locations.cells))
    chosen = torch.arange(len(locations.cells)).repeat(2)
    shuffled = torch.randperm(len(chosen))[:150]  # corners and levels of one cell among them
    found = head(prediction, images[shuffled], chosen[shuffled])
    expected = everywhere[images[shuffled], chosen[shuffled]]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    leaves = [*levels, *head.parameters()]
    weights = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_no_location_chosen_leaves_a_gradient_of_zero():
    levels = levels_of(64, 64, 6)
    locations = Locations.of([level.shape[-2:] for level in levels], STRIDES, CPU)
    head, nothing = PointwiseHead(6, 5), torch.zeros(0, dtype=torch.int64)
    head(DensePrediction(locations, None, None, None, levels), nothing, nothing).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


# ---- inference ----


def perfect_prediction(boxes, classes, num_classes=3, size=(256, 384)):
    """Of two images: what targets ask for is said with certainty in the second."""
    sizes = [(-(-size[0] // s), -(-size[1] // s)) for s in STRIDES]
    locations = Locations.of(sizes, STRIDES, CPU)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    targets = fcos_targets(locations, [boxes], [centres], [classes])
    total = len(locations.cells)
    logits = torch.full((2, total, num_classes), -20.0)
    distances, centreness = torch.zeros(2, total, 4), torch.full((2, total), -20.0)
    logits[1, targets.locations, targets.classes] = 4.0
    distances[1, targets.locations] = targets.distances
    centreness[1, targets.locations] = targets.centreness.logit(eps=1e-6)
    return DensePrediction(locations, logits, distances, centreness, []), targets


BOXES = torch.tensor([[10.0, 20.0, 60.0, 90.0], [100.0, 40.0, 370.0, 250.0], [5.0, 100.0, 9, 240]])


def test_decoding_what_was_encoded_returns_the_boxes():
    classes = torch.tensor([2, 0, 1])
    prediction, targets = perfect_prediction(BOXES, classes)
    found = fcos_decode(prediction, 1, score_threshold=1e-3)
    order = found.boxes[:, 0].argsort()
    torch.testing.assert_close(found.boxes[order], BOXES[[2, 0, 1]], atol=1e-3, rtol=1e-5)
    assert found.classes[order].tolist() == [1, 2, 0]
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    # Of the locations of each box the most central has stayed.
    for box, location, score in zip(found.boxes, found.locations, found.scores, strict=True):
        instance = int((BOXES - box).abs().sum(dim=1).argmin())
        best = targets.centreness[targets.instances == instance].max()
        row = (targets.locations == location).nonzero()[0, 0]
        assert targets.centreness[row] == best
        probability = torch.tensor(4.0).sigmoid() * best
        assert score.item() == pytest.approx(probability.sqrt().item(), abs=1e-5)


def test_an_image_without_detections():
    prediction, _ = perfect_prediction(BOXES, torch.tensor([2, 0, 1]))
    found = fcos_decode(prediction, 0)
    assert [tuple(x.shape) for x in found] == [(0, 4), (0,), (0,), (0,)]
    assert found.classes.dtype == found.locations.dtype == torch.int64


def random_prediction(num_classes=3, size=(64, 96)):
    torch.manual_seed(3)
    sizes = [(-(-size[0] // s), -(-size[1] // s)) for s in STRIDES]
    locations = Locations.of(sizes, STRIDES, CPU)
    total = len(locations.cells)
    logits, centreness = 2 * torch.randn(1, total, num_classes), torch.randn(1, total)
    return DensePrediction(locations, logits, 4 * torch.rand(1, total, 4), centreness, [])


def decoded_by_loops(prediction, topk, threshold=0.05, nms=0.6, limit=100):
    """Candidates, greedy NMS and order, one pair at a time."""
    candidates, start = [], 0
    quality = prediction.class_logits[0].sigmoid() * prediction.centreness[0].sigmoid()[:, None]
    for (height, width), stride in zip(prediction.locations.sizes, STRIDES, strict=True):
        level = []
        for number in range(start, start + height * width):
            i, j = divmod(number - start, width)
            left, top, right, bottom = (prediction.distances[0, number] * stride).tolist()
            x, y = (j + 0.5) * stride, (i + 0.5) * stride
            box = (x - left, y - top, x + right, y + bottom)
            for label, q in enumerate(quality[number].tolist()):
                level.append((q, label, box, number))
        candidates += [c for c in sorted(level, reverse=True)[:topk] if c[0] > threshold]
        start += height * width
    kept = []
    for q, label, box, number in sorted(candidates, reverse=True):
        if all(label != other or overlap(box, b) <= nms for _, other, b, _ in kept):
            kept.append((q, label, box, number))
    return kept[:limit]


def overlap(a, b):
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize(("topk", "limit"), [(1000, 100), (20, 100), (1000, 7)])
def test_decoding_against_loops(topk, limit):
    prediction = random_prediction()
    found = fcos_decode(prediction, 0, topk_candidates=topk, max_detections=limit)
    expected = decoded_by_loops(prediction, topk, limit=limit)
    assert found.classes.tolist() == [label for _, label, _, _ in expected]
    assert found.locations.tolist() == [number for *_, number in expected]
    assert found.scores.tolist() == pytest.approx([q**0.5 for q, *_ in expected], rel=1e-5)
    boxes = torch.tensor([box for _, _, box, _ in expected])
    torch.testing.assert_close(found.boxes, boxes, atol=1e-3, rtol=1e-5)


def test_distances_are_in_strides():
    box = decode_distances(
        torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[20.0, 12.0]]), torch.tensor([8.0])
    )
    assert box.tolist() == [[12.0, -4.0, 44.0, 44.0]]


# ---- the neck ----


@pytest.mark.parametrize(
    ("name", "in_features", "strides"),
    [
        ("build_fcos_basic_resnet_fpn_backbone", ["res3", "res4", "res5"], STRIDES),
        ("build_fcos_torch_fpn_backbone", ["res3", "res4", "res5"], STRIDES),
        ("build_fcos_torch_fpn_backbone", ["res2", "res3", "res4", "res5"], [4, *STRIDES]),
        ("build_fcos_resnet_fpn_backbone", ["res3", "res4", "res5"], STRIDES),
        ("build_fcos_swin_fpn_backbone", ["res3", "res4", "res5"], STRIDES),
    ],
)
def test_necks(name, in_features, strides):
    cfg = get_cfg()
    add_isda_config(cfg)
    cfg.MODEL.BACKBONE = CfgNode({"NAME": name, "FREEZE_AT": 0})
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.SWIN.EMBED_DIM, cfg.MODEL.SWIN.DEPTHS = 24, [1, 1, 1, 1]
    cfg.MODEL.TORCH_BACKBONE.NAME = "mobilenet_v2"
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = in_features, 32
    neck = build_backbone(cfg)
    names = [f"p{stride.bit_length() - 1}" for stride in strides]
    shapes = pyramid_shapes(neck.output_shape(), names, "MODEL.CONDINST.IN_FEATURES")
    assert [shape.stride for shape in shapes] == strides
    features = neck(torch.zeros(1, 3, 96, 160))
    for level, stride in zip(names, strides, strict=True):
        assert features[level].shape == (1, 32, -(-96 // stride), -(-160 // stride))
    p6, p7 = neck.top_block.p6, neck.top_block.p7
    torch.testing.assert_close(features["p6"], p6(features["p5"]))
    torch.testing.assert_close(features["p7"], p7(F.relu(features["p6"])))


@pytest.mark.parametrize(
    ("names", "channels", "message"),
    [
        (["p3", "p9"], 64, "names \\['p9'\\], but the backbone gives \\['p3', 'p4', 'p5'\\]"),
        ([], 64, "names no level"),
        (["p3", "p5"], 64, "strides \\[8, 32\\]: each must be twice"),
        (["p3", "p4"], 40, "one multiple of 32; MODEL.FPN.OUT_CHANNELS"),
    ],
)
def test_levels_that_do_not_fit_are_refused(names, channels, message):
    shapes = {f"p{i}": ShapeSpec(channels=channels, stride=2**i) for i in (3, 4, 5)}
    with pytest.raises(ValueError, match=f"MODEL.X.IN_FEATURES.*{message}"):
        pyramid_shapes(shapes, names, "MODEL.X.IN_FEATURES", multiple=32)
