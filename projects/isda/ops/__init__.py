"""Operators that need nothing of Detectron2 or of the models."""

from isda.ops.ms_deform_attn import ms_deform_attn
from isda.ops.selection import Backends, backend, backends

__all__ = ["Backends", "backend", "backends", "ms_deform_attn"]
