"""Preprocessing of ``batched_inputs``: images and ground truths."""

import math

import torch
from detectron2.modeling import Backbone
from detectron2.structures import BitMasks, ImageList, Instances, PolygonMasks
from torch import Tensor

from isda.errors import ConfigError
from isda.structures import SIZE_DIVISIBILITY

__all__ = ["check_classes", "ground_truth_bitmasks", "ground_truth_masks", "normalised_images"]


def normalised_images(
    batched_inputs: list[dict], pixel_mean: Tensor, pixel_std: Tensor, backbone: Backbone
) -> ImageList:
    """Normalise the images and pad them to one size, a multiple of 32.

    Args:
        batched_inputs: dicts with ``image``, ``(C, H, W)`` in 0–255.
        pixel_mean, pixel_std: ``(C, 1, 1)``, on the device that the images are to be on.
        backbone: tells what sizes it takes.
    """
    images = [x["image"].to(pixel_mean.device, non_blocking=True) for x in batched_inputs]
    return ImageList.from_tensors(
        [(image - pixel_mean) / pixel_std for image in images],
        math.lcm(max(backbone.size_divisibility, 1), SIZE_DIVISIBILITY),
        padding_constraints=backbone.padding_constraints,
    )


def check_classes(instances: Instances, num_classes: int, key: str) -> None:
    """
    Args:
        key: the config key of the number of classes.

    Raises:
        ConfigError: a ground truth is of a class that the model does not have.
    """
    classes = instances.gt_classes
    if len(classes) and int(classes.max()) >= num_classes:
        raise ConfigError(
            f"a ground truth has class {int(classes.max())}, but the model has only "
            f"{num_classes} classes: set {key}"
        )


def ground_truth_masks(instances: Instances) -> BitMasks | PolygonMasks:
    """``gt_masks``; none, where Detectron2's own mapper leaves the field out of an empty image.

    Raises:
        ConfigError: there are instances, but no masks.
    """
    if instances.has("gt_masks"):
        return instances.gt_masks
    if len(instances):
        raise ConfigError(
            "a ground truth has no masks (gt_masks), from which the model learns: set "
            "MODEL.MASK_ON True and give every annotation a segmentation"
        )
    return BitMasks(torch.zeros(0, *instances.image_size, dtype=torch.bool))


def ground_truth_bitmasks(instances: Instances) -> Tensor:
    """``(G, H, W)`` bool from either of Detectron2's mask structures, or from none.

    Raises:
        ConfigError: there are instances, but no masks.
    """
    masks = ground_truth_masks(instances)
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *instances.image_size)
    return masks.tensor
