"""ISTR: end-to-end instance segmentation with recurrent refinement (arXiv 2105.00637)."""

import logging
import os
from typing import ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList, Instances
from torch import Tensor

from isda.errors import ConfigError
from isda.meta_arch.base import SetPredictor
from isda.meta_arch.declarations import undivided_heads
from isda.meta_arch.inputs import check_classes, ground_truth_masks
from isda.meta_arch.keys import arguments_as_keys, method_keys
from isda.modeling.mask_dictionary import SHIPPED, DictionaryError
from isda.modeling.mask_embedding import MaskEmbedding, crop_masks
from isda.modeling.postprocessing import select_embedded_instances
from isda.modeling.refinement import LearnedQueries, RefinementHead, RefinementStep, build_pooler
from isda.requirements import COUNT, NOT_NEGATIVE, SHARE
from isda.structures import EmbeddedPrediction, EmbeddedTarget
from isda.training.criterion import EmbeddingCriterion
from isda.training.matching import EmbeddingMatcher

__all__ = ["ISTR"]

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class ISTR(SetPredictor):
    """N queries with a box each, refined in T steps; a mask is a short vector in its box. No NMS.

    Letters as in the paper's notation used throughout: B images of padded size H×W, N queries,
    K classes, C channels, G ground truths of an image, d numbers of an embedding of S×S masks.
    """

    config_node = "ISTR"
    exporter = "isda.prediction.export:ExportableISTR"
    compilation = "isda.prediction.compilation:pool_in_one_node"
    tracer = "isda.inspection.traces:trace_istr"
    requirements: ClassVar = {
        "NUM_CLASSES": NOT_NEGATIVE,
        "HIDDEN_DIM": COUNT,
        "NUM_QUERIES": COUNT,
        "NUM_STEPS": COUNT,
        "NUM_HEADS": COUNT,
        "FEEDFORWARD_DIM": COUNT,
        "DYNAMIC_DIM": COUNT,
        "POOLER_RESOLUTION": COUNT,
        "MASK_SIZE": COUNT,
        "EMBEDDING_DIM": COUNT,
        "MASK_THRESHOLD": SHARE,
        "CLASS_WEIGHT": NOT_NEGATIVE,
        "BOX_WEIGHT": NOT_NEGATIVE,
        "GIOU_WEIGHT": NOT_NEGATIVE,
        "EMBEDDING_WEIGHT": NOT_NEGATIVE,
        "MASK_WEIGHT": NOT_NEGATIVE,
        "CLASS_COST": NOT_NEGATIVE,
        "BOX_COST": NOT_NEGATIVE,
        "GIOU_COST": NOT_NEGATIVE,
        "EMBEDDING_COST": NOT_NEGATIVE,
    }

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: tuple[str, ...],
        queries: LearnedQueries,
        refinement: RefinementHead,
        mask_embedding: MaskEmbedding,
        criterion: EmbeddingCriterion,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        max_instances: int = 100,
        mask_threshold: float = 0.5,
    ):
        """
        Args:
            in_features: outputs of the backbone, of strides 4, 8, 16, 32.
            mask_embedding: may be empty, when a checkpoint with its own dictionary follows.
            pixel_mean, pixel_std, max_instances: as in SetPredictor.
            mask_threshold: a pixel is in a mask when its probability is at least this.
        """
        super().__init__(backbone, pixel_mean, pixel_std, max_instances, mask_threshold)
        self.in_features = tuple(in_features)
        self.queries = queries
        self.refinement = refinement
        self.mask_embedding = mask_embedding
        self.criterion = criterion
        self._has_dictionary = False  # once seen, so that later calls need not look

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        istr = method_keys(cfg, cls)
        backbone = build_backbone(cfg)
        mask_embedding = _build_mask_embedding(istr)
        return {
            "backbone": backbone,
            "in_features": istr.IN_FEATURES,
            "queries": LearnedQueries(
                num_queries=istr.NUM_QUERIES,
                hidden_dim=istr.HIDDEN_DIM,
                image_feature=istr.IMAGE_FEATURE,
            ),
            "refinement": _build_refinement(istr, backbone),
            "mask_embedding": mask_embedding,
            "criterion": _build_criterion(istr, mask_embedding),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "max_instances": cfg.TEST.DETECTIONS_PER_IMAGE,
            "mask_threshold": istr.MASK_THRESHOLD,
        }

    @staticmethod
    def conflict(node: CfgNode) -> str:
        if node.EMBEDDING_DIM > node.MASK_SIZE**2:
            return (
                f"MODEL.ISTR.EMBEDDING_DIM ({node.EMBEDDING_DIM}) must not exceed the pixels of a "
                f"mask of MODEL.ISTR.MASK_SIZE ({node.MASK_SIZE})"
            )
        return undivided_heads("ISTR", node)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        self._check_dictionary()
        return super().forward(batched_inputs)

    def predict(self, images: ImageList) -> list[EmbeddedPrediction]:
        """One prediction per refinement step; at inference of the last step only."""
        features = self.backbone(images.tensor)
        levels = [features[name] for name in self.in_features]  # P2..P5
        sizes = [tuple(size) for size in images.image_sizes]
        extents = torch.tensor([size[::-1] for size in sizes], dtype=torch.float32)  # (B, 2)
        extents = extents.to(self.device, non_blocking=True)
        queries, boxes = self.queries(levels, sizes, extents)
        return self.refinement(levels, queries, boxes, extents)

    def targets(self, batched_inputs: list[dict]) -> list[EmbeddedTarget]:
        """Ground truths with their masks cropped to the boxes and encoded: once for all steps."""
        return [self._target(x["instances"]) for x in batched_inputs]

    def _target(self, instances: Instances) -> EmbeddedTarget:
        num_classes = self.refinement.steps[0].classes.out_features
        check_classes(instances, num_classes, "MODEL.ISTR.NUM_CLASSES")
        masks = ground_truth_masks(instances).to(self.device)
        boxes = instances.gt_boxes.tensor.to(self.device)
        masks = crop_masks(masks, boxes, self.mask_embedding.side)
        return EmbeddedTarget(
            classes=instances.gt_classes.to(self.device),
            boxes=boxes,
            masks=masks,
            embeddings=self.mask_embedding.encode(masks),
            image_size=tuple(instances.image_size),
        )

    def select(
        self,
        prediction: EmbeddedPrediction,
        index: int,
        *,
        image_size: tuple[int, int],
        padded_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> Instances:
        return select_embedded_instances(
            prediction,
            index,
            self.mask_embedding.decode,
            image_size=image_size,
            output_size=output_size,
            max_instances=self.max_instances,
            threshold=self.mask_threshold,
        )

    def _check_dictionary(self) -> None:
        self._has_dictionary = self._has_dictionary or self.mask_embedding.is_fitted
        if not self._has_dictionary:
            raise DictionaryError(
                "the model has no mask dictionary: MODEL.ISTR.MASK_DICTIONARY must name a file "
                "that isda mask-dictionary fit made, or MODEL.WEIGHTS a checkpoint of ISTR"
            )


def _build_mask_embedding(istr: CfgNode) -> MaskEmbedding:
    """With the dictionary's file, or empty: a checkpoint brings its own, wherever the file is."""
    path, side, dim = istr.MASK_DICTIONARY, istr.MASK_SIZE, istr.EMBEDDING_DIM
    is_file = path not in SHIPPED and "://" not in path
    if path and is_file and not os.path.isfile(path):
        logger.warning(
            "MODEL.ISTR.MASK_DICTIONARY: there is no %s, so MODEL.WEIGHTS has to bring the "
            "dictionary",
            path,
        )
        path = ""
    if not path:
        return MaskEmbedding(side, dim, noise=istr.MASK_NOISE)
    try:
        return MaskEmbedding.from_file(path, dim=dim, side=side, noise=istr.MASK_NOISE)
    except DictionaryError as error:
        raise DictionaryError(
            f"MODEL.ISTR.MASK_DICTIONARY, EMBEDDING_DIM and MASK_SIZE: {error}"
        ) from error


def _build_refinement(istr: CfgNode, backbone: Backbone) -> RefinementHead:
    shapes = backbone.output_shape()
    missing = [name for name in istr.IN_FEATURES if name not in shapes]
    if missing:
        raise ConfigError(
            f"MODEL.ISTR.IN_FEATURES names {missing}, but the backbone gives {list(shapes)}"
        )
    levels = [shapes[name] for name in istr.IN_FEATURES]
    channels = {level.channels for level in levels}
    if channels != {istr.HIDDEN_DIM}:
        raise ConfigError(
            f"MODEL.ISTR.IN_FEATURES have {sorted(channels)} channels, MODEL.ISTR.HIDDEN_DIM is "
            f"{istr.HIDDEN_DIM}: they must agree; MODEL.FPN.OUT_CHANNELS sets those of an FPN"
        )
    with arguments_as_keys("ISTR"):
        pooler = build_pooler([level.stride for level in levels], istr.POOLER_RESOLUTION)
    steps = [
        RefinementStep(
            num_classes=istr.NUM_CLASSES,
            embedding_dim=istr.EMBEDDING_DIM,
            hidden_dim=istr.HIDDEN_DIM,
            num_heads=istr.NUM_HEADS,
            feedforward_dim=istr.FEEDFORWARD_DIM,
            dynamic_dim=istr.DYNAMIC_DIM,
            roi_size=istr.POOLER_RESOLUTION,
        )
        for _ in range(istr.NUM_STEPS)
    ]
    return RefinementHead(steps, pooler)


def _build_criterion(istr: CfgNode, mask_embedding: MaskEmbedding) -> EmbeddingCriterion:
    matcher = EmbeddingMatcher(
        class_cost=istr.CLASS_COST,
        box_cost=istr.BOX_COST,
        giou_cost=istr.GIOU_COST,
        embedding_cost=istr.EMBEDDING_COST,
    )
    return EmbeddingCriterion(
        matcher,
        mask_embedding.decode,
        class_weight=istr.CLASS_WEIGHT,
        box_weight=istr.BOX_WEIGHT,
        giou_weight=istr.GIOU_WEIGHT,
        embedding_weight=istr.EMBEDDING_WEIGHT,
        mask_weight=istr.MASK_WEIGHT,
    )
