"""Base class of CondInst and BlendMask: FCOS's boxes, features for masks, extra classes.

Letters: B images, L locations of all levels, K classes, G ground truths of an image.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone
from detectron2.structures import BitMasks, ImageList, Instances, PolygonMasks
from torch import Tensor

from isda.errors import ConfigError
from isda.meta_arch.base import InstanceSegmentor
from isda.meta_arch.inputs import check_classes, ground_truth_bitmasks, ground_truth_masks
from isda.modeling.convolutions import NUM_GROUPS
from isda.modeling.fcos import Detections, FCOSHead, fcos_decode
from isda.modeling.mask_branch import FusedMaskBranch, SemanticHead, norm_for
from isda.modeling.pyramid import pyramid_shapes
from isda.requirements import COUNT, NOT_NEGATIVE, SHARE, Requirement, one_of
from isda.structures import SIZE_DIVISIBILITY, DensePrediction, DenseTargets
from isda.training.dense_masks import painted_classes, sampled_masks
from isda.training.fcos import fcos_losses, fcos_targets

__all__ = [
    "FCOS_REQUIREMENTS",
    "FCOSSegmentor",
    "GroundTruth",
    "LevelParts",
    "Prediction",
    "group_conflict",
    "level_parts",
]


FCOS_REQUIREMENTS: dict[str, Requirement] = {
    "NUM_CLASSES": NOT_NEGATIVE,
    "NUM_CONVS": NOT_NEGATIVE,
    "BRANCH_DIM": COUNT,
    "BRANCH_CONVS": NOT_NEGATIVE,
    "NORM": one_of("BN", "SyncBN", "GN", ""),
    "SCORE_THRESH_TEST": SHARE,
    "NMS_THRESH_TEST": SHARE,
    "TOPK_CANDIDATES_TEST": COUNT,
    "MASK_THRESHOLD": SHARE,
}


class Prediction(NamedTuple):
    """What the network says of B images."""

    dense: DensePrediction
    mask_features: Tensor  # (B, C, h, w)


@dataclass
class GroundTruth:
    """G instances of one image."""

    classes: Tensor  # (G,) int64
    boxes: Tensor  # (G, 4) XYXY in pixels, float32
    masks: Tensor  # (G, H, W) bool
    drawn: BitMasks | PolygonMasks  # the same as they were given

    def areas(self) -> Tensor:
        """Pixels of each mask: ``(G,)`` int64."""
        # One by one: a sum of bools makes integers of them all first.
        areas = [mask.sum() for mask in self.masks]
        return torch.stack(areas) if areas else torch.zeros_like(self.classes)


class LevelParts(NamedTuple):
    """What is built around the levels of a backbone."""

    backbone: Backbone
    head: FCOSHead
    channels: int
    branch_shapes: list[ShapeSpec]  # of the levels from which mask features are made
    norm: str


def level_parts(cfg: CfgNode, node: CfgNode, name: str, scale_levels: bool) -> LevelParts:
    """Backbone and head of ``cfg``, and what the mask features begin with.

    Args:
        node: the method's keys.
        name: of the node, for messages.
        scale_levels: as for FCOSHead.

    Raises:
        ConfigError: the backbone lacks a level, or a level does not fit.
    """
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    levels, branch = (
        pyramid_shapes(shapes, node[key], f"MODEL.{name}.{key}", NUM_GROUPS)
        for key in ("IN_FEATURES", "BRANCH_IN_FEATURES")
    )
    if not 4 <= branch[0].stride <= branch[-1].stride <= SIZE_DIVISIBILITY:
        raise ConfigError(
            f"MODEL.{name}.BRANCH_IN_FEATURES {list(node.BRANCH_IN_FEATURES)} have the strides "
            f"{[shape.stride for shape in branch]}: they must be from 4 to {SIZE_DIVISIBILITY}"
        )
    head = FCOSHead(
        channels=levels[0].channels,
        num_classes=node.NUM_CLASSES,
        strides=[shape.stride for shape in levels],
        num_convs=node.NUM_CONVS,
        scale_levels=scale_levels,
    )
    norm = norm_for(node.NORM, cfg.MODEL.DEVICE)
    return LevelParts(backbone, head, levels[0].channels, branch, norm)


class FCOSSegmentor(InstanceSegmentor, abstract=True):
    """A model that finds boxes as FCOS (arXiv 1904.01355) and gives each of them a mask.

    Subclasses say what masks cost (``mask_loss``), what the semantic head learns
    (``semantic_loss``), and how instances are read out (``select``).
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: tuple[str, ...],
        branch_in_features: tuple[str, ...],
        head: FCOSHead,
        mask_branch: FusedMaskBranch,
        semantic_head: SemanticHead | None,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        max_instances: int = 100,
        mask_threshold: float = 0.5,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.6,
        topk_candidates: int = 1000,
    ):
        """
        Args:
            in_features, branch_in_features: outputs of the backbone for the head and for the mask
                features, finest first.
            semantic_head: an auxiliary task in training, if any; reads the branch's finest level.
            pixel_mean, pixel_std, max_instances, mask_threshold: as in InstanceSegmentor.
            score_threshold, nms_threshold, topk_candidates: as in fcos_decode.
        """
        super().__init__(backbone, pixel_mean, pixel_std, max_instances, mask_threshold)
        self.in_features = tuple(in_features)
        self.branch_in_features = tuple(branch_in_features)
        self.head = head
        self.mask_branch = mask_branch
        self.semantic_head = semantic_head
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.topk_candidates = topk_candidates

    @staticmethod
    def shared_arguments(cfg: CfgNode, node: CfgNode, parts: LevelParts) -> dict[str, Any]:
        """The constructor's arguments that come from ``cfg`` alike in both methods."""
        return {
            "backbone": parts.backbone,
            "in_features": node.IN_FEATURES,
            "branch_in_features": node.BRANCH_IN_FEATURES,
            "head": parts.head,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "max_instances": cfg.TEST.DETECTIONS_PER_IMAGE,
            "mask_threshold": node.MASK_THRESHOLD,
            "score_threshold": node.SCORE_THRESH_TEST,
            "nms_threshold": node.NMS_THRESH_TEST,
            "topk_candidates": node.TOPK_CANDIDATES_TEST,
        }

    @property
    def branch_stride(self) -> int:
        """Of the finest level from which mask features are made."""
        return self.backbone.output_shape()[self.branch_in_features[0]].stride

    def predict(self, images: ImageList) -> Prediction:
        return self._predict(self.backbone(images.tensor))

    def _predict(self, features: dict[str, Tensor]) -> Prediction:
        dense = self.head([features[name] for name in self.in_features])
        return Prediction(dense, self.mask_branch(self._branch(features)))

    def _branch(self, features: dict[str, Tensor]) -> list[Tensor]:
        return [features[name] for name in self.branch_in_features]

    def losses(self, images: ImageList, batched_inputs: list[dict]) -> dict[str, Tensor]:
        features = self.backbone(images.tensor)
        prediction = self._predict(features)
        truths = [self._truth(x["instances"]) for x in batched_inputs]
        targets = self.targets(prediction.dense, truths)
        size = tuple(images.tensor.shape[-2:])
        losses = fcos_losses(prediction.dense, targets)
        losses["loss_mask"] = self.mask_loss(prediction, targets, truths, size)
        if self.semantic_head is not None:
            logits = self.semantic_head(self._branch(features)[0])
            losses |= self.semantic_loss(logits.float(), truths, size)
        return losses

    def _truth(self, instances: Instances) -> GroundTruth:
        check_classes(instances, self.head.num_classes, f"MODEL.{self.config_node}.NUM_CLASSES")
        boxes = torch.zeros(0, 4)
        if instances.has("gt_boxes"):  # Detectron2's mapper leaves it out of an empty image
            boxes = instances.gt_boxes.tensor
        drawn = ground_truth_masks(instances)
        masks = ground_truth_bitmasks(instances).to(self.device)
        return GroundTruth(
            classes=instances.gt_classes.to(self.device),
            boxes=boxes.to(self.device, torch.float32),
            masks=masks,
            drawn=BitMasks(masks) if isinstance(drawn, BitMasks) else drawn,
        )

    def targets(self, dense: DensePrediction, truths: list[GroundTruth]) -> DenseTargets:
        """The ground truths for which locations answer."""
        return fcos_targets(
            dense.locations,
            [truth.boxes for truth in truths],
            [self.centres(truth) for truth in truths],
            [truth.classes for truth in truths],
        )

    def centres(self, truth: GroundTruth) -> Tensor:
        """``(G, 2)`` as (x, y) in pixels, near which locations answer: of the boxes."""
        return (truth.boxes[:, :2] + truth.boxes[:, 2:]) / 2

    def semantic_target(
        self,
        truths: list[GroundTruth],
        padded_size: tuple[int, int],
        *,
        offset: int,
        background: int,
        first_class: int,
    ) -> Tensor:
        """The class of every cell of the branch's finest level: ``(B, h, w)`` int64.

        Args:
            offset: of the sampled pixels in their cells.
            background: the number of cells without an instance.
            first_class: the number of class 0.
        """
        maps = []
        for truth in truths:
            masks = sampled_masks(truth.masks, self.branch_stride, padded_size, offset)
            classes = truth.classes + first_class
            maps.append(painted_classes(masks, truth.areas(), classes, background))
        return torch.stack(maps)

    def mask_loss(
        self,
        prediction: Prediction,
        targets: DenseTargets,
        truths: list[GroundTruth],
        padded_size: tuple[int, int],
    ) -> Tensor:
        """A float32 scalar, which without any location is a zero that reaches every parameter."""
        raise NotImplementedError

    def semantic_loss(
        self, logits: Tensor, truths: list[GroundTruth], padded_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """The weighted loss of the semantic head's ``(B, channels, h, w)``, by its name."""
        raise NotImplementedError

    def detections(self, prediction: Prediction, image: int) -> Detections:
        """The boxes of one image of the batch."""
        return fcos_decode(
            prediction.dense,
            image,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            topk_candidates=self.topk_candidates,
            max_detections=self.max_instances,
        )


def group_conflict(name: str, node: CfgNode) -> str:
    """What is wrong with the norm and the width of the mask branch together; "" if nothing is."""
    if node.NORM == "GN" and node.BRANCH_DIM % 32:
        return (
            f"MODEL.{name}.BRANCH_DIM ({node.BRANCH_DIM}) must be a multiple of 32 for "
            f"MODEL.{name}.NORM GN"
        )
    return ""
