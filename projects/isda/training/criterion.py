"""The losses of a set of instances, as masks or as boxes with mask embeddings."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isda.structures import (
    EmbeddedPrediction,
    EmbeddedTarget,
    NoisedQueries,
    SetPrediction,
    SetTarget,
)
from isda.training.losses import box_distances, dice_loss, generalized_iou
from isda.training.matching import EmbeddingMatcher, HungarianMatcher, MaskMatcher, Matches

__all__ = ["EmbeddingCriterion", "MaskCriterion", "SetCriterion", "averaged_count"]

MaskLoss = Callable[..., Tensor]  # (probs, targets, weights=None) → (M,), as dice_loss

_CHUNK_ELEMENTS = 2**22  # 16 MB of float32 mask logits at a time


class SetCriterion(nn.Module):
    """Matching, focal loss of all layers, and losses of the pairs, which subclasses know."""

    def __init__(self, matcher: HungarianMatcher, class_weight: float = 2.0):
        super().__init__()
        self.matcher = matcher
        self.class_weight = class_weight

    def forward(self, predictions: list, targets: list) -> dict[str, Tensor]:
        """
        Args:
            predictions: one per layer.
            targets: one per image.

        Returns:
            ``loss_cls`` and the pairs' losses of the last layer, ``loss_cls_0`` … of the others;
            float32 scalars, weighted, divided by the pairs of a layer (mean over processes).
        """
        with torch.autocast(predictions[0].class_logits.device.type, enabled=False):
            matches = self.matcher(predictions, targets)
            return _named(self.losses(predictions, targets, matches))

    def losses(
        self,
        predictions: list,
        targets: list,
        matches: list[Matches],
        counted: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The losses of each layer, ``(L,)`` by name, for given pairs.

        Args:
            counted: ``(B, N)`` bool, False for queries that are no candidates: they have no class
                loss. None: all are.
        """
        logits = torch.stack([p.class_logits for p in predictions]).float()  # (L, B, N, K)
        num_pairs = sum(len(m.layers) for m in matches) / len(predictions)
        count = averaged_count(num_pairs, logits.device)
        losses = {"loss_cls": self.class_weight * _class_loss(logits, targets, matches, counted)}
        losses |= self.pair_losses(predictions, targets, matches)
        return {name: loss / count for name, loss in losses.items()}

    def pair_losses(
        self, predictions: list, targets: list, matches: list[Matches]
    ) -> dict[str, Tensor]:
        """Weighted sums over the pairs of each layer, ``(L,)`` float32 by name.

        Without any pair they are zeros that still reach every parameter: under DDP each process
        has to take part in every reduction.
        """
        raise NotImplementedError


class MaskCriterion(SetCriterion):
    """Focal and mask loss (ISDA, arXiv 2202.12251, section 2.4); L1 and GIoU of boxes, if any."""

    def __init__(
        self,
        matcher: MaskMatcher,
        class_weight: float = 2.0,
        mask_weight: float = 3.0,
        box_weight: float = 5.0,
        giou_weight: float = 2.0,
        mask_loss: MaskLoss = dice_loss,
    ):
        """
        Args:
            mask_loss: of M masks, ``mask_loss(probs, targets, weights=weights)`` → ``(M,)``, with
                arguments as of :func:`isda.training.losses.dice_loss`. Dice as in the paper.
        """
        super().__init__(matcher, class_weight)
        self.mask_loss = mask_loss
        self.mask_weight = mask_weight
        self.box_weight = box_weight
        self.giou_weight = giou_weight

    def pair_losses(
        self, predictions: list[SetPrediction], targets: list[SetTarget], matches: list[Matches]
    ) -> dict[str, Tensor]:
        losses = {}
        if predictions[0].kernels is not None:
            losses["loss_mask"] = self.mask_weight * _mask_losses(
                predictions, targets, matches, self.mask_loss
            )
        if predictions[0].boxes is not None:
            distance, giou = _box_losses(predictions, targets, matches)
            losses["loss_bbox"] = self.box_weight * distance
            losses["loss_giou"] = self.giou_weight * giou
        return losses

    def proposals(self, prediction: SetPrediction, targets: list[SetTarget]) -> dict[str, Tensor]:
        """Losses of the tokens that were chosen as queries, matched like a layer's predictions."""
        losses = self([prediction], targets)
        return {f"{name}_enc": loss for name, loss in losses.items()}

    def denoising(
        self, predictions: list[SetPrediction], targets: list[SetTarget], noised: NoisedQueries
    ) -> dict[str, Tensor]:
        """Losses of noised queries, each paired with its own ground truth; sums over the layers.

        Args:
            predictions: of the noised queries alone, one per layer.
        """
        matches = [_own_targets(chosen, len(predictions)) for chosen in noised.targets]
        with torch.autocast(noised.boxes.device.type, enabled=False):
            losses = self.losses(predictions, targets, matches, noised.targets >= 0)
        return {f"{name}_dn": loss.sum() for name, loss in losses.items()}


class EmbeddingCriterion(SetCriterion):
    """Focal loss; L1 and GIoU of boxes; MSE of mask embeddings; dice of what they decode to.

    ISTR, arXiv 2105.00637, section 3.3.
    """

    def __init__(
        self,
        matcher: EmbeddingMatcher,
        decode: Callable[[Tensor], Tensor],
        *,
        class_weight: float = 2.0,
        box_weight: float = 5.0,
        giou_weight: float = 2.0,
        embedding_weight: float = 2.0,
        mask_weight: float = 2.0,
    ):
        """
        Args:
            decode: ``(M, d)`` embeddings to ``(M, S, S)`` mask probabilities, differentiable.
        """
        super().__init__(matcher, class_weight)
        self.decode = decode
        self.box_weight = box_weight
        self.giou_weight = giou_weight
        self.embedding_weight = embedding_weight
        self.mask_weight = mask_weight

    def pair_losses(
        self,
        predictions: list[EmbeddedPrediction],
        targets: list[EmbeddedTarget],
        matches: list[Matches],
    ) -> dict[str, Tensor]:
        pairs = _Pairs.of(predictions, targets, matches)
        distance = (pairs.boxes - pairs.true_boxes).abs() / pairs.extents
        error = (pairs.embeddings - pairs.true_embeddings).square()
        masks = self.decode(pairs.embeddings)
        terms = {
            "loss_bbox": self.box_weight * distance.sum(dim=1),
            "loss_giou": self.giou_weight * (1 - generalized_iou(pairs.boxes, pairs.true_boxes)),
            "loss_embed": self.embedding_weight * error.mean(dim=1),
            "loss_mask": self.mask_weight
            * dice_loss(masks.flatten(1), pairs.true_masks.flatten(1), eps=1e-5),
        }
        zeros = masks.new_zeros(len(predictions))
        return {name: zeros.index_add(0, pairs.layers, term) for name, term in terms.items()}


@dataclass
class _Pairs:
    """The M matched pairs of all images and layers, side by side."""

    layers: Tensor  # (M,)
    boxes: Tensor  # (M, 4)
    embeddings: Tensor  # (M, d)
    true_boxes: Tensor  # (M, 4)
    true_embeddings: Tensor  # (M, d)
    true_masks: Tensor  # (M, S, S)
    extents: Tensor  # (M, 4): the image's (width, height, width, height)

    @classmethod
    def of(
        cls,
        predictions: list[EmbeddedPrediction],
        targets: list[EmbeddedTarget],
        matches: list[Matches],
    ) -> "_Pairs":
        boxes = torch.stack([p.boxes for p in predictions])  # (L, B, N, 4)
        embeddings = torch.stack([p.embeddings for p in predictions]).float()
        per_image = []
        for image, (target, match) in enumerate(zip(targets, matches, strict=True)):
            height, width = target.image_size
            extent = boxes.new_tensor([width, height, width, height])
            per_image.append(
                (
                    match.layers,
                    boxes[match.layers, image, match.queries],
                    embeddings[match.layers, image, match.queries],
                    target.boxes[match.targets],
                    target.embeddings[match.targets],
                    target.masks[match.targets].float(),
                    extent.expand(len(match.layers), 4),
                )
            )
        return cls(*(torch.cat(parts) for parts in zip(*per_image, strict=True)))


def averaged_count(count: float | Tensor, device: torch.device, smallest: float = 1.0) -> Tensor:
    """``count`` averaged over all processes, at least 1, so that losses can be divided by it.

    Args:
        smallest: in place of that 1, where no things are counted.
    """
    total = torch.as_tensor(count, dtype=torch.float32, device=device).clone()
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    return (total / comm.get_world_size()).clamp(min=smallest)


def _own_targets(chosen: Tensor, num_layers: int) -> Matches:
    """Pairs of queries with the targets that ``(D,)`` names, -1 for none, in every layer."""
    queries = (chosen >= 0).nonzero()[:, 0]
    layers = torch.arange(num_layers, device=chosen.device).repeat_interleave(len(queries))
    return Matches(layers, queries.repeat(num_layers), chosen[queries].repeat(num_layers))


def _class_loss(
    logits: Tensor, targets: list, matches: list[Matches], counted: Tensor | None = None
) -> Tensor:
    """Focal loss summed over images, queries and classes: ``(L,)``."""
    one_hot = torch.zeros_like(logits)
    for image, (target, match) in enumerate(zip(targets, matches, strict=True)):
        one_hot[match.layers, image, match.queries, target.classes[match.targets]] = 1
    loss = sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2.0)
    if counted is not None:
        loss = loss * counted[..., None]
    return loss.sum(dim=(1, 2, 3))


def _box_losses(
    predictions: list[SetPrediction], targets: list[SetTarget], matches: list[Matches]
) -> tuple[Tensor, Tensor]:
    """L1 distance and 1 − GIoU summed over matched pairs: ``(L,)`` each."""
    boxes = torch.stack([p.boxes for p in predictions])  # (L, B, N, 4)
    distances, gious = boxes.new_zeros(2, len(predictions)).unbind()
    for image, (target, match) in enumerate(zip(targets, matches, strict=True)):
        matched = boxes[match.layers, image, match.queries]  # (M, 4)
        distance, giou = box_distances(matched, target.boxes[match.targets])
        distances = distances.index_add(0, match.layers, distance)
        gious = gious.index_add(0, match.layers, 1 - giou)
    return distances, gious


def _mask_losses(
    predictions: list[SetPrediction],
    targets: list[SetTarget],
    matches: list[Matches],
    mask_loss: MaskLoss,
) -> Tensor:
    """``mask_loss`` summed over matched pairs: ``(L,)``."""
    kernels = torch.stack([p.kernels for p in predictions]).float()  # (L, B, N, C)
    features = predictions[0].mask_features
    loss = kernels.new_zeros(len(predictions))
    # Images without any pair take part too: their zero reaches every parameter.
    for image, (target, match) in enumerate(zip(targets, matches, strict=True)):
        matched = kernels[match.layers, image, match.queries]  # (M, C)
        losses = _in_chunks(mask_loss, matched, features[image], target, match.targets)
        loss = loss.index_add(0, match.layers, losses)
    return loss


def _in_chunks(
    mask_loss: MaskLoss, kernels: Tensor, features: Tensor, target: SetTarget, targets: Tensor
) -> Tensor:
    """``(M,)`` losses of M kernels' masks, which are recomputed in the backward pass.

    A few chunks of masks at a time, so that memory does not grow with the number of instances.
    """
    features = target.columns(features).float()
    masks = target.masks.flatten(1)
    rows = max(_CHUNK_ELEMENTS // max(features.shape[1], 1), 1)

    def loss_of_chunk(kernels: Tensor, targets: Tensor) -> Tensor:
        probs = (kernels @ features).sigmoid()
        return mask_loss(probs, F.embedding(targets, masks), weights=target.weights)

    chunks = zip(kernels.split(rows), targets.split(rows), strict=True)
    if len(kernels) <= rows:
        return torch.cat([loss_of_chunk(*chunk) for chunk in chunks])
    return torch.cat([checkpoint(loss_of_chunk, *chunk, use_reentrant=False) for chunk in chunks])


def _named(losses_per_layer: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for name, losses in losses_per_layer.items():
        *others, last = losses.unbind()
        named[name] = last
        named.update({f"{name}_{layer}": loss for layer, loss in enumerate(others)})
    return named
