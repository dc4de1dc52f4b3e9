"""Messages on the ceiling of a configuration, and on the keys that would raise it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from isda.data.analysis.ceiling import AnnotatedImage, Ceiling, MaskForm, mask_ceilings

__all__ = ["ENOUGH", "STRIDES", "Outlook", "look_ahead", "stride_settings"]

STRIDES = (4, 2, 1)  # of masks, to be tried in this order
ENOUGH = 75.0  # mask AP: below, the settings hold a model back more than most networks do
_GAIN = 1.0  # points of mask AP that are worth another setting


@dataclass(frozen=True)
class Outlook:
    """The ceiling of some settings, and those that would raise it."""

    ceiling: Ceiling
    remedies: dict[str, Ceiling]  # "KEY VALUE KEY VALUE": the ceiling with them

    @property
    def is_low(self) -> bool:
        """Whether training warns."""
        return self.ceiling.ap < ENOUGH

    def sentence(self, settings: str, images: str) -> str:
        """
        Args:
            settings, images: what the ceiling is of, in words.
        """
        now = self.ceiling
        sampled = (
            f" ({now.num_sampled:,} of {now.num_instances:,} instances looked at)"
            if now.num_sampled < now.num_instances
            else ""
        )
        remedies = "".join(f"; {keys}: {better.ap:.0f}" for keys, better in self.remedies.items())
        return (
            f"with {settings} a perfect ISDA could reach mask AP {now.ap:.0f} (AP50 "
            f"{now.ap50:.0f}, AP75 {now.ap75:.0f}) on {images}{remedies}{sampled}"
        )


def look_ahead(
    images: Sequence[AnnotatedImage], form: MaskForm, limit: int, enough: float = ENOUGH
) -> Outlook | None:
    """The ceiling and, where that is low, each setting that would raise it by a point or more.

    Tried are finer strides until one is enough, images of twice the size, and as many queries and
    detections as the fullest image has instances, each alone.

    Args:
        images, limit: as for :func:`mask_ceilings`.
        enough: mask AP from which on nothing else is tried.

    Returns:
        None where no instance can be used.
    """

    def of(form: MaskForm) -> Ceiling:
        return mask_ceilings(images, [form], limit)[0]

    if not mask_ceilings(images, [form], 1):
        return None
    now = best = of(form)
    remedies: dict[str, Ceiling] = {}
    for stride in STRIDES:
        if stride < form.stride and best.ap < enough:
            finer = of(replace(form, stride=stride))
            if finer.ap >= best.ap + _GAIN:
                remedies[_pairs(stride_settings(stride))] = best = finer
    if now.ap < enough:
        most = max(len(image.segmentations) for image in images)
        for keys, other in (_larger(form), _more_queries(form, most)):
            if other != form and (ceiling := of(other)).ap >= now.ap + _GAIN:
                remedies[keys] = ceiling
    return Outlook(now, remedies)


def _larger(form: MaskForm) -> tuple[str, MaskForm]:
    """Keys with values, and what they make of the settings."""
    larger = form.enlarged(2)
    sizes = {
        "INPUT.MIN_SIZE_TEST": larger.short_side,
        "INPUT.MAX_SIZE_TEST": larger.longest_side,
    }
    # Images that are not resized stay as they are.
    return _pairs(sizes), larger if form.short_side else form


def _more_queries(form: MaskForm, most: int) -> tuple[str, MaskForm]:
    """The same, for images of up to ``most`` instances."""
    number = -(-most // 10) * 10
    limits = {
        "MODEL.ISDA.NUM_QUERIES": form.queries,
        "TEST.DETECTIONS_PER_IMAGE": form.detections,
    }
    raised = {key: number if limit < most else limit for key, limit in limits.items()}
    queries, detections = raised.values()
    keys = _pairs({key: value for key, value in raised.items() if value != limits[key]})
    return keys, replace(form, queries=queries, detections=detections)


def stride_settings(stride: int) -> dict[str, int]:
    """The keys of a mask stride; of one below 4, masks are enlarged, which costs little."""
    settings = {"MODEL.ISDA.MASK_STRIDE": stride}
    return settings | ({"MODEL.ISDA.MASK_FEATURE_STRIDE": 4} if stride < 4 else {})


def _pairs(settings: dict[str, int]) -> str:
    return " ".join(f"{key} {value}" for key, value in settings.items())
