"""The sources of foreign weights by the names that the command line knows."""

import re
from collections.abc import Iterable

from isda.conversion.deformable_detr import AUTHORS, HUGGING_FACE, MMDETECTION
from isda.conversion.fcos import AUTHORS_BLENDMASK, AUTHORS_CONDINST, MMDETECTION_CONDINST
from isda.conversion.isda import PUBLISHED_ISDA
from isda.conversion.istr import PUBLISHED_ISTR
from isda.conversion.resnet import HUGGING_FACE_RESNET, TIMM, TORCHVISION
from isda.conversion.solo import ADELAIDET_SOLOV2, DECOUPLED_SOLO, SOLO, SOLOV2
from isda.conversion.table import Source

__all__ = ["SOURCES", "detect"]

#: In the order in which a file is compared with them.
SOURCES: dict[str, Source] = {
    "isda": PUBLISHED_ISDA,  # before mmdetection's Deformable DETR, whose names it has too
    "istr": PUBLISHED_ISTR,
    "solo": SOLO,
    "decoupled-solo": DECOUPLED_SOLO,
    "solov2": SOLOV2,
    "adelaidet-solov2": ADELAIDET_SOLOV2,
    "condinst": AUTHORS_CONDINST,
    "blendmask": AUTHORS_BLENDMASK,
    "mmdet-condinst": MMDETECTION_CONDINST,
    "deformable-detr": AUTHORS,
    "hf-deformable-detr": HUGGING_FACE,
    "mmdet-deformable-detr": MMDETECTION,
    "timm": TIMM,
    "torchvision": TORCHVISION,
    "hf-resnet": HUGGING_FACE_RESNET,
}


def detect(names: Iterable[str]) -> str | None:
    """The source whose names these are, as a key of :data:`SOURCES`; None if it is none.

    Files of timm in which a ResNet has torchvision's layout have torchvision's names as well.
    """
    names = list(names)
    for key, source in SOURCES.items():
        mark = re.compile(source.mark)
        if any(mark.fullmatch(name) for name in names):
            return key
    return None
