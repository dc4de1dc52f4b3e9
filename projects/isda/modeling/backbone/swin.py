"""Swin Transformer (arXiv 2103.14030) from Detectron2's modeling package."""

import warnings
from collections.abc import Sequence
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from isda.errors import ConfigError
from isda.modeling.backbone.fpn import with_fcos_fpn, with_fpn

__all__ = [
    "SwinBackbone",
    "build_swin_backbone",
    "build_swin_fpn_backbone",
    "build_fcos_swin_fpn_backbone",
]


class SwinBackbone(SwinTransformer):
    """Detectron2's Swin Transformer under the names of a ResNet.

    Outputs ``res2`` .. ``res5`` of strides 4 to 32 with ``embed_dim`` times 1, 2, 4, 8 channels,
    each behind its own LayerNorm.

    Args:
        embed_dim, depths, num_heads, window_size: as in the paper's table 7.
        drop_path_rate: probability of dropping the last block's branches, growing linearly
            from 0 at the first.
        freeze_at: 0 freezes nothing, 1 the patch embedding, n >= 2 also the first n - 1 stages.
        gradient_checkpointing: recompute blocks in the backward pass.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int,
        drop_path_rate: float,
        freeze_at: int,
        gradient_checkpointing: bool,
    ):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.meshgrid")  # Detectron2's call
            super().__init__(
                embed_dim=embed_dim,
                depths=tuple(depths),
                num_heads=tuple(num_heads),
                window_size=window_size,
                drop_path_rate=0.0,
                frozen_stages={0: -1, 1: 0}.get(freeze_at, freeze_at),  # in its own count
            )
        self._set_drop_path(drop_path_rate)
        if gradient_checkpointing:
            self._recompute_blocks()
        self._out_features = [f"res{i + 2}" for i in self.out_indices]
        self._out_feature_channels = dict(zip(self._out_features, self.num_features))
        self._out_feature_strides = {name: 4 * 2**i for i, name in enumerate(self._out_features)}

    def _set_drop_path(self, rate: float) -> None:
        # Detectron2 takes its DropPath from timm; torchvision has the same under another name.
        blocks = self._blocks()
        for block, probability in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist()):
            block.drop_path = StochasticDepth(probability, mode="row")

    def _recompute_blocks(self) -> None:
        # Detectron2's own checkpointing is the reentrant kind: behind a frozen stage, where the
        # input needs no gradient, it silently leaves every parameter without one.
        for block in self._blocks():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    def _blocks(self) -> list[nn.Module]:
        return [block for layer in self.layers for block in layer.blocks]

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, *self.layers[: max(self.frozen_stages - 1, 0)]]
        for parameter in (p for module in frozen for p in module.parameters()):
            parameter.requires_grad = False

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._out_features, super().forward(x).values()))


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinBackbone:
    """Build a Swin Transformer from ``cfg.MODEL.SWIN``: ``res2`` .. ``res5``."""
    swin = cfg.MODEL.SWIN
    if not len(swin.DEPTHS) == len(swin.NUM_HEADS) == 4:
        raise ConfigError(
            "MODEL.SWIN.DEPTHS and MODEL.SWIN.NUM_HEADS need one number for each of the 4 "
            f"stages, got {swin.DEPTHS} and {swin.NUM_HEADS}"
        )
    return SwinBackbone(
        embed_dim=swin.EMBED_DIM,
        depths=swin.DEPTHS,
        num_heads=swin.NUM_HEADS,
        window_size=swin.WINDOW_SIZE,
        drop_path_rate=swin.DROP_PATH_RATE,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        gradient_checkpointing=swin.GRADIENT_CHECKPOINTING,
    )


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec):
    """The same below Detectron2's FPN: ``p2`` .. ``p6``."""
    return with_fpn(cfg, build_swin_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_fcos_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec):
    """The same below FCOS's pyramid: ``p3`` .. ``p7`` of ``res3`` .. ``res5``."""
    return with_fcos_fpn(cfg, build_swin_backbone(cfg, input_shape))
