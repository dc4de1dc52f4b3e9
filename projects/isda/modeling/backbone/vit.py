"""Plain Vision Transformer with a simple feature pyramid (ViTDet, arXiv 2203.16527)."""

import importlib.util
import warnings
from functools import partial

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid, ViT
from torch import nn

from isda.errors import ConfigError

__all__ = ["VitBackbone", "build_vit_backbone"]


class VitBackbone(SimpleFeaturePyramid):
    """Detectron2's pyramid with the padding constraints it means: a square, in steps of 32."""

    @property
    def padding_constraints(self) -> dict[str, int]:
        # Detectron2 misspells size_divisibility here, so that nobody reads it.
        return {"size_divisibility": self._size_divisibility, "square_size": self._square_pad}


@BACKBONE_REGISTRY.register()
def build_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> VitBackbone:
    """Build ViT and pyramid from ``cfg.MODEL.VIT``: ``p2`` .. ``p6``, MODEL.FPN.OUT_CHANNELS each.

    Raises:
        ConfigError: images could exceed the square of MODEL.VIT.IMG_SIZE, or FREEZE_AT is not 0.
        ImportError: timm is missing, of which Detectron2's ViT takes a part.
    """
    vit = cfg.MODEL.VIT
    _check(cfg)
    window_blocks = [i for i in range(vit.DEPTH) if i not in vit.GLOBAL_BLOCKS]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Importing from timm")  # Detectron2's import
        net = ViT(
            img_size=vit.IMG_SIZE,
            embed_dim=vit.EMBED_DIM,
            depth=vit.DEPTH,
            num_heads=vit.NUM_HEADS,
            drop_path_rate=vit.DROP_PATH_RATE,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=vit.WINDOW_SIZE,
            window_block_indexes=window_blocks,
        )
    return VitBackbone(
        net=net,
        in_feature="last_feat",
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        norm="LN",
        square_pad=vit.IMG_SIZE,
    )


def _check(cfg: CfgNode) -> None:
    if importlib.util.find_spec("timm") is None:
        raise ImportError("Detectron2's ViT needs timm: pip install timm")
    if cfg.MODEL.BACKBONE.FREEZE_AT != 0:
        raise ConfigError(
            f"MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}, but ViT has no stages "
            "to freeze: set it to 0"
        )
    jitter = cfg.INPUT.DATASET_MAPPER_NAME == "isda_lsj"
    for key in ("MAX_SIZE_TEST", "IMAGE_SIZE" if jitter else "MAX_SIZE_TRAIN"):
        if cfg.INPUT[key] > cfg.MODEL.VIT.IMG_SIZE:
            raise ConfigError(
                f"INPUT.{key} is {cfg.INPUT[key]}, but MODEL.VIT.IMG_SIZE pads images to squares "
                f"of {cfg.MODEL.VIT.IMG_SIZE}: lower the one or raise the other"
            )
