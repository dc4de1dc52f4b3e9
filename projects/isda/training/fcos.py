"""Targets and losses of FCOS (arXiv 1904.01355), as CondInst and BlendMask use them.

Letters: B images, L locations of all levels, K classes, G ground truths of an image, P locations
that answer for one.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from isda.structures import DensePrediction, DenseTargets, Locations
from isda.training.criterion import averaged_count

__all__ = [
    "assign_locations",
    "centreness_sum",
    "fcos_losses",
    "fcos_targets",
    "smoothed_giou",
]

RADIUS = 1.5  # strides from the centre within which a location answers for a ground truth
# A level is for boxes whose farthest side is so many strides away; the first and the last level
# take the smaller and the larger ones too.
NEAREST, FARTHEST = 4, 8


def fcos_targets(
    locations: Locations,
    boxes: Sequence[Tensor],
    centres: Sequence[Tensor],
    classes: Sequence[Tensor],
) -> DenseTargets:
    """The ground truths for which the locations of B images answer.

    Args:
        boxes: per image ``(G, 4)`` XYXY in pixels.
        centres: per image ``(G, 2)`` as (x, y) in pixels: of the boxes, or of the masks.
        classes: per image ``(G,)`` int64.
    """
    parts = []
    for image, (b, c, labels) in enumerate(zip(boxes, centres, classes, strict=True)):
        instances = assign_locations(locations, b, c)
        chosen = (instances >= 0).nonzero()[:, 0]
        instances = instances[chosen]
        distances = _distances(locations, chosen, b[instances])
        of_image = torch.full_like(chosen, image)
        answers = (of_image, chosen, instances, labels[instances], distances)
        parts.append((*answers, centreness_of(distances)))
    return DenseTargets(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def assign_locations(locations: Locations, boxes: Tensor, centres: Tensor) -> Tensor:
    """The ground truth that each location answers for; -1 for none: ``(L,)`` int64.

    A location answers if it is strictly inside the box and strictly within 1.5 strides of the
    centre along both axes, and the box's farthest side is in its level's range, both ends
    included; of several ground truths for the one with the smallest box. At most 3×3 cells of a
    level are so near to a centre, and no others are looked at.

    Args:
        boxes: ``(G, 4)`` XYXY in pixels.
        centres: ``(G, 2)`` as (x, y) in pixels.
    """
    count, num_locations = len(boxes), len(locations.cells)
    sides = boxes[:, 2:] - boxes[:, :2]
    order = sides.prod(dim=1).argsort(stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(count, device=boxes.device)
    best = torch.full((num_locations,), count, device=boxes.device)
    for level, start in enumerate(locations.starts):
        numbers, answers = _near_centres(locations, level, boxes, centres)
        numbers, of_ranks = numbers[answers] + start, ranks[:, None, None].expand_as(answers)
        best.scatter_reduce_(0, numbers, of_ranks[answers], "amin")
    return torch.cat([order, order.new_tensor([-1])])[best]


def _near_centres(
    locations: Locations, level: int, boxes: Tensor, centres: Tensor
) -> tuple[Tensor, Tensor]:
    """The 3×3 cells around each centre: their numbers in the level, and whether they answer.

    Returns:
        ``(G, 3, 3)`` int64 and bool, rows before columns.
    """
    (height, width), stride = locations.sizes[level], locations.strides[level]
    steps = torch.arange(-1, 2, device=boxes.device)
    cells, valid, near_sides, far_sides = [], [], [], []
    for axis, length in enumerate((width, height)):
        index = (centres[:, axis] / stride).floor().long()[:, None] + steps  # (G, 3)
        points = (index + 0.5) * stride
        before, after = points - boxes[:, axis, None], boxes[:, axis + 2, None] - points
        distance = (points - centres[:, axis, None]).abs()
        cells.append(index)
        valid.append((index >= 0) & (index < length) & (distance < RADIUS * stride))
        near_sides.append(torch.minimum(before, after))
        far_sides.append(torch.maximum(before, after))
    nearest, farthest = (
        reduce(sides[1][:, :, None], sides[0][:, None])
        for reduce, sides in ((torch.minimum, near_sides), (torch.maximum, far_sides))
    )
    answers = valid[1][:, :, None] & valid[0][:, None] & (nearest > 0)
    low, high = _range(locations, level)
    answers &= (farthest >= low) & (farthest <= high)
    return cells[1][:, :, None] * width + cells[0][:, None], answers


def _range(locations: Locations, level: int) -> tuple[float, float]:
    """Distances of the farthest side for which a level is there, in pixels."""
    stride = locations.strides[level]
    is_last = level == len(locations.strides) - 1
    return NEAREST * stride if level else 0, float("inf") if is_last else FARTHEST * stride


def _distances(locations: Locations, chosen: Tensor, boxes: Tensor) -> Tensor:
    """From locations to the sides of a box each, in strides: ``(n, 4)``."""
    points = locations.points(chosen)
    sides = torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], dim=1)
    return sides / locations.strides_of(chosen)[:, None]


def centreness_of(distances: Tensor) -> Tensor:
    """√(min(l, r) / max(l, r) · min(t, b) / max(t, b)): ``(n, 4)`` above 0 → ``(n,)``."""
    start, end = distances[:, :2], distances[:, 2:]
    return (torch.minimum(start, end) / torch.maximum(start, end)).prod(dim=1).sqrt()


def fcos_losses(prediction: DensePrediction, targets: DenseTargets) -> dict[str, Tensor]:
    """``loss_fcos_cls``, ``loss_fcos_loc``, ``loss_fcos_ctr``: float32 scalars.

    Without any ground truth the last two are zeros that still reach every parameter: under DDP each
    process has to take part in every reduction.
    """
    places = targets.images, targets.locations
    logits = prediction.class_logits.float()
    one_hot = torch.zeros_like(logits)
    one_hot[(*places, targets.classes)] = 1
    classes = sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2.0, reduction="sum")
    giou = smoothed_giou(prediction.distances[places].float(), targets.distances)
    centreness = F.binary_cross_entropy_with_logits(
        prediction.centreness[places].float(), targets.centreness, reduction="sum"
    )
    count = averaged_count(len(targets), logits.device)
    return {
        "loss_fcos_cls": classes / count,
        "loss_fcos_loc": (targets.centreness * (1 - giou)).sum() / centreness_sum(targets),
        "loss_fcos_ctr": centreness / count,
    }


def centreness_sum(targets: DenseTargets) -> Tensor:
    """What sums that centreness weighs are divided by: its own, averaged over processes."""
    return averaged_count(targets.centreness.sum(), targets.centreness.device, smallest=1e-6)


def smoothed_giou(distances: Tensor, others: Tensor, smoothing: float = 1.0) -> Tensor:
    """Generalised IoU (arXiv 1902.09630) of boxes around common points: ``(n, 4)`` → ``(n,)``.

    Args:
        distances, others: to the left, top, right and bottom side, at least 0; of ``others`` above.
        smoothing: added to the intersection and to the union.
    """
    areas = [(d[:, :2] + d[:, 2:]).prod(dim=1) for d in (distances, others)]
    near, far = torch.minimum(distances, others), torch.maximum(distances, others)
    intersection, hull = ((d[:, :2] + d[:, 2:]).prod(dim=1) for d in (near, far))
    union = areas[0] + areas[1] - intersection
    iou = (intersection + smoothing) / (union + smoothing)
    return iou - (hull - union) / hull
