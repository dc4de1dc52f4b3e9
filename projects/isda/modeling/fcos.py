"""FCOS (arXiv 1904.01355): boxes from the locations of a pyramid, without anchors.

Letters: B images, L locations of all levels, K classes, C channels, n detections of an image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.layers import batched_nms
from torch import Tensor, nn

from isda.modeling.convolutions import normed_conv
from isda.modeling.initialization import prior_bias
from isda.requirements import COUNT, check
from isda.structures import DensePrediction, Locations

__all__ = [
    "Detections",
    "FCOSHead",
    "PointwiseHead",
    "convolution_at",
    "decode_distances",
    "fcos_decode",
]


class FCOSHead(nn.Module):
    """Classes, distances to the four sides of a box and centreness, shared by all levels."""

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        strides: Sequence[int],
        num_convs: int = 4,
        scale_levels: bool = False,
    ):
        """
        Args:
            channels: C, a multiple of 32.
            num_classes: K.
            strides: of the levels, in pixels.
            num_convs: convolutions of either tower.
            scale_levels: distances of each level are multiplied by a number that is learned.
        """
        super().__init__()
        check(COUNT, num_classes=num_classes)
        self.strides = list(strides)
        self.class_tower = _tower(channels, num_convs)
        self.box_tower = _tower(channels, num_convs)
        self.classes = _prediction(channels, num_classes)
        self.distances = _prediction(channels, 4)
        self.centreness = _prediction(channels, 1)
        self.scales = nn.Parameter(torch.ones(len(self.strides))) if scale_levels else None
        nn.init.constant_(self.classes.bias, prior_bias())
        # At 0 a side whose first values are below it everywhere would get no gradient, ever.
        nn.init.ones_(self.distances.bias)

    @property
    def num_classes(self) -> int:
        return self.classes.out_channels

    def forward(self, levels: Sequence[Tensor]) -> DensePrediction:
        """
        Args:
            levels: ``(B, C, h, w)`` of each stride.
        """
        sizes = [tuple(level.shape[-2:]) for level in levels]
        tower = [self.box_tower(level) for level in levels]
        return DensePrediction(
            locations=Locations.of(sizes, self.strides, levels[0].device),
            class_logits=_side_by_side([self.classes(self.class_tower(x)) for x in levels]),
            distances=_side_by_side(self._distances(tower)),
            centreness=_side_by_side([self.centreness(x) for x in tower]).squeeze(-1),
            tower=tower,
        )

    def _distances(self, tower: list[Tensor]) -> list[Tensor]:
        distances = [self.distances(x) for x in tower]
        if self.scales is not None:
            distances = [x * scale for x, scale in zip(distances, self.scales, strict=True)]
        return [x.relu() for x in distances]


def _tower(channels: int, num_convs: int) -> nn.Sequential:
    return nn.Sequential(*(normed_conv(channels, channels, bias=True) for _ in range(num_convs)))


def _prediction(channels: int, out_channels: int) -> nn.Conv2d:
    return _initialise(nn.Conv2d(channels, out_channels, 3, padding=1))


def _initialise(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)
    return conv


def _side_by_side(maps: Sequence[Tensor]) -> Tensor:
    """``(B, C, h, w)`` of each level → ``(B, L, C)``."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)


class PointwiseHead(nn.Module):
    """A 3×3 convolution of the box tower that is computed at chosen locations only.

    Exactly what the convolution of whole levels has there. A mask of each location takes hundreds
    of channels, and no more than some hundred locations get one.
    """

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.conv = _prediction(channels, out_channels)

    def forward(self, prediction: DensePrediction, images: Tensor, chosen: Tensor) -> Tensor:
        """
        Args:
            images, chosen: ``(n,)`` int64, which image and which of the L locations.

        Returns:
            ``(n, out_channels)``.
        """
        return convolution_at(self.conv, prediction.tower, prediction.locations, images, chosen)

    def of_image(self, prediction: DensePrediction, image: int, chosen: Tensor) -> Tensor:
        """The same for ``(n,)`` locations of one image, without a look at the others."""
        tower = [x[image, None] for x in prediction.tower]
        images = torch.zeros_like(chosen)
        return convolution_at(self.conv, tower, prediction.locations, images, chosen)


def convolution_at(
    conv: nn.Conv2d, levels: Sequence[Tensor], locations: Locations, images: Tensor, chosen: Tensor
) -> Tensor:
    """The values of a 3×3 convolution with padding 1 at chosen locations: ``(n, channels)``."""
    tokens = _side_by_side(levels)  # (B, L, C)
    numbers, exists = _neighbours(locations, chosen)
    rows = images[:, None] * tokens.shape[1] + numbers
    # The derivative of an embedding is fast; that of an index is not.
    patches = F.embedding(rows, tokens.flatten(0, 1)) * exists[..., None]  # (n, 9, C)
    patches = patches.to(conv.weight.dtype)  # half precision, where autocast has ended since
    kernel = conv.weight.flatten(2).transpose(1, 2)  # (out, 9, C)
    return F.linear(patches.flatten(1), kernel.flatten(1), conv.bias)


def _neighbours(locations: Locations, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the 3×3 locations around each of n, row by row, and whether they exist.

    Returns:
        ``(n, 9)`` int64, without meaning where there is none; ``(n, 9)`` bool.
    """
    level, row, column = locations.cells[chosen].unbind(1)
    sizes = torch.tensor(locations.sizes, device=chosen.device)[level]
    starts = torch.tensor(locations.starts, device=chosen.device)[level]
    steps = torch.arange(-1, 2, device=chosen.device)
    rows, columns = row[:, None] + steps, column[:, None] + steps  # (n, 3)
    in_rows = (rows >= 0) & (rows < sizes[:, :1])
    in_columns = (columns >= 0) & (columns < sizes[:, 1:])
    numbers = starts[:, None, None] + rows[:, :, None] * sizes[:, 1, None, None] + columns[:, None]
    exists = in_rows[:, :, None] & in_columns[:, None]
    numbers = torch.where(exists, numbers, 0)
    return numbers.flatten(1), exists.flatten(1)


class Detections(NamedTuple):
    """n boxes of one image."""

    boxes: Tensor  # (n, 4) XYXY in pixels, not clipped
    scores: Tensor  # (n,) descending
    classes: Tensor  # (n,) int64
    locations: Tensor  # (n,) int64: the numbers of the locations that predicted them


def fcos_decode(
    prediction: DensePrediction,
    image: int,
    *,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.6,
    topk_candidates: int = 1000,
    max_detections: int = 100,
) -> Detections:
    """The boxes of one image after NMS; score = √(class probability · centreness).

    Args:
        image: its index in the batch.
        score_threshold: of the product below the root.
        nms_threshold: IoU above which, of two boxes of one class, the worse goes.
        topk_candidates: boxes of each level before NMS.
        max_detections: n at most.
    """
    probs = prediction.class_logits[image].float().sigmoid()  # (L, K)
    quality = probs * prediction.centreness[image].float().sigmoid()[:, None]
    chosen, classes = _candidates(quality, prediction.locations, score_threshold, topk_candidates)
    scores = quality[chosen, classes].sqrt()
    boxes = decode_distances(
        prediction.distances[image, chosen].float(),
        prediction.locations.points(chosen),
        prediction.locations.strides_of(chosen),
    )
    kept = batched_nms(boxes, scores, classes, nms_threshold)[:max_detections]
    return Detections(boxes[kept], scores[kept], classes[kept], chosen[kept])


def _candidates(
    quality: Tensor, locations: Locations, threshold: float, count: int
) -> tuple[Tensor, Tensor]:
    """Locations and classes of the best pairs of each level: ``(m,)`` each."""
    chosen, classes = [], []
    counts = [height * width for height, width in locations.sizes]
    for start, level in zip(locations.starts, quality.split(counts), strict=True):
        values, indices = level.flatten().topk(min(count, level.numel()))
        indices = indices[values > threshold]
        chosen.append(start + torch.div(indices, level.shape[1], rounding_mode="floor"))
        classes.append(indices % level.shape[1])
    return torch.cat(chosen), torch.cat(classes)


def decode_distances(distances: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """``(n, 4)`` distances in strides from ``(n, 2)`` points → ``(n, 4)`` boxes, XYXY in pixels."""
    distances = distances * strides[:, None]
    return torch.cat([points - distances[:, :2], points + distances[:, 2:]], dim=1)
