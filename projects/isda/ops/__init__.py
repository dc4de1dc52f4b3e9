"""Operators that need nothing of Detectron2 or of the models."""

from isda.ops.ms_deform_attn import ms_deform_attn

__all__ = ["ms_deform_attn"]
