"""Detectron2's feature pyramid over any backbone."""

from detectron2.config import CfgNode
from detectron2.modeling import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

__all__ = ["with_fpn"]


def with_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """``cfg.MODEL.FPN`` over ``bottom_up``, as ``build_resnet_fpn_backbone`` has it: p2 .. p6."""
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
