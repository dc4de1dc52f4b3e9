"""What a user is told of the ceiling of a configuration, and which keys would raise it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from isda.data.survey.ceiling import AnnotatedImage, Ceiling, MaskForm, mask_ceilings

__all__ = ["ENOUGH", "Outlook", "look_ahead", "stride_settings"]

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
    images: Sequence[AnnotatedImage], form: MaskForm, limit: int, *, enough: float = 100.0
) -> Outlook | None:
    """The ceiling, and each setting that would raise it by a point or more.

    Tried are finer strides, images of twice the size, and as many queries and detections as the
    fullest image has instances, each alone.

    Args:
        images, limit: as for :func:`mask_ceilings`.
        enough: mask AP from which on nothing else is tried.

    Returns:
        None where no instance can be used.
    """
    now = mask_ceilings(images, [form], limit)
    if not now:
        return None
    remedies: dict[str, Ceiling] = {}
    if now[0].ap < enough:
        options = _alternatives(form, max(len(image.segmentations) for image in images))
        ceilings = mask_ceilings(images, [*options.values()], limit)
        remedies = dict(zip(options, ceilings, strict=True))
    return Outlook(now[0], _worthwhile(now[0], remedies))


def _alternatives(form: MaskForm, most: int) -> dict[str, MaskForm]:
    """Keys with values, and what they make of the settings."""
    options = {
        _pairs(stride_settings(stride)): replace(form, stride=stride)
        for stride in (4, 2, 1)
        if stride < form.stride
    }
    if form.short_side:
        larger = form.enlarged(2)
        sizes = {
            "INPUT.MIN_SIZE_TEST": larger.short_side,
            "INPUT.MAX_SIZE_TEST": larger.longest_side,
        }
        options[_pairs(sizes)] = larger
    number = -(-most // 10) * 10
    limits = {
        key: number
        for key, limit in (
            ("MODEL.ISDA.NUM_QUERIES", form.queries),
            ("TEST.DETECTIONS_PER_IMAGE", form.detections),
        )
        if limit < most
    }
    if limits:
        enough = {"queries": max(number, form.queries), "detections": max(number, form.detections)}
        options[_pairs(limits)] = replace(form, **enough)
    return options


def stride_settings(stride: int) -> dict[str, int]:
    """The keys of a mask stride; of one below 4, masks are enlarged, which costs little."""
    settings = {"MODEL.ISDA.MASK_STRIDE": stride}
    return settings | ({"MODEL.ISDA.MASK_FEATURE_STRIDE": 4} if stride < 4 else {})


def _pairs(settings: dict[str, int]) -> str:
    return " ".join(f"{key} {value}" for key, value in settings.items())


def _worthwhile(now: Ceiling, remedies: dict[str, Ceiling]) -> dict[str, Ceiling]:
    """Those that gain; of the strides, which come first, each over the one before."""
    chosen, best_stride = {}, now.ap
    for keys, ceiling in remedies.items():
        is_stride = "MASK_STRIDE" in keys
        if ceiling.ap >= (best_stride if is_stride else now.ap) + _GAIN:
            chosen[keys] = ceiling
            best_stride = ceiling.ap if is_stride else best_stride
    return chosen
