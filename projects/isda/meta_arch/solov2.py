"""SOLOv2: dynamic and fast instance segmentation (arXiv 2003.10152)."""

from typing import ClassVar

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import ImageList

from isda.meta_arch.declarations import Unavailable
from isda.meta_arch.grid import (
    GRID_REQUIREMENTS,
    GridSegmentor,
    grid_parts,
    levels_of_pyramid,
    not_drawn,
)
from isda.meta_arch.keys import method_keys
from isda.modeling.grid_head import SOLOv2Head, grid_levels
from isda.modeling.mask_head import MaskFeatureHead
from isda.requirements import GROUPS
from isda.structures import GridPrediction

__all__ = ["SOLOv2"]


@META_ARCH_REGISTRY.register()
class SOLOv2(GridSegmentor):
    """A kernel per cell; mask = kernel · features, which all levels share."""

    config_node = "SOLOV2"
    exporter = Unavailable(
        "SOLOv2 cannot be exported: how many cells it makes masks of depends on the image, and a "
        "graph has a fixed number; take ISDA or ISTR"
    )
    compilation = "isda.prediction.compilation:as_it_is"
    tracer = not_drawn("SOLOv2")
    requirements: ClassVar = GRID_REQUIREMENTS | {"MASK_HEAD_DIM": GROUPS, "MASK_DIM": GROUPS}

    @configurable
    def __init__(self, *, mask_feature_head: MaskFeatureHead, **parts):
        """
        Args:
            mask_feature_head: of the first four levels, at stride 4.
            parts: as of GridSegmentor.
        """
        super().__init__(**parts)
        self.mask_feature_head = mask_feature_head

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        solo = method_keys(cfg, cls)
        backbone = build_backbone(cfg)
        channels = levels_of_pyramid(solo, "SOLOV2", backbone)
        head = SOLOv2Head(
            in_channels=channels,
            num_classes=solo.NUM_CLASSES,
            head_dim=solo.HEAD_DIM,
            num_convs=solo.NUM_CONVS,
            grid_sizes=solo.GRID_SIZES,
            kernel_dim=solo.MASK_DIM,
        )
        mask_feature_head = MaskFeatureHead(
            hidden_dim=channels,
            head_dim=solo.MASK_HEAD_DIM,
            mask_dim=solo.MASK_DIM,
            mask_stride=solo.MASK_STRIDE,
        )
        mask_strides = [solo.MASK_STRIDE] * len(solo.IN_FEATURES)
        return {
            **grid_parts(cfg, solo, backbone, mask_strides),
            "head": head,
            "mask_feature_head": mask_feature_head,
        }

    def predict(self, images: ImageList) -> GridPrediction:
        features = self.features(images)
        # Coordinates over the padded extent: kernels' coordinates are relative to it, too.
        padded_sizes = [tuple(images.tensor.shape[-2:])] * len(images.tensor)
        mask_features = self.mask_feature_head(features[:4], padded_sizes)
        return GridPrediction(*self.head(grid_levels(features), mask_features))
