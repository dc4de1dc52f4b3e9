"""Settings that suit a data set."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from isda.data.analysis.ceiling import AnnotatedImage, MaskForm, mask_ceilings
from isda.data.analysis.examine import SplitAnalysis
from isda.data.analysis.outlook import ENOUGH, STRIDES, stride_settings
from isda.data.analysis.summary import summarise

__all__ = ["annotated_images", "form_of_settings", "recommended_settings"]

_SPARE = 1.5  # queries per instance of the fullest image
_FEWEST_QUERIES = 50
# Pixels along a side that a small instance should have: four cells of mask features at stride 4.
_SMALL = 16
_SHORT_SIDES = (256, 800)  # between which the shorter side of an image is taken as it is
_LONGEST = 1333
_LARGEST_LONGEST = 2688  # of what is very thin: it is scaled down
_LARGEST_SCALE = 2.0
_STEP = 32  # coarsest stride of a backbone
_LITTLE = 1.0  # points of mask AP that are not worth a finer stride
_INSTANCES = 500  # that the stride is chosen by, at most


def recommended_settings(splits: Sequence[SplitAnalysis]) -> dict[str, object]:
    """Config keys and values: queries, detections, sizes of images, stride of masks.

    The shorter side is that of the median image, within 256 to 800 pixels. Where a tenth of the
    instances would be smaller than 16 pixels, it is enlarged, up to twice the image or 1333 pixels
    along the longer side. The stride is the coarsest at which a perfect model could reach mask AP
    75 with these sizes, or at which a finer one gains less than a point.

    Args:
        splits: with at least one image among them.
    """
    summaries = [summarise(split) for split in splits]
    most = max(int(s.instances.max(initial=0)) for s in summaries)
    queries = max(_rounded_up(_SPARE * most, 10), _FEWEST_QUERIES)
    shorter = np.concatenate([np.minimum(s.heights, s.widths) for s in summaries])
    longer = np.concatenate([np.maximum(s.heights, s.widths) for s in summaries])
    areas = np.concatenate([s.areas for s in summaries])
    median = float(np.median(shorter))
    aspect = float(np.percentile(longer / shorter, 95))
    scale = float(np.clip(median, *_SHORT_SIDES)) / median
    if len(areas):
        small = math.sqrt(np.percentile(areas, 10))
        limit = max(min(_LARGEST_SCALE, _LONGEST / (aspect * median)), scale)
        scale = min(max(scale, _SMALL / max(small, 1.0)), limit)
    short = _rounded_up(scale * median, _STEP)
    train = tuple(_rounded_up(share * short, _STEP) for share in (0.75, 0.875, 1.0))
    longest = max(min(_rounded_up(aspect * short, _STEP), _LARGEST_LONGEST), short)
    settings = {
        "MODEL.ISDA.NUM_QUERIES": queries,
        "TEST.DETECTIONS_PER_IMAGE": queries,
        "INPUT.MIN_SIZE_TRAIN": tuple(dict.fromkeys(train)),
        "INPUT.MAX_SIZE_TRAIN": longest,
        "INPUT.MIN_SIZE_TEST": short,
        "INPUT.MAX_SIZE_TEST": longest,
    }
    images = [image for split in splits for image in annotated_images(split)]
    return settings | stride_settings(_stride(images, settings))


def annotated_images(split: SplitAnalysis) -> list[AnnotatedImage]:
    """The true masks of a split."""
    return [
        AnnotatedImage(
            image.size,
            [annotation["segmentation"] for annotation in image.annotations],
            [annotation["category_id"] for annotation in image.annotations],
        )
        for image in split.images
    ]


def form_of_settings(settings: Mapping[str, object], stride: int | None = None) -> MaskForm:
    """What recommended settings decide of masks; the ``stride``, where they do not yet."""
    return MaskForm(
        settings["INPUT.MIN_SIZE_TEST"],
        settings["INPUT.MAX_SIZE_TEST"],
        stride or settings["MODEL.ISDA.MASK_STRIDE"],
        settings["MODEL.ISDA.NUM_QUERIES"],
        settings["TEST.DETECTIONS_PER_IMAGE"],
    )


def _stride(images: Sequence[AnnotatedImage], settings: Mapping[str, object]) -> int:
    """The coarsest that is enough; where none is, the last that gained something."""
    chosen, best = STRIDES[0], 0.0
    for stride in STRIDES:
        form = form_of_settings(settings, stride)
        for ceiling in mask_ceilings(images, [form], _INSTANCES):
            if ceiling.ap >= best + _LITTLE:
                chosen, best = stride, ceiling.ap
        if best >= ENOUGH:
            break
    return chosen


def _rounded_up(value: float, step: int) -> int:
    return max(math.ceil(value / step - 1e-9), 1) * step
