"""BlendMask: bases of the whole image, blended inside each box (arXiv 2001.00309)."""

from collections.abc import Iterator
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from isda.meta_arch.declarations import Unavailable
from isda.meta_arch.fcos import (
    FCOS_REQUIREMENTS,
    FCOSSegmentor,
    GroundTruth,
    Prediction,
    group_conflict,
    level_parts,
)
from isda.meta_arch.keys import method_keys
from isda.modeling.blender import Blender
from isda.modeling.fcos import PointwiseHead
from isda.modeling.mask_branch import FusedMaskBranch, SemanticHead
from isda.modeling.mask_embedding import crop_masks
from isda.modeling.postprocessing import boxed_instances
from isda.requirements import COUNT, NOT_NEGATIVE
from isda.structures import DenseTargets
from isda.training.fcos import centreness_sum

__all__ = ["BlendMask"]

_CHUNK = 512  # masks that are blended and compared at a time


@META_ARCH_REGISTRY.register()
class BlendMask(FCOSSegmentor):
    """FCOS, each of whose locations predicts how bases blend to a mask inside its box."""

    config_node = "BLENDMASK"
    requirements: ClassVar = {
        **FCOS_REQUIREMENTS,
        "NUM_BASES": COUNT,
        "ATTENTION_SIZE": COUNT,
        "MASK_SIZE": COUNT,
        "SEMANTIC_WEIGHT": NOT_NEGATIVE,
    }
    exporter = Unavailable(
        "BlendMask cannot be exported: how many boxes its non-maximum suppression leaves depends "
        "on the image, and the graphs of this tool have a fixed number; take ISDA"
    )
    compilation = Unavailable(
        "BlendMask cannot be compiled as a whole here: take torch.compile(model.backbone)"
    )
    tracer = Unavailable("BlendMask has no drawings of how a prediction comes about: take ISDA")

    @configurable
    def __init__(
        self, *, attention: PointwiseHead, blender: Blender, semantic_weight: float = 0.3, **shared
    ):
        """
        Args:
            attention: the maps of a location.
            blender: blends with them.
            semantic_weight: of the semantic head's loss.
            shared: as in FCOSSegmentor.
        """
        super().__init__(**shared)
        self.attention = attention
        self.blender = blender
        self.semantic_weight = semantic_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = method_keys(cfg, cls)
        parts = level_parts(cfg, node, cls.config_node, scale_levels=False)
        bases = FusedMaskBranch(
            in_channels=[shape.channels for shape in parts.branch_shapes],
            out_channels=node.NUM_BASES,
            width=node.BRANCH_DIM,
            num_convs=node.BRANCH_CONVS,
            norm=parts.norm,
            aligned=False,
            final_upsampling=True,
        )
        semantic_head = SemanticHead(
            in_channels=parts.branch_shapes[0].channels,
            out_channels=node.NUM_CLASSES + 1,
            width=node.BRANCH_DIM,
            norm=parts.norm,
            is_sigmoid=False,
        )
        blender = Blender(
            parts.branch_shapes[0].stride // 2,
            attention_size=node.ATTENTION_SIZE,
            mask_size=node.MASK_SIZE,
        )
        return {
            **cls.shared_arguments(cfg, node, parts),
            "attention": PointwiseHead(parts.channels, node.NUM_BASES * node.ATTENTION_SIZE**2),
            "blender": blender,
            "mask_branch": bases,
            "semantic_head": semantic_head if node.SEMANTIC else None,
            "semantic_weight": node.SEMANTIC_WEIGHT,
        }

    @staticmethod
    def conflict(node: CfgNode) -> str:
        return group_conflict("BLENDMASK", node)

    def mask_loss(
        self,
        prediction: Prediction,
        targets: DenseTargets,
        truths: list[GroundTruth],
        padded_size: tuple[int, int],
    ) -> Tensor:
        """Binary cross-entropy inside the ground-truth boxes, weighed by centreness.

        The bases are pooled once for each ground truth, however many locations answer for it.
        """
        bases = prediction.mask_features.float()
        regions = self.blender.pool(bases, [truth.boxes for truth in truths])
        masks = torch.cat(
            [crop_masks(truth.drawn, truth.boxes, self.blender.mask_size) for truth in truths]
        )
        attention = self.attention(prediction.dense, targets.images, targets.locations).float()
        # Without any location a zero that reaches both.
        total = 0 * (bases.sum() + attention.sum())
        loss = self._loss
        if len(targets) > _CHUNK:  # computed again in the backward pass
            loss = partial(checkpoint, loss, use_reentrant=False)
        for part in _chunks(regions, masks, attention, targets, truths):
            total = total + loss(*part)
        return total / centreness_sum(targets)

    def _loss(
        self, rows: Tensor, regions: Tensor, masks: Tensor, attention: Tensor, centreness: Tensor
    ) -> Tensor:
        """The sum over locations, whose ground truths are in ``rows`` of regions and masks."""
        logits = self.blender.blend(regions[rows], attention)
        target = masks[rows].to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (centreness * loss.mean(dim=(1, 2))).sum()

    def semantic_loss(
        self, logits: Tensor, truths: list[GroundTruth], padded_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Cross-entropy of every cell's class, 0 for the background."""
        classes = self.semantic_target(truths, padded_size, offset=0, background=0, first_class=1)
        loss = F.cross_entropy(logits, classes)
        return {"loss_basis_sem": self.semantic_weight * loss}

    def select(
        self,
        prediction: Prediction,
        index: int,
        *,
        image_size: tuple[int, int],
        padded_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> Instances:
        found = self.detections(prediction, index)
        boxes = Boxes(found.boxes)
        boxes.clip(image_size)  # as they are pasted; else masks at the border are misplaced
        attention = self.attention.of_image(prediction.dense, index, found.locations)
        regions = self.blender.pool(prediction.mask_features[index, None], [boxes.tensor])
        instances = Instances(
            image_size,
            pred_boxes=boxes,
            scores=found.scores,
            pred_classes=found.classes,
            pred_masks=self.blender.blend(regions, attention).sigmoid()[:, None],
        )
        return boxed_instances(instances, output_size, self.mask_threshold)


def _chunks(
    regions: Tensor,
    masks: Tensor,
    attention: Tensor,
    targets: DenseTargets,
    truths: list[GroundTruth],
) -> Iterator[tuple[Tensor, ...]]:
    """The arguments of :meth:`BlendMask._loss` for some locations at a time."""
    counts = [len(truth.boxes) for truth in truths]
    starts = torch.tensor([sum(counts[:image]) for image in range(len(counts))])
    rows = starts.to(targets.images.device)[targets.images] + targets.instances
    for part in torch.arange(len(targets), device=rows.device).split(_CHUNK):
        yield rows[part], regions, masks, attention[part], targets.centreness[part]
