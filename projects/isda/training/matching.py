"""One-to-one assignment of queries to ground truths."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isda.structures import EmbeddedPrediction, EmbeddedTarget, SetPrediction, SetTarget
from isda.training.losses import (
    box_distances,
    focal_cost,
    generalized_iou,
    soft_iou_terms,
)

__all__ = ["EmbeddingMatcher", "HungarianMatcher", "MaskMatcher", "Matches", "assign"]

_CHUNK_ELEMENTS = 2**24  # 64 MB of float32 mask probabilities at a time
_UNUSABLE_COST = 1e6  # above any cost that finite predictions can have


@dataclass
class Matches:
    """The pairs of one image over all layers (decoder layers or refinement steps)."""

    layers: Tensor  # (M,) int64
    queries: Tensor  # (M,)
    targets: Tensor  # (M,)


class HungarianMatcher:
    """Cheapest assignment per image and layer; what a pair costs is for subclasses to say.

    The cost of all layers and images is built without a loop over queries or instances and
    reaches the host in one transfer. It holds no gradient.
    """

    @torch.no_grad()
    def __call__(self, predictions: list, targets: list) -> list[Matches]:
        """
        Args:
            predictions: one per layer.
            targets: one per image.

        Returns:
            One :class:`Matches` per image; min(N, G) pairs per layer.
        """
        costs = [self.cost(predictions, target, image) for image, target in enumerate(targets)]
        flat = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
        ends = np.cumsum([cost.numel() for cost in costs])[:-1]
        device = predictions[0].class_logits.device
        return [
            _match_layers(block.reshape(cost.shape), device)
            for block, cost in zip(np.split(flat, ends), costs, strict=True)
        ]

    def cost(self, predictions: list, target: object, image: int) -> Tensor:
        """Cost of every query for every ground truth of one image: ``(L, N, G)``, float32."""
        raise NotImplementedError


class MaskMatcher(HungarianMatcher):
    """Focal class cost and soft IoU of masks (ISDA, arXiv 2202.12251, section 2.4).

    Where predictions have boxes, also their L1 distance and generalised IoU (DETR, 2005.12872).
    """

    def __init__(
        self,
        class_cost: float = 2.0,
        mask_cost: float = 3.0,
        box_cost: float = 5.0,
        giou_cost: float = 2.0,
    ):
        self.class_cost = class_cost
        self.mask_cost = mask_cost
        self.box_cost = box_cost
        self.giou_cost = giou_cost

    def cost(self, predictions: list[SetPrediction], target: SetTarget, image: int) -> Tensor:
        logits = torch.stack([p.class_logits[image] for p in predictions]).float()
        class_cost = focal_cost(logits)[..., target.classes]
        cost = self.class_cost * class_cost
        if predictions[0].kernels is not None:
            kernels = torch.stack([p.kernels[image] for p in predictions]).float()
            iou = _soft_iou(kernels.flatten(0, 1), predictions[0].mask_features[image], target)
            cost = cost + self.mask_cost * (1 - iou.view_as(class_cost))
        if predictions[0].boxes is not None:
            boxes = torch.stack([p.boxes[image] for p in predictions])  # (L, N, 4)
            distance, giou = box_distances(boxes[:, :, None], target.boxes)
            cost = cost + self.box_cost * distance + self.giou_cost * (1 - giou)
        return cost


class EmbeddingMatcher(HungarianMatcher):
    """Focal class cost, L1 and GIoU of boxes, and the cosine of mask embeddings.

    ISTR, arXiv 2105.00637, section 3.2. The mask term sees no class.
    """

    def __init__(
        self,
        class_cost: float = 2.0,
        box_cost: float = 5.0,
        giou_cost: float = 2.0,
        embedding_cost: float = 2.0,
    ):
        self.class_cost = class_cost
        self.box_cost = box_cost
        self.giou_cost = giou_cost
        self.embedding_cost = embedding_cost

    def cost(
        self, predictions: list[EmbeddedPrediction], target: EmbeddedTarget, image: int
    ) -> Tensor:
        logits = torch.stack([p.class_logits[image] for p in predictions]).float()
        class_cost = focal_cost(logits, log_eps=1e-8)[..., target.classes]
        boxes = torch.stack([p.boxes[image] for p in predictions])  # (L, N, 4)
        height, width = target.image_size
        extent = boxes.new_tensor([width, height, width, height])
        distance = torch.cdist(boxes / extent, target.boxes / extent, p=1)
        giou = generalized_iou(boxes[:, :, None], target.boxes)
        embeddings = torch.stack([p.embeddings[image] for p in predictions]).float()
        cosine = F.normalize(embeddings, dim=-1) @ F.normalize(target.embeddings, dim=-1).T
        return (
            self.class_cost * class_cost
            + self.box_cost * distance
            - self.giou_cost * giou
            - self.embedding_cost * (1 + cosine) / 2
        )


def assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the cheapest one-to-one assignment of an ``(N, G)`` cost.

    Entries that are not finite are avoided where possible: a prediction that is not finite makes
    the loss so too, and that is where training reports it, with the image's name.
    """
    from scipy.optimize import linear_sum_assignment  # half a second that only training needs

    return linear_sum_assignment(np.where(np.isfinite(cost), cost, _UNUSABLE_COST))


def _match_layers(cost: np.ndarray, device: torch.device) -> Matches:
    pairs = [assign(layer_cost) for layer_cost in cost]
    layers = np.repeat(np.arange(len(pairs)), [len(queries) for queries, _ in pairs])
    queries, targets = (np.concatenate(side) for side in zip(*pairs, strict=True))
    rows = torch.as_tensor(np.stack([layers, queries, targets]), dtype=torch.int64)
    return Matches(*rows.to(device))


def _soft_iou(kernels: Tensor, features: Tensor, target: SetTarget) -> Tensor:
    """``(Q, G)`` IoU of soft masks, in chunks of pixels: no Q×h×w tensor ever exists whole."""
    num_masks = len(target.masks)
    if num_masks == 0:
        return kernels.new_zeros(len(kernels), 0)
    features, masks, weights = target.columns(features), target.masks.flatten(1), target.weights
    pixels = max(_CHUNK_ELEMENTS // max(len(kernels), 1), 1)
    overlap, area = kernels.new_zeros(len(kernels), num_masks), kernels.new_zeros(len(kernels), 1)
    for start in range(0, masks.shape[1], pixels):
        chunk = slice(start, start + pixels)
        chunk_overlap, chunk_area = soft_iou_terms(
            kernels,
            features[:, chunk].float(),
            masks[:, chunk],
            None if weights is None else weights[chunk],
        )
        overlap += chunk_overlap
        area += chunk_area
    true_area = masks.sum(dim=1) if weights is None else masks @ weights  # (G,)
    return overlap / (area + true_area - overlap + 1e-6)
