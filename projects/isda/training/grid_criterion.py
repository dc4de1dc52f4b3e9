"""The losses of SOLO and SOLOv2."""

import torch
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isda.structures import CellMasks, DecoupledCellMasks, GridPrediction, GridTarget
from isda.training.criterion import averaged_count
from isda.training.losses import dice_loss

__all__ = ["GridCriterion"]

_CHUNK_ELEMENTS = 2**22  # 16 MB of float32 masks at a time


class GridCriterion(nn.Module):
    """Focal loss of all cells, dice loss of the positive ones' masks."""

    def __init__(self, class_weight: float = 1.0, mask_weight: float = 3.0):
        super().__init__()
        self.class_weight = class_weight
        self.mask_weight = mask_weight

    def forward(
        self, prediction: GridPrediction, targets: list[list[GridTarget]]
    ) -> dict[str, Tensor]:
        """
        Args:
            targets: of each image, one per level.

        Returns:
            ``loss_cls`` and ``loss_mask``, weighted float32 scalars. Positive cells are counted
            over all images and averaged over processes.
        """
        device = prediction.class_logits[0].device
        positives = sum(len(target.cells) for of_image in targets for target in of_image)
        with torch.autocast(device.type, enabled=False):
            class_loss = _class_loss(prediction.class_logits, targets)
            # Levels and images without a positive take part too: their zeros reach every
            # parameter, as DDP asks for.
            dice = [
                _dice_of_cells(masks, image, of_image[level])
                for level, masks in enumerate(prediction.masks)
                for image, of_image in enumerate(targets)
            ]
            mask_loss = torch.cat(dice).sum()
        # One more in all processes together, so that two are worth one with the images of both.
        one_more = averaged_count(positives + 1 / comm.get_world_size(), device)
        return {
            "loss_cls": self.class_weight * class_loss / one_more,
            "loss_mask": self.mask_weight * mask_loss / averaged_count(positives, device),
        }


def _class_loss(logits_per_level: list[Tensor], targets: list[list[GridTarget]]) -> Tensor:
    """Focal loss summed over images, cells and classes."""
    loss = logits_per_level[0].new_zeros((), dtype=torch.float32)
    for level, logits in enumerate(logits_per_level):
        logits = logits.flatten(2).float()  # (B, K, S·S)
        one_hot = torch.zeros_like(logits)
        for image, of_image in enumerate(targets):
            one_hot[image, of_image[level].classes, of_image[level].cells] = 1
        loss = loss + sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2.0, reduction="sum")
    return loss


def _dice_of_cells(masks: CellMasks | DecoupledCellMasks, image: int, target: GridTarget) -> Tensor:
    """``(n,)`` dice losses of an image's positive cells on a level.

    A few chunks of masks at a time, which the backward pass computes again, so that memory does
    not grow with the number of instances.
    """
    height, width = masks.size
    count = max(_CHUNK_ELEMENTS // (height * width), 1)
    losses = []
    for cells, instances in zip(target.cells.split(count), target.instances.split(count)):
        chunk = (masks, image, cells, instances, target.masks)
        if len(target.cells) > count:
            losses.append(checkpoint(_dice_of_chunk, *chunk, use_reentrant=False))
        else:
            losses.append(_dice_of_chunk(*chunk))
    return torch.cat(losses)


def _dice_of_chunk(
    masks: CellMasks | DecoupledCellMasks,
    image: int,
    cells: Tensor,
    instances: Tensor,
    true_masks: Tensor,
) -> Tensor:
    probs = masks.probs(image, cells).flatten(1)
    return dice_loss(probs, true_masks[instances].flatten(1).to(probs.dtype))
