import itertools
import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, Instances
from fvcore.nn import giou_loss

from isda.structures import DensePrediction, DenseTargets, Locations
from isda.training.fcos import (
    assign_locations,
    centreness_of,
    fcos_losses,
    fcos_targets,
    smoothed_giou,
)

STRIDES = [8, 16, 32, 64, 128]
RANGES = [(0, 64), (64, 128), (128, 256), (256, 512), (512, math.inf)]
CPU = torch.device("cpu")


def pyramid(height=256, width=384):
    sizes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    return Locations.of(sizes, STRIDES, CPU)


def random_boxes(count, height=256, width=384, whole=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    sizes = torch.rand(count, 2, generator=generator) ** 2 * torch.tensor([width, height]) + 0.5
    high = torch.minimum(low + sizes, torch.tensor([width, height], dtype=torch.float32))
    boxes = torch.cat([low, high], dim=1)
    return boxes.round() if whole else boxes


def assigned_by_loops(boxes, centres, height=256, width=384):
    """The page's words, location by location."""
    assigned = []
    for stride, (low, high) in zip(STRIDES, RANGES, strict=True):
        rows, columns = -(-height // stride), -(-width // stride)
        for i, j in itertools.product(range(rows), range(columns)):
            x, y = j * stride + stride / 2, i * stride + stride / 2
            best, smallest = -1, math.inf
            for index, ((x0, y0, x1, y1), (cx, cy)) in enumerate(
                zip(boxes.tolist(), centres.tolist(), strict=True)
            ):
                sides = x - x0, y - y0, x1 - x, y1 - y
                near = abs(x - cx) < 1.5 * stride and abs(y - cy) < 1.5 * stride
                fits = min(sides) > 0 and low <= max(sides) <= high
                if near and fits and (x1 - x0) * (y1 - y0) < smallest:
                    best, smallest = index, (x1 - x0) * (y1 - y0)
            assigned.append(best)
    return assigned


def middle(boxes):
    return (boxes[:, :2] + boxes[:, 2:]) / 2


@pytest.mark.parametrize(("count", "whole"), [(0, False), (1, False), (40, False), (60, True)])
def test_locations_are_assigned_as_the_loops_say(count, whole):
    boxes = random_boxes(count, whole=whole)
    centres = middle(boxes) + 9 * torch.randn(count, 2, generator=torch.Generator().manual_seed(1))
    centres = centres.round() if whole else centres  # exact borders of the distances
    found = assign_locations(pyramid(), boxes, centres)
    assert found.tolist() == assigned_by_loops(boxes, centres)
    assert count < 40 or len(found.unique()) > 10


def test_both_ends_of_a_range_belong_to_it():
    # From (68, 68) of stride 8 and (72, 72) of stride 16 the farthest side is exactly 64 away.
    for corner, point, stride in ((4.0, 68.0, 8), (8.0, 72.0, 16)):
        box = torch.tensor([[corner, corner, 2 * point - corner, 2 * point - corner]])
        locations = pyramid()
        found = assign_locations(locations, box, middle(box))
        chosen = (found == 0).nonzero()[:, 0]
        points = locations.points(chosen)[locations.strides_of(chosen) == stride]
        assert [point, point] in points.tolist()


@pytest.fixture(scope="module")
def detectron2_fcos():
    class Nothing(Backbone):
        forward = None

        def output_shape(self):
            return {f"p{i}": ShapeSpec(channels=4, stride=s) for i, s in enumerate(STRIDES)}

    return FCOS(
        backbone=Nothing(),
        head=torch.nn.Identity(),
        head_in_features=[f"p{i}" for i in range(5)],
        num_classes=7,
        pixel_mean=(0.0,),
        pixel_std=(1.0,),
    )


def test_targets_are_those_of_detectron2(detectron2_fcos):
    """Box centres, and boxes of any place and size, so that nothing lies on a border."""
    boxes = random_boxes(30)
    instances = Instances((256, 384), gt_boxes=Boxes(boxes), gt_classes=torch.arange(30) % 7)
    locations = pyramid()
    features = [torch.zeros(1, 1, *size) for size in locations.sizes]
    anchors = detectron2_fcos.anchor_generator(features)
    (labels,), (matched,) = detectron2_fcos.label_anchors(anchors, [instances])
    targets = fcos_targets(locations, [boxes], [middle(boxes)], [instances.gt_classes])
    classes = torch.full_like(labels, 7)
    classes[targets.locations] = targets.classes
    assert classes.tolist() == labels.tolist()
    assert len(targets) > 50
    assert boxes[targets.instances].equal(matched[targets.locations])
    # And its sides, which it measures in strides as well.
    deltas = detectron2_fcos.box2box_transform.get_deltas(Boxes.cat(anchors).tensor, matched)
    torch.testing.assert_close(targets.distances, deltas[targets.locations])
    centreness = detectron2_fcos.compute_ctrness_targets(anchors, [matched])[0]
    torch.testing.assert_close(targets.centreness, centreness[targets.locations])


def test_a_location_goes_to_the_smallest_box():
    outer, inner = [16.0, 16.0, 80.0, 80.0], [32.0, 32.0, 64.0, 64.0]
    for boxes, smallest in (([outer, inner], 1), ([inner, outer], 0)):
        boxes = torch.tensor(boxes)
        found = assign_locations(pyramid(), boxes, middle(boxes))
        locations = (found == smallest).nonzero()[:, 0]
        assert len(locations) > 0
        assert not (found == 1 - smallest).any()


def test_centreness_is_1_at_the_centre_of_a_box():
    assert centreness_of(torch.tensor([[3.0, 5.0, 3.0, 5.0], [1.0, 2.0, 4.0, 8.0]])).tolist() == [
        1.0,
        0.25,
    ]


def random_distances(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 10 * torch.rand(count, 4, dtype=torch.float64, generator=generator) + 0.1


def around_zero(distances):
    return torch.cat([-distances[:, :2], distances[:, 2:]], dim=1)


def test_giou_without_smoothing_is_fvcores():
    ours, others = random_distances(20), random_distances(20, seed=1)
    expected = 1 - giou_loss(around_zero(ours), around_zero(others), eps=0)
    torch.testing.assert_close(smoothed_giou(ours, others, smoothing=0), expected)
    # Smoothing adds one square stride, of less and less weight as boxes grow.
    torch.testing.assert_close(smoothed_giou(1e5 * ours, 1e5 * others), expected)
    assert (smoothed_giou(ours, others) > expected).any()
    assert smoothed_giou(torch.zeros(1, 4), torch.ones(1, 4)).item() == pytest.approx(1 / 5)


def random_prediction(locations, batch=2, num_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = len(locations.cells)

    def random(*sizes):
        return torch.randn(batch, count, *sizes, generator=generator).requires_grad_()

    logits, distances, centreness = random(num_classes), random(4), random()
    return DensePrediction(locations, logits, distances.abs() * 3, centreness, []), (
        logits,
        distances,
        centreness,
    )


def random_targets(locations, counts, num_classes=3):
    boxes = [random_boxes(count, 64, 96, seed=seed) for seed, count in enumerate(counts)]
    classes = [torch.arange(count) % num_classes for count in counts]
    return fcos_targets(locations, boxes, [middle(b) for b in boxes], classes)


def losses_by_loops(prediction, targets):
    """Sums in Python's floats."""
    at = {
        (int(image), int(place)): row
        for row, (image, place) in enumerate(zip(targets.images, targets.locations, strict=True))
    }
    classes = location = centre = 0.0
    batch, count, num_classes = prediction.class_logits.shape
    for image, place in itertools.product(range(batch), range(count)):
        row = at.get((image, place))
        for label in range(num_classes):
            x = prediction.class_logits[image, place, label].item()
            p = 1 / (1 + math.exp(-x))
            if row is not None and targets.classes[row] == label:
                classes -= 0.25 * (1 - p) ** 2 * math.log(p)
            else:
                classes -= 0.75 * p**2 * math.log(1 - p)
        if row is None:
            continue
        a = prediction.distances[image, place].tolist()
        b = targets.distances[row].tolist()
        size = lambda d: (d[0] + d[2]) * (d[1] + d[3])  # noqa: E731
        overlap, hull = size(list(map(min, a, b))), size(list(map(max, a, b)))
        union = size(a) + size(b) - overlap
        giou = (overlap + 1) / (union + 1) - (hull - union) / hull
        target = targets.centreness[row].item()
        location += target * (1 - giou)
        p = 1 / (1 + math.exp(-prediction.centreness[image, place].item()))
        centre -= target * math.log(p) + (1 - target) * math.log(1 - p)
    positives, total = max(len(targets), 1), max(sum(targets.centreness.tolist()), 1e-6)
    return [classes / positives, location / total, centre / positives]


NAMES = ["loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"]


@pytest.mark.parametrize("counts", [(5, 3), (4, 0), (0, 0)])
def test_losses_against_loops(counts):
    locations = pyramid(64, 96)
    prediction, leaves = random_prediction(locations)
    targets = random_targets(locations, counts)
    losses = fcos_losses(prediction, targets)
    assert list(losses) == NAMES
    assert len(targets) > 0 or counts == (0, 0)
    expected = losses_by_loops(prediction, targets)
    assert [loss.item() for loss in losses.values()] == pytest.approx(expected, rel=1e-4)
    sum(losses.values()).backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def test_losses_of_half_precision_are_in_float32():
    locations = pyramid(64, 96)
    prediction, _ = random_prediction(locations)
    targets = random_targets(locations, (5, 3))
    whole = fcos_losses(prediction, targets)
    half = DensePrediction(
        locations,
        *(
            getattr(prediction, name).bfloat16()
            for name in ("class_logits", "distances", "centreness")
        ),
        [],
    )
    for name, loss in fcos_losses(half, targets).items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, whole[name], rtol=0.02, atol=0)


def test_targets_can_be_chosen():
    targets = random_targets(pyramid(64, 96), (5, 3))
    chosen = targets[torch.tensor([2, 0])]
    assert isinstance(chosen, DenseTargets)
    assert chosen.locations.tolist() == [int(targets.locations[2]), int(targets.locations[0])]
    assert len(chosen) == len(chosen.centreness) == 2
