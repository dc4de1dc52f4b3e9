"""CondInst: conditional convolutions for instance segmentation (arXiv 2003.05664)."""

from typing import ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

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
from isda.modeling.dynamic_masks import DynamicMasks
from isda.modeling.fcos import PointwiseHead
from isda.modeling.mask_branch import FusedMaskBranch, SemanticHead
from isda.modeling.postprocessing import binary_masks
from isda.modeling.upsampling import aligned_bilinear
from isda.requirements import COUNT
from isda.structures import DensePrediction, DenseTargets
from isda.training.criterion import averaged_count
from isda.training.dense_masks import sampled_masks
from isda.training.losses import dice_loss
from isda.training.masks import mass_centres

__all__ = ["CondInst"]


@META_ARCH_REGISTRY.register()
class CondInst(FCOSSegmentor):
    """FCOS, each of whose locations predicts the three small layers that draw its mask.

    The layers see features of the whole image, and where each pixel lies from the location.
    """

    config_node = "CONDINST"
    requirements: ClassVar = {
        **FCOS_REQUIREMENTS,
        "MASK_DIM": COUNT,
        "MAX_MASKS_TRAIN": COUNT,
    }
    exporter = Unavailable(
        "CondInst cannot be exported: how many boxes its non-maximum suppression leaves depends on "
        "the image, and the graphs of this tool have a fixed number; take ISDA"
    )
    compilation = Unavailable(
        "CondInst cannot be compiled as a whole here: take torch.compile(model.backbone)"
    )
    tracer = Unavailable("CondInst has no drawings of how a prediction comes about: take ISDA")

    @configurable
    def __init__(
        self, *, controller: PointwiseHead, masks: DynamicMasks, max_masks: int = 500, **shared
    ):
        """
        Args:
            controller: the parameters of a location's mask head.
            masks: draws with them.
            max_masks: locations per process and step whose masks are learned, drawn at random from
                more.
            shared: as in FCOSSegmentor.
        """
        super().__init__(**shared)
        self.controller = controller
        self.masks = masks
        self.max_masks = max_masks

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = method_keys(cfg, cls)
        parts = level_parts(cfg, node, cls.config_node, scale_levels=True)
        masks = DynamicMasks(node.MASK_DIM)
        branch = FusedMaskBranch(
            in_channels=[shape.channels for shape in parts.branch_shapes],
            out_channels=node.MASK_DIM,
            width=node.BRANCH_DIM,
            num_convs=node.BRANCH_CONVS,
            norm=parts.norm,
            aligned=True,
        )
        semantic_head = SemanticHead(
            in_channels=parts.branch_shapes[0].channels,
            out_channels=node.NUM_CLASSES,
            width=node.BRANCH_DIM,
            norm=parts.norm,
            is_sigmoid=True,
        )
        return {
            **cls.shared_arguments(cfg, node, parts),
            "controller": PointwiseHead(parts.channels, masks.num_parameters),
            "masks": masks,
            "mask_branch": branch,
            "semantic_head": semantic_head if node.SEMANTIC else None,
            "max_masks": node.MAX_MASKS_TRAIN,
        }

    @staticmethod
    def conflict(node: CfgNode) -> str:
        return group_conflict("CONDINST", node)

    def centres(self, truth: GroundTruth) -> Tensor:
        """Of the masks; of a box whose mask is empty, its own."""
        centres = (mass_centres(truth.masks) + 0.5).to(truth.boxes.dtype)  # pixels have a middle
        return torch.where(centres.isnan(), super().centres(truth), centres)

    def mask_loss(
        self,
        prediction: Prediction,
        targets: DenseTargets,
        truths: list[GroundTruth],
        padded_size: tuple[int, int],
    ) -> Tensor:
        """Dice of the logits at half the branch's stride, as the mean over locations."""
        if len(targets) > self.max_masks:
            chosen = torch.randperm(len(targets), device=targets.images.device)[: self.max_masks]
            targets = targets[chosen.sort().values]
        dense, features = prediction.dense, prediction.mask_features
        parameters = self.controller(dense, targets.images, targets.locations).float()
        # Without any location a zero that reaches both.
        total = 0 * (parameters.sum() + features.float().sum())
        counts = targets.images.bincount(minlength=len(truths)).tolist()
        locations, instances = targets.locations.split(counts), targets.instances.split(counts)
        stride = self.branch_stride // 2
        for image, of_image in enumerate(parameters.split(counts)):
            if len(of_image) == 0:
                continue
            probs = self._probs(dense, features[image], of_image, locations[image])
            masks = sampled_masks(truths[image].masks, stride, padded_size, stride // 2)
            masks = masks[instances[image]].to(probs.dtype)
            total = total + dice_loss(probs.flatten(1), masks.flatten(1), eps=1e-5).sum()
        return total / averaged_count(len(targets), total.device)

    def _probs(
        self, dense: DensePrediction, features: Tensor, parameters: Tensor, chosen: Tensor
    ) -> Tensor:
        """Mask probabilities of locations of one image: ``(n, 2h, 2w)`` from ``(C, h, w)``."""
        points, strides = dense.locations.points(chosen), dense.locations.strides_of(chosen)
        logits = self.masks(parameters, features, points, strides, self.branch_stride)
        return aligned_bilinear(logits[:, None], 2)[:, 0].sigmoid()

    def semantic_loss(
        self, logits: Tensor, truths: list[GroundTruth], padded_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Focal loss of every cell's class, that of its smallest instance; over those with one."""
        classes = self.semantic_target(
            truths, padded_size, offset=self.branch_stride // 2, background=-1, first_class=0
        )
        numbers = torch.arange(logits.shape[1], device=logits.device)
        one_hot = (classes[:, None] == numbers[:, None, None]).to(logits.dtype)
        loss = sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2.0, reduction="sum")
        return {"loss_sem": loss / averaged_count((classes >= 0).sum(), logits.device)}

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
        instances = Instances(
            image_size,
            pred_boxes=Boxes(found.boxes),
            scores=found.scores,
            pred_classes=found.classes,
            locations=found.locations,
        )
        instances = detector_postprocess(instances, *output_size)
        chosen = instances.locations
        instances.remove("locations")
        parameters = self.controller.of_image(prediction.dense, index, chosen)
        features = prediction.mask_features[index]
        instances.pred_masks = binary_masks(
            self._probs(prediction.dense, features, parameters.float(), chosen),
            padded_size,
            image_size,
            output_size,
            self.mask_threshold,
            aligned=True,
        )
        return instances
