"""Meta-architectures: each wires its parts and registers itself with Detectron2."""

from isda.meta_arch.blendmask import BlendMask
from isda.meta_arch.condinst import CondInst
from isda.meta_arch.declarations import Unavailable
from isda.meta_arch.isda import ISDA
from isda.meta_arch.istr import ISTR
from isda.meta_arch.solo import SOLO
from isda.meta_arch.solov2 import SOLOv2

__all__ = ["ISDA", "ISTR", "METHODS", "SOLO", "BlendMask", "CondInst", "SOLOv2", "methods_with"]

# What the tools go through, each with its declarations.
METHODS = (ISDA, ISTR, SOLO, SOLOv2, CondInst, BlendMask)


def methods_with(what: str) -> str:
    """Names of the methods that have what they declare by this name, as in "A, B and C"."""
    names = [m.__name__ for m in METHODS if not isinstance(getattr(m, what), Unavailable)]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
