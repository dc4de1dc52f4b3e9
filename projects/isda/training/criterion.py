"""The loss of a set of masks."""

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isda.structures import SetPrediction, SetTarget
from isda.training.losses import dice_loss
from isda.training.matching import HungarianMatcher, Matches

__all__ = ["SetCriterion", "averaged_count"]

_CHUNK_ELEMENTS = 2**22  # 16 MB of float32 mask logits at a time


class SetCriterion(nn.Module):
    """Focal and dice loss of all decoder layers (ISDA, arXiv 2202.12251, section 2.4)."""

    def __init__(
        self, matcher: HungarianMatcher, class_weight: float = 2.0, mask_weight: float = 3.0
    ):
        super().__init__()
        self.matcher = matcher
        self.class_weight = class_weight
        self.mask_weight = mask_weight

    def forward(
        self, predictions: list[SetPrediction], targets: list[SetTarget]
    ) -> dict[str, Tensor]:
        """
        Args:
            predictions: one per decoder layer, all with the same mask features.
            targets: one per image.

        Returns:
            ``loss_cls`` and ``loss_mask`` of the last layer, ``loss_cls_0`` … of the others;
            float32 scalars, weighted.
        """
        with torch.autocast(predictions[0].class_logits.device.type, enabled=False):
            matches = self.matcher(predictions, targets)
            logits = torch.stack([p.class_logits for p in predictions]).float()  # (L, B, N, K)
            num_pairs = sum(len(m.layers) for m in matches) / len(predictions)
            count = averaged_count(num_pairs, logits.device)
            class_loss = _class_loss(logits, targets, matches) * (self.class_weight / count)
            mask_loss = _mask_loss(predictions, targets, matches) * (self.mask_weight / count)
        return _named({"loss_cls": class_loss, "loss_mask": mask_loss})


def averaged_count(count: float, device: torch.device) -> Tensor:
    """``count`` averaged over all processes, at least 1, so that losses can be divided by it."""
    total = torch.tensor(float(count), device=device)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    return (total / comm.get_world_size()).clamp(min=1)


def _class_loss(logits: Tensor, targets: list[SetTarget], matches: list[Matches]) -> Tensor:
    """Focal loss summed over images, queries and classes: ``(L,)``."""
    one_hot = torch.zeros_like(logits)
    for image, (target, match) in enumerate(zip(targets, matches, strict=True)):
        one_hot[match.layers, image, match.queries, target.classes[match.targets]] = 1
    loss = sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2.0)
    return loss.sum(dim=(1, 2, 3))


def _mask_loss(
    predictions: list[SetPrediction], targets: list[SetTarget], matches: list[Matches]
) -> Tensor:
    """Dice loss summed over matched pairs: ``(L,)``."""
    kernels = torch.stack([p.kernels for p in predictions]).float()  # (L, B, N, C)
    features = predictions[0].mask_features
    loss = kernels.new_zeros(len(predictions))
    # Images without any pair take part too: their zero still reaches every parameter, and under
    # DDP each process must take part in every reduction.
    for image, (target, match) in enumerate(zip(targets, matches, strict=True)):
        matched = kernels[match.layers, image, match.queries]  # (M, C)
        dice = _dice_of_kernels(matched, features[image], target.masks, match.targets)
        loss = loss.index_add(0, match.layers, dice)
    return loss


def _dice_of_kernels(kernels: Tensor, features: Tensor, masks: Tensor, targets: Tensor) -> Tensor:
    """``(M,)`` dice losses of M kernels; their masks are recomputed in the backward pass.

    A few chunks of masks at a time, so that memory does not grow with the number of instances.
    """
    height, width = masks.shape[-2:]
    features = features[:, :height, :width].flatten(1).float()
    masks = masks.flatten(1)
    rows = max(_CHUNK_ELEMENTS // max(features.shape[1], 1), 1)
    losses = [
        checkpoint(_dice_of_chunk, *chunk, features, masks, use_reentrant=False)
        if len(kernels) > rows
        else _dice_of_chunk(*chunk, features, masks)
        for chunk in zip(kernels.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(losses)


def _dice_of_chunk(kernels: Tensor, targets: Tensor, features: Tensor, masks: Tensor) -> Tensor:
    return dice_loss((kernels @ features).sigmoid(), F.embedding(targets, masks))


def _named(losses_per_layer: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for name, losses in losses_per_layer.items():
        *others, last = losses.unbind()
        named[name] = last
        named.update({f"{name}_{layer}": loss for layer, loss in enumerate(others)})
    return named
