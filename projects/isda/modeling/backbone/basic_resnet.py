"""Detectron2's ResNet of basic blocks in any width, for small models trained from scratch."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet

from isda.errors import ConfigError
from isda.modeling.backbone.fpn import with_fcos_fpn, with_fpn

__all__ = [
    "build_basic_resnet_backbone",
    "build_basic_resnet_fpn_backbone",
    "build_fcos_basic_resnet_fpn_backbone",
]

BLOCKS_PER_STAGE = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


@BACKBONE_REGISTRY.register()
def build_basic_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build a ResNet of two 3×3 convolutions a block (arXiv 1512.03385, section 4.1).

    ``build_resnet_backbone`` has these blocks too, but only at the full width of 64 channels.
    It reads DEPTH (10, 18 or 34), STEM_OUT_CHANNELS, RES2_OUT_CHANNELS, NORM and OUT_FEATURES of
    ``cfg.MODEL.RESNETS``, and ``cfg.MODEL.BACKBONE.FREEZE_AT``.

    Raises:
        ConfigError: the depth is none of these.
    """
    resnets = cfg.MODEL.RESNETS
    if resnets.DEPTH not in BLOCKS_PER_STAGE:
        raise ConfigError(
            f"MODEL.RESNETS.DEPTH must be one of {', '.join(map(str, BLOCKS_PER_STAGE))} for a "
            f"ResNet of basic blocks, got {resnets.DEPTH}"
        )
    stem = BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, resnets.NORM)
    stages, channels = [], resnets.STEM_OUT_CHANNELS
    for stage, blocks in enumerate(BLOCKS_PER_STAGE[resnets.DEPTH]):
        out_channels = resnets.RES2_OUT_CHANNELS * 2**stage
        first_stride = 1 if stage == 0 else 2  # the stem ends at stride 4
        layers = ResNet.make_stage(
            BasicBlock,
            blocks,
            stride_per_block=[first_stride] + [1] * (blocks - 1),
            in_channels=channels,
            out_channels=out_channels,
            norm=resnets.NORM,
        )
        stages.append(layers)
        channels = out_channels
    return ResNet(
        stem, stages, out_features=resnets.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT
    )


@BACKBONE_REGISTRY.register()
def build_basic_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same below a feature pyramid of ``cfg.MODEL.FPN``."""
    return with_fpn(cfg, build_basic_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_fcos_basic_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same below FCOS's pyramid: ``p3`` .. ``p7`` of ``res3`` .. ``res5``."""
    return with_fcos_fpn(cfg, build_basic_resnet_backbone(cfg, input_shape))
