"""Detectron2's feature pyramid over any backbone."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

__all__ = ["with_fcos_fpn", "with_fpn"]


def with_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """``cfg.MODEL.FPN`` over ``bottom_up``, as ``build_resnet_fpn_backbone`` has it: p2 .. p6."""
    return _pyramid(cfg, bottom_up, LastLevelMaxPool())


def with_fcos_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """The same with FCOS's coarsest levels (arXiv 1904.01355), made of p5: .. p5, p6, p7."""
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return _pyramid(cfg, bottom_up, LastLevelP6P7(channels, channels, "p5"))


def _pyramid(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_fcos_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's ResNet below FCOS's pyramid: p3 .. p7 of res3 .. res5."""
    return with_fcos_fpn(cfg, build_resnet_backbone(cfg, input_shape))
