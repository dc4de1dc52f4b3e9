"""ISDA: position-aware instance segmentation with deformable attention (arXiv 2202.12251)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor

from isda.meta_arch.base import SetPredictor
from isda.meta_arch.declarations import undivided_heads
from isda.meta_arch.inputs import check_classes, ground_truth_bitmasks
from isda.meta_arch.keys import arguments_as_keys, method_keys
from isda.modeling.deformable_transformer import (
    DROPOUT,
    DecodedQueries,
    DeformableTransformer,
)
from isda.modeling.denoising import DenoisingQueries
from isda.modeling.mask_head import (
    FEATURE_STRIDES,
    MASK_STRIDES,
    InstanceHead,
    MaskFeatureHead,
)
from isda.modeling.neck import Neck
from isda.modeling.postprocessing import select_instances
from isda.modeling.query_selection import QuerySelection
from isda.modeling.reference_boxes import ReferenceBoxes
from isda.requirements import COUNT, GROUPS, NOT_NEGATIVE, SHARE, or_zero
from isda.structures import NoisedQueries, SetPrediction, SetTarget
from isda.training.criterion import MaskCriterion
from isda.training.masks import shrink_masks
from isda.training.matching import MaskMatcher
from isda.training.points import sample_cells

__all__ = ["ISDA"]

_NEED_BOXES = (
    "BOX_REFINEMENT",
    "RELATIVE_BOXES",
    "QUERY_SELECTION",
    "QUERY_RELATION",
    "ELLIPSE",
    "DENOISING_QUERIES",
)


@META_ARCH_REGISTRY.register()
class ISDA(SetPredictor):
    """N queries, each with class scores and a kernel; mask = kernel · features. No NMS.

    Letters as in the paper's notation used throughout: B images of padded size H×W, N queries,
    K classes, C channels, L decoder layers, G ground truths of an image.
    """

    config_node = "ISDA"
    exporter = "isda.prediction.export:ExportableISDA"
    compilation = "isda.prediction.compilation:as_it_is"
    tracer = "isda.inspection.traces:trace_isda"
    requirements: ClassVar = {
        "NUM_CLASSES": NOT_NEGATIVE,
        "NUM_QUERIES": COUNT,
        "NUM_HEADS": COUNT,
        "NUM_POINTS": COUNT,
        "ENCODER_LAYERS": COUNT,
        "DECODER_LAYERS": COUNT,
        "FEEDFORWARD_DIM": COUNT,
        "DROPOUT": DROPOUT,
        "HIDDEN_DIM": GROUPS,
        "MASK_HEAD_DIM": GROUPS,
        "MASK_DIM": GROUPS,
        "MASK_STRIDE": MASK_STRIDES,
        "MASK_FEATURE_STRIDE": or_zero(FEATURE_STRIDES),
        "ENCODER_FINEST_EVERY": COUNT,
        "MASK_POINTS": NOT_NEGATIVE,
        "DENOISING_QUERIES": NOT_NEGATIVE,
        "BOX_WEIGHT": NOT_NEGATIVE,
        "GIOU_WEIGHT": NOT_NEGATIVE,
        "BOX_COST": NOT_NEGATIVE,
        "GIOU_COST": NOT_NEGATIVE,
        "MASK_THRESHOLD": SHARE,
        "CLASS_WEIGHT": NOT_NEGATIVE,
        "MASK_WEIGHT": NOT_NEGATIVE,
        "CLASS_COST": NOT_NEGATIVE,
        "MASK_COST": NOT_NEGATIVE,
    }

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        neck: Neck,
        transformer: DeformableTransformer,
        instance_head: InstanceHead,
        mask_feature_head: MaskFeatureHead,
        criterion: MaskCriterion,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        max_instances: int = 100,
        mask_threshold: float = 0.5,
        keep_largest_component: bool = False,
        denoising: DenoisingQueries | None = None,
        num_mask_points: int = 0,
    ):
        """
        Args:
            pixel_mean, pixel_std, max_instances: as in SetPredictor.
            mask_threshold: a pixel is in a mask when its probability is above.
            keep_largest_component: keep only the largest connected component of each mask.
            denoising: makes further queries from the ground truths, in training.
            num_mask_points: cells per image at which masks are matched and learned; 0: all.
        """
        super().__init__(backbone, pixel_mean, pixel_std, max_instances, mask_threshold)
        self.neck = neck
        self.transformer = transformer
        self.instance_head = instance_head
        self.mask_feature_head = mask_feature_head
        self.criterion = criterion
        self.keep_largest_component = keep_largest_component
        self.denoising = denoising
        self.num_mask_points = num_mask_points

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        isda = method_keys(cfg, cls)
        backbone = build_backbone(cfg)
        with arguments_as_keys("ISDA"):
            neck = Neck(
                backbone.output_shape(),
                in_features=isda.IN_FEATURES,
                hidden_dim=isda.HIDDEN_DIM,
                bias=isda.NECK_BIAS,
            )
        return {
            "backbone": backbone,
            "neck": neck,
            "transformer": _build_transformer(isda),
            "instance_head": InstanceHead(
                hidden_dim=isda.HIDDEN_DIM,
                num_classes=isda.NUM_CLASSES,
                mask_dim=isda.MASK_DIM,
                position=isda.KERNEL_POSITION,
                ellipse=isda.ELLIPSE,
            ),
            "mask_feature_head": MaskFeatureHead(
                hidden_dim=isda.HIDDEN_DIM,
                head_dim=isda.MASK_HEAD_DIM,
                mask_dim=isda.MASK_DIM,
                mask_stride=isda.MASK_STRIDE,
                position=isda.MASK_POSITION,
                feature_stride=isda.MASK_FEATURE_STRIDE or None,
                ellipse=isda.ELLIPSE,
            ),
            "criterion": _build_criterion(isda),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "max_instances": cfg.TEST.DETECTIONS_PER_IMAGE,
            "mask_threshold": isda.MASK_THRESHOLD,
            "keep_largest_component": isda.KEEP_LARGEST_COMPONENT,
            "denoising": DenoisingQueries(isda.HIDDEN_DIM, isda.NUM_CLASSES, isda.DENOISING_QUERIES)
            if isda.DENOISING_QUERIES
            else None,
            "num_mask_points": isda.MASK_POINTS,
        }

    @staticmethod
    def conflict(node: CfgNode) -> str:
        for key in _NEED_BOXES:
            if node[key] and not node.BOXES:
                return (
                    f"MODEL.ISDA.{key} is {node[key]}, which needs boxes: set MODEL.ISDA.BOXES True"
                )
        if node.TOKEN_CONTENT and not node.QUERY_SELECTION:
            return (
                "MODEL.ISDA.TOKEN_CONTENT is True, which needs tokens that are chosen: set "
                "MODEL.ISDA.QUERY_SELECTION True"
            )
        if node.MASK_STRIDE > node.MASK_FEATURE_STRIDE > 0:
            return (
                f"MODEL.ISDA.MASK_STRIDE ({node.MASK_STRIDE}) must not be above "
                f"MODEL.ISDA.MASK_FEATURE_STRIDE ({node.MASK_FEATURE_STRIDE})"
            )
        if node.MASK_STRIDE == 1 and not node.MASK_FEATURE_STRIDE:
            return (
                "MODEL.ISDA.MASK_STRIDE 1 needs mask features that are enlarged: set "
                "MODEL.ISDA.MASK_FEATURE_STRIDE to 2 or 4"
            )
        return undivided_heads("ISDA", node)

    def outputs(
        self, images: ImageList, targets: list[SetTarget]
    ) -> tuple[list[SetPrediction], DecodedQueries]:
        """Predictions of all decoder layers, those of noised queries first, if there are any."""
        return self._decode(
            images, None if self.denoising is None else partial(self.denoising, targets)
        )

    def compare(
        self, outputs: tuple[list[SetPrediction], DecodedQueries], targets: list[SetTarget]
    ) -> dict[str, Tensor]:
        """Of all decoder layers; of the chosen tokens and the noised queries, if there are any."""
        predictions, decoded = outputs
        # Once for all that reads them below; many cells of a large map take their time.
        columns = [t.columns(f) for t, f in zip(targets, predictions[0].mask_features, strict=True)]
        predictions = [replace(p, mask_features=columns) for p in predictions]
        count = 0 if decoded.noised is None else decoded.noised.boxes.shape[1]
        losses = self.criterion([p.queries(count, None) for p in predictions], targets)
        if decoded.proposals is not None:
            proposals = decoded.proposals
            chosen = SetPrediction(proposals.class_logits, None, None, proposals.boxes)
            losses |= self.criterion.proposals(chosen, targets)
        if decoded.noised is not None:
            restored = [p.queries(None, count) for p in predictions]
            losses |= self.criterion.denoising(restored, targets, decoded.noised)
        return losses

    def predict(self, images: ImageList) -> list[SetPrediction]:
        """One prediction per decoder layer; at inference of the last layer only."""
        return self._decode(images)[0]

    def _decode(
        self, images: ImageList, noised: Callable[[int], NoisedQueries] | None = None
    ) -> tuple[list[SetPrediction], DecodedQueries]:
        levels = self.neck(self.backbone(images.tensor))  # P2..P6
        mask_features = self.mask_feature_head(levels[:4], images.image_sizes)
        decoded = self.transformer(levels[1:], _padding_mask(images), noised)
        if not self.training:
            decoded = decoded.last()
        class_logits, kernels = self._heads(decoded)
        boxes = [None] * len(kernels) if decoded.boxes is None else decoded.boxes
        predictions = [
            SetPrediction(logits, layer_kernels, mask_features, layer_boxes)
            for logits, layer_kernels, layer_boxes in zip(class_logits, kernels, boxes, strict=True)
        ]
        return predictions, decoded

    def _heads(self, decoded: DecodedQueries) -> tuple[Tensor, Tensor]:
        """Class logits and kernels of the decoder layers."""
        places = (decoded.reference_points, decoded.boxes)
        if self.training:
            return self.instance_head(decoded.states, *places)
        # In full precision always: the scores of many queries lie close together.
        states = decoded.states.to(self.instance_head.classes.weight.dtype)
        with torch.autocast(self.device.type, enabled=False):
            return self.instance_head(states, *places)

    def targets(self, batched_inputs: list[dict]) -> list[SetTarget]:
        """Ground truths at the mask stride; those that vanish there are left out and counted."""
        targets, vanished = [], 0
        for x in batched_inputs:
            target, lost = self._target(x["instances"])
            targets.append(target)
            vanished += lost
        if has_event_storage():
            get_event_storage().put_scalar("vanished_targets", vanished, smoothing_hint=False)
        return targets

    def _target(self, instances: Instances) -> tuple[SetTarget, int]:
        num_classes = self.instance_head.classes.out_features
        check_classes(instances, num_classes, "MODEL.ISDA.NUM_CLASSES")
        classes = instances.gt_classes.to(self.device)
        masks = ground_truth_bitmasks(instances).to(self.device)
        masks = shrink_masks(masks, self.mask_feature_head.mask_stride)
        visible = masks.flatten(1).amax(dim=1) > 0
        target = SetTarget(classes[visible], masks[visible])
        if self.transformer.reference_boxes is not None or self.num_mask_points:
            target.boxes = relative_boxes(instances)[visible].to(self.device)
        if self.num_mask_points:
            target = sample_cells(target, self.num_mask_points)
        return target, len(classes) - len(target.classes)

    def select(self, prediction: SetPrediction, index: int, **sizes: tuple[int, int]) -> Instances:
        return select_instances(
            prediction,
            index,
            **sizes,
            max_instances=self.max_instances,
            threshold=self.mask_threshold,
            keep_largest_component=self.keep_largest_component,
            ellipse=self.mask_feature_head.ellipse,
        )


def relative_boxes(instances: Instances) -> Tensor:
    """``gt_boxes`` relative to the image: ``(G, 4)`` as (centre x, centre y, width, height)."""
    if not instances.has("gt_boxes"):  # Detectron2's mapper leaves it out of an empty image
        return torch.zeros(0, 4)
    height, width = instances.image_size
    corners = instances.gt_boxes.tensor.float()
    corners = corners / corners.new_tensor([width, height, width, height])
    return torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)


def _padding_mask(images: ImageList) -> Tensor:
    """``(B, H, W)``, True on padding."""
    rows, columns = (
        torch.arange(side, device=images.tensor.device) for side in images.tensor.shape[-2:]
    )
    masks = [(rows >= height)[:, None] | (columns >= width) for height, width in images.image_sizes]
    return torch.stack(masks)


def _build_transformer(isda: CfgNode) -> DeformableTransformer:
    return DeformableTransformer(
        hidden_dim=isda.HIDDEN_DIM,
        num_queries=isda.NUM_QUERIES,
        num_heads=isda.NUM_HEADS,
        num_points=isda.NUM_POINTS,
        encoder_layers=isda.ENCODER_LAYERS,
        decoder_layers=isda.DECODER_LAYERS,
        feedforward_dim=isda.FEEDFORWARD_DIM,
        dropout=isda.DROPOUT,
        gradient_checkpointing=isda.GRADIENT_CHECKPOINTING,
        finest_every=isda.ENCODER_FINEST_EVERY,
        exact_extent=isda.EXACT_EXTENT,
        reference_boxes=ReferenceBoxes(isda.HIDDEN_DIM, isda.BOX_REFINEMENT, isda.RELATIVE_BOXES)
        if isda.BOXES
        else None,
        query_selection=QuerySelection(
            isda.HIDDEN_DIM, isda.NUM_CLASSES, isda.NUM_QUERIES, isda.RELATIVE_BOXES
        )
        if isda.QUERY_SELECTION
        else None,
        token_content=isda.TOKEN_CONTENT,
        query_relation=isda.QUERY_RELATION,
    )


def _build_criterion(isda: CfgNode) -> MaskCriterion:
    costs = {"class_cost": isda.CLASS_COST, "mask_cost": isda.MASK_COST}
    weights = {"class_weight": isda.CLASS_WEIGHT, "mask_weight": isda.MASK_WEIGHT}
    if isda.BOXES:
        costs |= {"box_cost": isda.BOX_COST, "giou_cost": isda.GIOU_COST}
        weights |= {"box_weight": isda.BOX_WEIGHT, "giou_weight": isda.GIOU_WEIGHT}
    return MaskCriterion(MaskMatcher(**costs), **weights)
