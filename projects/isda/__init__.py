"""End-to-end, NMS-free instance segmentation on Detectron2."""

from isda.config import add_isda_config

__all__ = ["add_isda_config"]
