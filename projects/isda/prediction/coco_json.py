"""Instances of many images as one file in COCO's format."""

from pycocotools import mask as coco_mask

from isda import strict_json
from isda.files import write_text
from isda.prediction.prediction import Prediction
from isda.prediction.predictor import Predictor

__all__ = ["CocoResults"]


class CocoResults:
    """Instances of many images, written as one file in COCO's format when the block ends.

    The file has ``images`` (with their names), ``categories`` (with ids as in the data set that
    the model was trained on) and ``annotations``: run-length encoded masks, boxes, and ``score``.
    """

    def __init__(self, path: str | None, predictor: Predictor):
        """
        Args:
            path: of the file; None: nothing is kept.
            predictor: names the classes, which are numbered if it does not.
        """
        self.path = path
        self.classes = predictor.classes
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def __enter__(self) -> "CocoResults":
        return self

    def __exit__(self, *_) -> None:  # also when somebody interrupts: what was found is not lost
        if self.path:
            write_text(self.path, strict_json.dumps(self.content()))

    def add(self, file_name: str, prediction: Prediction, **fields) -> None:
        """Takes the instances of one image; ``fields`` stand beside its name."""
        if not self.path:
            return
        height, width = prediction.image_size
        image = {"id": len(self.images) + 1, "file_name": file_name}
        self.images.append(image | {"height": height, "width": width} | fields)
        for found in prediction.to_coco(image["id"]):
            width, height = found["bbox"][2:]
            area = (
                coco_mask.area(found["segmentation"]) if "segmentation" in found else width * height
            )
            number = len(self.annotations) + 1
            self.annotations.append(found | {"id": number, "area": float(area), "iscrowd": 0})

    def content(self) -> dict:
        """What the file holds."""
        names, ids = self.classes
        if names is None:  # numbered, as far as they were seen
            ids = sorted({annotation["category_id"] for annotation in self.annotations})
            names = [f"class {number - 1}" for number in ids]
        ids = ids or range(1, len(names) + 1)
        return {
            "info": {"description": "instances predicted by isda predict"},
            "images": self.images,
            "categories": [{"id": number, "name": name} for number, name in zip(ids, names)],
            "annotations": self.annotations,
        }
