"""Base class of SOLO and SOLOv2."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import Backbone
from detectron2.structures import ImageList, Instances
from torch import Tensor

from isda.errors import ConfigError
from isda.meta_arch.base import InstanceSegmentor
from isda.meta_arch.declarations import Unavailable
from isda.meta_arch.inputs import check_classes, ground_truth_bitmasks
from isda.modeling.grid_head import GridHead, grid_levels
from isda.modeling.grid_instances import GridSelector
from isda.modeling.matrix_nms import NMS_KERNELS
from isda.modeling.pyramid import pyramid_shapes
from isda.requirements import COUNT, GROUPS, NOT_NEGATIVE, SHARE, Requirement, each, one_of
from isda.structures import GridPrediction, GridTarget
from isda.training.grid_criterion import GridCriterion
from isda.training.grid_targets import GridAssigner

__all__ = [
    "GRID_REQUIREMENTS",
    "LEVEL_STRIDES",
    "GridSegmentor",
    "grid_parts",
    "levels_of_pyramid",
    "not_drawn",
]

_STRIDES = [4, 8, 16, 32, 64]
_LEVELS = len(_STRIDES)
LEVEL_STRIDES = (8, 8, 16, 32, 32)  # what grid_levels makes of them

GRID_REQUIREMENTS: dict[str, Requirement] = {
    "NUM_CLASSES": NOT_NEGATIVE,
    "HEAD_DIM": GROUPS,
    "NUM_CONVS": COUNT,
    "MASK_STRIDE": one_of(2, 4),
    "GRID_SIZES": each(COUNT, _LEVELS),
    "SCALE_RANGES": each(
        (lambda scales: len(scales) == 2 and 0 <= scales[0] <= scales[1], "[smallest, largest]"),
        _LEVELS,
    ),
    "CLASS_WEIGHT": NOT_NEGATIVE,
    "MASK_WEIGHT": NOT_NEGATIVE,
    "SCORE_THRESH_TEST": SHARE,
    "PRE_NMS_TOPK_TEST": COUNT,
    "NMS_KERNEL": one_of(*NMS_KERNELS),
    "NMS_SIGMA": NOT_NEGATIVE,
    "FINAL_THRESH_TEST": SHARE,
    "MASK_THRESHOLD": SHARE,
}


def not_drawn(name: str) -> Unavailable:
    return Unavailable(
        f"{name} has neither queries nor decoder layers to draw: ask for its predictions"
    )


class GridSegmentor(InstanceSegmentor, abstract=True):
    """A dense method: each cell of a grid per level predicts the instance centred in it, or none.

    Subclasses predict a :class:`GridPrediction`. Letters: B images of padded size H×W, K classes,
    S cells along each side of a level's grid, G ground truths of an image.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        head: GridHead,
        assigner: GridAssigner,
        criterion: GridCriterion,
        selector: GridSelector,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
    ):
        """
        Args:
            in_features: outputs of the backbone, of strides 4 to 64.
            pixel_mean, pixel_std: as in InstanceSegmentor.
        """
        super().__init__(
            backbone, pixel_mean, pixel_std, selector.max_instances, selector.mask_threshold
        )
        self.in_features = tuple(in_features)
        self.head = head
        self.assigner = assigner
        self.criterion = criterion
        self.selector = selector

    def features(self, images: ImageList) -> list[Tensor]:
        """The pyramid's levels of strides 4 to 64."""
        features = self.backbone(images.tensor)
        return [features[name] for name in self.in_features]

    def predict(self, images: ImageList) -> GridPrediction:
        return GridPrediction(*self.head(grid_levels(self.features(images))))

    def losses(self, images: ImageList, batched_inputs: list[dict]) -> dict[str, Tensor]:
        padded_size = tuple(images.tensor.shape[-2:])
        targets = [self._targets(x["instances"], padded_size) for x in batched_inputs]
        return self.criterion(self.predict(images), targets)

    def _targets(self, instances: Instances, padded_size: tuple[int, int]) -> list[GridTarget]:
        num_classes = self.head.classes.out_channels
        check_classes(instances, num_classes, f"MODEL.{self.config_node}.NUM_CLASSES")
        # Detectron2's mapper leaves the boxes out of an empty image.
        boxes = instances.gt_boxes.tensor if instances.has("gt_boxes") else torch.zeros(0, 4)
        classes, masks = instances.gt_classes, ground_truth_bitmasks(instances)
        return self.assigner(*(x.to(self.device) for x in (classes, boxes, masks)), padded_size)

    def select(self, prediction: GridPrediction, index: int, **sizes: tuple[int, int]) -> Instances:
        return self.selector(prediction, index, **sizes)


def levels_of_pyramid(node: CfgNode, name: str, backbone: Backbone) -> int:
    """Channels of the levels that ``IN_FEATURES`` names.

    Raises:
        ConfigError: the backbone does not give them, or they are no pyramid of strides 4 to 64.
    """
    key = f"MODEL.{name}.IN_FEATURES"
    levels = pyramid_shapes(backbone.output_shape(), node.IN_FEATURES, key)
    strides = [level.stride for level in levels]
    if strides != _STRIDES:
        raise ConfigError(
            f"{key} {list(node.IN_FEATURES)} have the strides {strides}; they must be {_STRIDES}"
        )
    return levels[0].channels


def grid_parts(
    cfg: CfgNode, node: CfgNode, backbone: Backbone, mask_strides: Sequence[int]
) -> dict[str, Any]:
    """What the constructors of both methods take, but the heads.

    Args:
        node: the method's keys.
        mask_strides: of the masks that each level predicts.
    """
    finer = (4 / node.MASK_STRIDE) ** 2
    return {
        "backbone": backbone,
        "in_features": node.IN_FEATURES,
        "assigner": GridAssigner(
            tuple(node.GRID_SIZES), tuple(map(tuple, node.SCALE_RANGES)), tuple(mask_strides)
        ),
        "criterion": GridCriterion(node.CLASS_WEIGHT, node.MASK_WEIGHT),
        "selector": GridSelector(
            min_pixels=tuple(finer * stride for stride in LEVEL_STRIDES),
            score_threshold=node.SCORE_THRESH_TEST,
            max_candidates=node.PRE_NMS_TOPK_TEST,
            nms_kernel=node.NMS_KERNEL,
            nms_sigma=node.NMS_SIGMA,
            final_threshold=node.FINAL_THRESH_TEST,
            mask_threshold=node.MASK_THRESHOLD,
            max_instances=cfg.TEST.DETECTIONS_PER_IMAGE,
        ),
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }
