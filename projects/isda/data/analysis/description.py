"""A split of a data set in lines of text."""

from collections.abc import Iterable

from isda.data.analysis.examine import SplitAnalysis
from isda.data.analysis.summary import Summary
from isda.wording import listed

__all__ = ["describe"]

_LISTED = 20  # classes


def describe(split: SplitAnalysis, summary: Summary) -> Iterable[str]:
    """Lines of text on one split."""
    yield f"\n{split.name}: {split.json_file}, images in {split.image_root}"
    number, total = summary.num_images, len(summary.areas)
    yield f"  {number:,} images, {summary.num_empty:,} of them without instances"
    if number:
        yield f"  sizes (width x height): {_sizes(summary)}"
    crowds = f", {summary.num_crowds:,} crowds beside them" if summary.num_crowds else ""
    yield f"  {total:,} instances{crowds}"
    if not total:
        return
    median, most = sorted(summary.instances)[number // 2], summary.instances.max()
    yield f"  instances per image: median {median}, most {most}"
    areas = ", ".join(f"{count:,} {name}" for name, count in summary.by_area.items())
    yield f"  areas as COCO bounds them (32² and 96² pixels): {areas}"
    yield f"  classes: {_classes(summary)}"
    yield (
        f"  {summary.num_touching / total:.1%} touch another instance, "
        f"{summary.num_overlapping / total:.1%} share pixels with one"
    )
    yield (
        f"  where boxes meet, the IoU with the nearest is {summary.mean_box_iou:.2f} of boxes, "
        f"{summary.mean_mask_iou:.2f} of masks"
    )
    deleted = ", ".join(
        f"{count:,} ({count / total:.1%}) at {threshold:g}"
        for threshold, count in summary.deleted.items()
    )
    yield f"  true boxes that NMS would delete: {deleted}"


def _classes(summary: Summary) -> str:
    counts = sorted(summary.by_class.items(), key=lambda item: -item[1])
    return listed((f"{count:,} {name}" for name, count in counts), _LISTED)


def _sizes(summary: Summary) -> str:
    pairs = sorted(set(zip(summary.widths.tolist(), summary.heights.tolist())))
    if len(pairs) <= 3:
        return ", ".join(f"{width}x{height}" for width, height in pairs)
    return (
        f"{len(pairs)} different, widths {summary.widths.min()} to {summary.widths.max()}, "
        f"heights {summary.heights.min()} to {summary.heights.max()}"
    )
