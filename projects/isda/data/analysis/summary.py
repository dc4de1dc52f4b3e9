"""The numbers of a split: what COCO's tables state, and how crowded its images are."""

from dataclasses import dataclass

import numpy as np

from isda.data.analysis.examine import SplitAnalysis
from isda.data.analysis.geometry import NMS_THRESHOLDS

__all__ = ["AREA_BOUNDS", "Summary", "summarise"]

# COCO's small, medium and large, pixels.
AREA_BOUNDS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}


@dataclass
class Summary:
    """Of all images of a split."""

    num_images: int
    num_empty: int
    num_crowds: int
    instances: np.ndarray  # (images,) per image
    heights: np.ndarray  # (images,)
    widths: np.ndarray  # (images,)
    areas: np.ndarray  # (instances,) pixels
    by_area: dict[str, int]  # COCO's small, medium, large: instances
    by_class: dict[str, int]  # instances
    num_touching: int
    num_overlapping: int
    box_iou: np.ndarray  # of instances whose boxes meet others, with the box most alike
    mask_iou: np.ndarray  # of the same instances, with the mask most alike
    deleted: dict[float, int]  # NMS threshold: instances that it would delete

    @property
    def mean_box_iou(self) -> float:
        """0 where no boxes meet, as is :attr:`mean_mask_iou`."""
        return float(self.box_iou.mean()) if len(self.box_iou) else 0.0

    @property
    def mean_mask_iou(self) -> float:
        """Of the instances whose boxes meet others."""
        return float(self.mask_iou.mean()) if len(self.mask_iou) else 0.0


def summarise(split: SplitAnalysis) -> Summary:
    """Adds up the images of a split."""
    parts = [image.geometry for image in split.images]
    areas = np.concatenate([np.zeros(0, np.int64), *(part.areas for part in parts)])
    box_iou = np.concatenate([np.zeros(0), *(part.box_iou for part in parts)])
    mask_iou = np.concatenate([np.zeros(0), *(part.mask_iou for part in parts)])
    meeting = box_iou > 0
    counts = split.class_counts()
    return Summary(
        num_images=len(split.images),
        num_empty=sum(not image.annotations for image in split.images),
        num_crowds=sum(image.num_crowds for image in split.images),
        instances=np.array([len(image.annotations) for image in split.images], dtype=np.int64),
        heights=np.array([image.size[0] for image in split.images], dtype=np.int64),
        widths=np.array([image.size[1] for image in split.images], dtype=np.int64),
        areas=areas,
        by_area={
            name: int(((areas >= low) & (areas < high)).sum())
            for name, (low, high) in AREA_BOUNDS.items()
        },
        by_class={str(c["name"]): counts[c["id"]] for c in split.categories},
        num_touching=sum(int(part.touching.sum()) for part in parts),
        num_overlapping=sum(int(part.overlapping.sum()) for part in parts),
        box_iou=box_iou[meeting],
        mask_iou=mask_iou[meeting],
        deleted={t: sum(part.deleted[t] for part in parts) for t in NMS_THRESHOLDS},
    )
