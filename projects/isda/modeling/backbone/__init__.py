"""Backbone builders, registered in Detectron2's BACKBONE_REGISTRY by being imported."""

from isda.modeling.backbone.basic_resnet import (
    build_basic_resnet_backbone,
    build_basic_resnet_fpn_backbone,
    build_fcos_basic_resnet_fpn_backbone,
)
from isda.modeling.backbone.fpn import build_fcos_resnet_fpn_backbone
from isda.modeling.backbone.swin import (
    build_fcos_swin_fpn_backbone,
    build_swin_backbone,
    build_swin_fpn_backbone,
)
from isda.modeling.backbone.torch_backbone import (
    build_fcos_torch_fpn_backbone,
    build_torch_backbone,
    build_torch_fpn_backbone,
)
from isda.modeling.backbone.vit import build_vit_backbone

__all__ = [
    "build_basic_resnet_backbone",
    "build_basic_resnet_fpn_backbone",
    "build_fcos_basic_resnet_fpn_backbone",
    "build_fcos_resnet_fpn_backbone",
    "build_fcos_swin_fpn_backbone",
    "build_fcos_torch_fpn_backbone",
    "build_swin_backbone",
    "build_swin_fpn_backbone",
    "build_torch_backbone",
    "build_torch_fpn_backbone",
    "build_vit_backbone",
]
