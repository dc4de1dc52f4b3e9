"""SOLO: segmenting objects by locations (arXiv 1912.04488)."""

from typing import ClassVar

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone

from isda.meta_arch.declarations import Unavailable
from isda.meta_arch.grid import (
    GRID_REQUIREMENTS,
    LEVEL_STRIDES,
    GridSegmentor,
    grid_parts,
    levels_of_pyramid,
    not_drawn,
)
from isda.meta_arch.keys import method_keys
from isda.modeling.grid_head import DecoupledSOLOHead, SOLOHead

__all__ = ["SOLO"]


@META_ARCH_REGISTRY.register()
class SOLO(GridSegmentor):
    """A mask channel per cell, or with ``DECOUPLED`` one per column and one per row."""

    config_node = "SOLO"
    exporter = Unavailable(
        "SOLO cannot be exported: how many cells it makes masks of depends on the image, and a "
        "graph has a fixed number; take ISDA or ISTR"
    )
    compilation = "isda.prediction.compilation:as_it_is"
    tracer = not_drawn("SOLO")
    requirements: ClassVar = GRID_REQUIREMENTS

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        solo = method_keys(cfg, cls)
        backbone = build_backbone(cfg)
        head = DecoupledSOLOHead if solo.DECOUPLED else SOLOHead
        scale = LEVEL_STRIDES[0] // solo.MASK_STRIDE
        dimensions = {
            "scale": scale,
            "in_channels": levels_of_pyramid(solo, "SOLO", backbone),
            "num_classes": solo.NUM_CLASSES,
            "head_dim": solo.HEAD_DIM,
            "num_convs": solo.NUM_CONVS,
            "grid_sizes": solo.GRID_SIZES,
        }
        mask_strides = [stride // scale for stride in LEVEL_STRIDES]
        return {**grid_parts(cfg, solo, backbone, mask_strides), "head": head(**dimensions)}
