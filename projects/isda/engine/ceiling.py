"""A warning before hours of training: sizes and stride that would not let a model draw well."""

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode

from isda.data.analysis.ceiling import AnnotatedImage, MaskForm
from isda.data.analysis.outlook import look_ahead

__all__ = ["warn_of_ceiling"]

logger = logging.getLogger(__name__)

_IMAGES, _INSTANCES = 1000, 300  # at most; about a second of one core, three where it warns


def warn_of_ceiling(cfg: CfgNode, records: Sequence[dict]) -> None:
    """Logs what a perfect ISDA could reach where that is a mask AP below 75, and what would help.

    Computed from a sample of the annotations, at the sizes of the evaluation. Other models draw
    masks in boxes, and nothing is said of them. Draws no random number.

    Args:
        records: of the training images, as the mapper takes them; others cost another reading.
    """
    if cfg.MODEL.META_ARCHITECTURE != "ISDA":
        return
    images = [
        AnnotatedImage.of_dict(record)
        for record in records[:: max(len(records) // _IMAGES, 1)]
        if "height" in record and "width" in record
    ]
    outlook = look_ahead(images, MaskForm.of(cfg), _INSTANCES)
    if outlook is not None and outlook.is_low:
        settings = (
            f"MODEL.ISDA.MASK_STRIDE {cfg.MODEL.ISDA.MASK_STRIDE} and INPUT.MIN_SIZE_TEST "
            f"{cfg.INPUT.MIN_SIZE_TEST}"
        )
        logger.warning("%s", outlook.sentence(settings, "the training images"))
