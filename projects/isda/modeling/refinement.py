"""ISTR's recurrent refinement (arXiv 2105.00637, section 3): queries and boxes, step by step.

Letters: B images, N queries, K classes, C channels of queries and levels, d numbers of a mask
embedding, P×P cells of a region of interest.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn

from isda.modeling.boxes import bounded_boxes, decode_boxes
from isda.modeling.initialization import prior_bias
from isda.requirements import COUNT, ArgumentError, check
from isda.structures import EmbeddedPrediction

__all__ = [
    "DynamicConvolution",
    "LearnedQueries",
    "RefinementHead",
    "RefinementStep",
    "build_pooler",
    "image_features",
]

_SAMPLES_PER_CELL = 2  # ROIAlign's, along each axis
_TOWER_LAYERS = 3


class LearnedQueries(nn.Module):
    """Where refinement starts: learned boxes, and learned features plus the image's own."""

    def __init__(self, *, num_queries: int, hidden_dim: int, image_feature: bool = True):
        """
        Args:
            image_feature: add the image's mean features to each query's.
        """
        super().__init__()
        check(COUNT, num_queries=num_queries)
        self.image_feature = image_feature
        self.features = nn.Embedding(num_queries, hidden_dim)
        # Centre and size, in shares of the image; at first each query looks at all of it.
        self.boxes = nn.Embedding(num_queries, 4)
        with torch.no_grad():
            self.boxes.weight.copy_(torch.tensor([0.5, 0.5, 1.0, 1.0]))

    def forward(
        self, levels: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]], extents: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            levels: P2..P5, each ``(B, C, H / stride, W / stride)``.
            image_sizes: ``(height, width)`` of each image without padding, in pixels.
            extents: ``(B, 2)``, the same as (width, height).

        Returns:
            Features ``(B, N, C)`` and boxes ``(B, N, 4)``, XYXY in pixels, float32.
        """
        features = self.features.weight.expand(len(image_sizes), -1, -1)
        if self.image_feature:
            features = features + image_features(levels, image_sizes)[:, None]
        centres, sizes = self.boxes.weight.chunk(2, dim=1)
        scale = extents[:, None]
        return features, bounded_boxes(centres * scale, sizes * scale, extents)


def image_features(
    levels: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]], finest_stride: int = 4
) -> Tensor:
    """Means over each image's valid cells, summed over levels whose strides double: ``(B, C)``."""
    total = levels[0].new_zeros(levels[0].shape[:2], dtype=torch.float32)
    for index, level in enumerate(levels):
        stride = finest_stride * 2**index
        # Rounded up without negative numbers, whose division ONNX rounds the other way.
        valid = [[(side + stride - 1) // stride for side in size] for size in image_sizes]
        means = [
            cells[:, :rows, :columns].float().mean((1, 2))
            for cells, (rows, columns) in zip(level, valid, strict=True)
        ]
        total = total + torch.stack(means)
    return total


class RefinementHead(nn.Module):
    """T steps with weights of their own; each begins with the boxes that the last one predicted."""

    def __init__(self, steps: Sequence["RefinementStep"], pooler: ROIPooler):
        """
        Args:
            pooler: of all steps, see :func:`build_pooler`.
        """
        super().__init__()
        check(COUNT, num_steps=len(steps))
        self.steps = nn.ModuleList(steps)
        self.pooler = pooler

    def forward(
        self, levels: Sequence[Tensor], queries: Tensor, boxes: Tensor, extents: Tensor
    ) -> list[EmbeddedPrediction]:
        """
        Args:
            levels: P2..P5, each ``(B, C, H / stride, W / stride)``.
            queries: ``(B, N, C)``.
            boxes: ``(B, N, 4)`` XYXY in pixels, not empty.
            extents: ``(B, 2)``, the images' (width, height) without padding.

        Returns:
            One prediction per step; at inference of the last step only.
        """
        # ROIAlign takes boxes in the type of the features: bfloat16 would move them by pixels.
        levels = [level.float() for level in levels]
        predictions = []
        for index, step in enumerate(self.steps):
            rois = self.pooler(levels, [Boxes(b) for b in boxes.detach()])  # (B·N, C, P, P)
            queries = step(queries, rois)
            boxes = decode_boxes(step.box_deltas(queries), boxes, extents)
            if self.training or index == len(self.steps) - 1:
                predictions.append(
                    EmbeddedPrediction(step.class_logits(queries), boxes, step.embeddings(queries))
                )
            boxes = boxes.detach()
        return predictions


def build_pooler(strides: Sequence[int], resolution: int) -> ROIPooler:
    """ROIAlign over levels of these strides, a box's level by its size as in Detectron2.

    Raises:
        ValueError: strides that are not 4, 8, 16 … or a resolution below 1.
    """
    if list(strides) != [4 * 2**index for index in range(len(strides))] or not strides:
        raise ArgumentError(
            "in_features",
            f"have the strides {list(strides)}; they must be 4, 8, 16, 32, as p2 to p5 of "
            "Detectron2's FPN, or the first of these",
        )
    check(COUNT, pooler_resolution=resolution)
    return ROIPooler(
        output_size=resolution,
        scales=[1 / stride for stride in strides],
        sampling_ratio=_SAMPLES_PER_CELL,
        pooler_type="ROIAlignV2",
    )


class RefinementStep(nn.Module):
    """Self-attention, dynamic convolution and feed-forward network, post-norm; then three towers.

    The towers are methods of their own, because at inference only the last step needs them all.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        embedding_dim: int = 60,
        hidden_dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        dynamic_dim: int = 64,
        roi_size: int = 7,
    ):
        """
        Args:
            embedding_dim: d.
            hidden_dim: C, a multiple of ``num_heads``.
            dynamic_dim: channels between the two dynamic layers.
            roi_size: P.
        """
        super().__init__()
        check(
            COUNT,
            num_classes=num_classes,
            embedding_dim=embedding_dim,
            num_heads=num_heads,
            feedforward_dim=feedforward_dim,
            dynamic_dim=dynamic_dim,
        )
        if hidden_dim <= 0 or hidden_dim % num_heads:
            raise ArgumentError(
                "hidden_dim",
                f"must be a positive multiple of num_heads, got {hidden_dim} and {num_heads}",
            )
        self.self_attn = nn.MultiheadAttention(hidden_dim, num_heads, batch_first=True)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.dynamic_conv = DynamicConvolution(hidden_dim, dynamic_dim, roi_size)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.linear1 = nn.Linear(hidden_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)
        self.class_tower = _tower(hidden_dim)
        self.box_tower = _tower(hidden_dim)
        self.mask_tower = _tower(hidden_dim)
        self.classes = nn.Linear(hidden_dim, num_classes)
        self.deltas = nn.Linear(hidden_dim, 4)
        self.masks = nn.Linear(hidden_dim, embedding_dim)
        self._initialise()

    def _initialise(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.constant_(self.classes.bias, prior_bias())

    def forward(self, queries: Tensor, rois: Tensor) -> Tensor:
        """
        Args:
            queries: ``(B, N, C)``.
            rois: ``(B * N, C, P, P)``, what each query's box shows.

        Returns:
            The refined queries, ``(B, N, C)``.
        """
        attended, _ = self.self_attn(queries, queries, queries, need_weights=False)
        queries = self.norm1(queries + attended)
        queries = self.norm2(queries + self.dynamic_conv(queries, rois))
        return self.norm3(queries + self.linear2(F.elu(self.linear1(queries))))

    def class_logits(self, queries: Tensor) -> Tensor:
        """``(B, N, C)`` → ``(B, N, K)``."""
        return self.classes(self.class_tower(queries))

    def box_deltas(self, queries: Tensor) -> Tensor:
        """``(B, N, C)`` → ``(B, N, 4)``, see :func:`isda.modeling.boxes.decode_boxes`."""
        return self.deltas(self.box_tower(queries))

    def embeddings(self, queries: Tensor) -> Tensor:
        """``(B, N, C)`` → ``(B, N, d)``."""
        return self.masks(self.mask_tower(queries))


class DynamicConvolution(nn.Module):
    """Each query looks at its region through two 1×1 convolutions whose weights it makes.

    The paper's dynamic attention; the instance interaction of Sparse R-CNN (arXiv 2011.12450).
    """

    def __init__(self, hidden_dim: int = 256, dynamic_dim: int = 64, roi_size: int = 7):
        super().__init__()
        self.dynamic_layer = nn.Linear(hidden_dim, 2 * hidden_dim * dynamic_dim)
        self.norm1 = nn.LayerNorm(dynamic_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        self.out_layer = nn.Linear(hidden_dim * roi_size**2, hidden_dim)
        self.norm3 = nn.LayerNorm(hidden_dim)

    def forward(self, queries: Tensor, rois: Tensor) -> Tensor:
        """``(B, N, C)`` and ``(B * N, C, P, P)`` → ``(B, N, C)``."""
        batch, num_queries, channels = queries.shape
        cells = rois.flatten(2).transpose(1, 2)  # (B·N, P², C)
        first, second = self.dynamic_layer(queries).flatten(0, 1).chunk(2, dim=1)
        first = first.view(len(cells), channels, -1)  # (B·N, C, dynamic_dim)
        second = second.view(len(cells), -1, channels)
        cells = F.elu(self.norm1(cells @ first))
        cells = F.elu(self.norm2(cells @ second))
        return F.elu(self.norm3(self.out_layer(cells.flatten(1)))).view(batch, num_queries, -1)


def _tower(hidden_dim: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(_TOWER_LAYERS):
        layers += [
            nn.Linear(hidden_dim, hidden_dim, bias=False),
            nn.LayerNorm(hidden_dim),
            nn.ELU(),
        ]
    return nn.Sequential(*layers)
