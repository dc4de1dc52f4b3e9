"""Interface of the package ``lvis``, which Detectron2 imports by this name.

It lets LVIS be read without that package, and evaluated by hotcoco. The last release of ``lvis``,
0.5.3 of 2020, calls ``np.float``, which no NumPy has since 1.24, and its requirements replace a
headless OpenCV.
"""

import json
import math
import sys
from collections import defaultdict

__all__ = ["LVIS", "LVISEval", "LVISResults", "provide_lvis"]

OFFICIAL_LIMIT = 300  # detections of an image


def provide_lvis() -> None:
    """Make this module what ``import lvis`` finds in this process."""
    sys.modules["lvis"] = sys.modules[__name__]


class LVIS:
    """Annotations of LVIS with their indices."""

    def __init__(self, annotation_path: str):
        with open(annotation_path, encoding="utf-8") as file:
            self.dataset = json.load(file)
        annotations = self.dataset.get("annotations", [])  # a test set has none
        self.anns = {annotation["id"]: annotation for annotation in annotations}
        self.imgs = {image["id"]: image for image in self.dataset["images"]}
        self.cats = {category["id"]: category for category in self.dataset["categories"]}
        self.img_ann_map = defaultdict(list)
        for annotation in annotations:
            self.img_ann_map[annotation["image_id"]].append(annotation)

    def get_ann_ids(self, img_ids: list[int] | None = None) -> list[int]:
        """Ids of the annotations, of all images or of some."""
        if img_ids is None:
            return list(self.anns)
        return [annotation["id"] for i in img_ids for annotation in self.img_ann_map[i]]

    def load_anns(self, ids: list[int]) -> list[dict]:
        return [self.anns[i] for i in ids]

    def load_imgs(self, ids: list[int]) -> list[dict]:
        return [self.imgs[i] for i in ids]


class LVISResults:
    """Predictions, of which each image keeps those of the highest scores."""

    def __init__(self, lvis_gt: LVIS, results: list[dict], max_dets: int = OFFICIAL_LIMIT):
        """
        Args:
            results: in COCO's format for results, at least one.
            max_dets: how many detections of an image count, over all classes.
        """
        from hotcoco import COCO
        from hotcoco import LVISResults as Results

        self.annotated = COCO(lvis_gt.dataset)
        self.found = Results(self.annotated, results, max_dets)


class LVISEval:
    """LVIS's federated evaluation: in each image only classes count that were looked for there."""

    def __init__(self, lvis_gt: LVIS, lvis_dt: LVISResults, iou_type: str = "segm"):
        from hotcoco import LVISEval as Evaluation

        self._evaluation = Evaluation(lvis_dt.annotated, lvis_dt.found, iou_type)

    def run(self) -> None:
        self._evaluation.run()

    def print_results(self) -> None:
        self._evaluation.print_results()

    def get_results(self) -> dict[str, float]:
        """Shares of 1 by name; NaN where nothing is annotated that it could be computed of."""
        found = self._evaluation.get_results()
        return {name: math.nan if value < 0 else value for name, value in found.items()}
