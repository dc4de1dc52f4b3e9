"""Meta-architectures: each wires its parts and registers itself with Detectron2."""

from isda.meta_arch.isda import ISDA
from isda.meta_arch.istr import ISTR

__all__ = ["ISDA", "ISTR"]
