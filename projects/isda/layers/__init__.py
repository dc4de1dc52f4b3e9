"""Layers that any model can use."""

from isda.layers.ms_deform_attn import MSDeformAttention

__all__ = ["MSDeformAttention"]
