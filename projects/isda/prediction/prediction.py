"""What a model found in one image: Detectron2's ``Instances`` that can say, draw and save it."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from isda import strict_json
from isda.data.images import rgb_image
from isda.files import write_text
from isda.structures import RLEMasks
from isda.visualization import class_labels, draw_predictions, write_image

__all__ = ["Prediction"]

_MAX_LABELS = 20  # more names and scores in a picture hide what they are about


class Prediction(Instances):
    """The instances of one image, best first.

    Fields, as Detectron2's: ``pred_masks`` ``(n, H, W)`` bool, ``pred_boxes`` (XYXY in pixels),
    ``scores``, ``pred_classes`` (numbers from 0). The masks of an image that is so large that they
    would take more than 256 MB are ``isda.structures.RLEMasks``, COCO's run-length code, in
    the tensor's place.

    ``prediction[2]`` and ``prediction[prediction.scores > 0.9]`` are predictions as well.
    """

    def __init__(
        self,
        instances: Instances,
        image: np.ndarray,
        class_names: Sequence[str] | None = None,
        class_ids: Sequence[int] | None = None,
    ):
        """
        Args:
            image: ``(H, W, 3)`` uint8 RGB, which they were found in; kept, not copied.
            class_names, class_ids: of the model's classes, and their ids in COCO's JSON.
        """
        super().__init__(instances.image_size, **instances.get_fields())
        self._image, self._class_names, self._class_ids = image, class_names, class_ids

    @property
    def image(self) -> np.ndarray:
        """``(H, W, 3)`` uint8 RGB."""
        return self._image

    @property
    def class_names(self) -> list[str] | None:
        """Of all classes of the model, found or not; None where nothing says them."""
        return None if self._class_names is None else list(self._class_names)

    @property
    def names(self) -> list[str]:
        """The class of each instance; ``"class 3"`` where the model's names are not known."""
        return class_labels(self.pred_classes.tolist(), self._class_names)

    def __str__(self) -> str:
        counts = [f"{number} {name}" for name, number in Counter(self.names).most_common()]
        height, width = self.image_size
        return f"Prediction({', '.join(counts) or 'nothing'} in {height}x{width} pixels)"

    __repr__ = __str__

    def draw(
        self, image: np.ndarray | None = None, *, with_labels: bool | None = None, scale: float = 1
    ) -> np.ndarray:
        """The image under its instances, each in a color of its own.

        Args:
            image: another background of the same size; all kinds that the predictor takes.
            with_labels: names and scores; None writes them for at most 20 instances.
            scale: of the picture relative to the image, for large ones below 1.

        Returns:
            ``(scale * H, scale * W, 3)`` uint8 RGB.

        Raises:
            ValueError: ``image`` has another size.
        """
        image = self._image if image is None else rgb_image(image)
        if image.shape[:2] != tuple(self.image_size):
            raise ValueError(
                f"the image to draw on has {image.shape[0]}x{image.shape[1]} pixels (height x "
                f"width), the predicted one has {self.image_size[0]}x{self.image_size[1]}"
            )
        labels = len(self) <= _MAX_LABELS if with_labels is None else with_labels
        return draw_predictions(image, self, self._class_names, with_labels=labels, scale=scale)

    def to_coco(self, image_id: int = 0) -> list[dict]:
        """The instances as COCO's results, ready for ``json.dump`` and pycocotools.

        Returns:
            Per instance ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``score``
            and ``segmentation`` (RLE). Category ids are those of the data that the model was
            trained on or, where it does not know them, the classes counted from 1.
        """
        boxes = Instances(self.image_size, **self.get_fields()).to("cpu")
        masks = boxes.pred_masks if boxes.has("pred_masks") else None
        if masks is not None:
            boxes.remove("pred_masks")
        results = instances_to_coco_json(boxes, image_id)
        if masks is not None:
            masks = masks if isinstance(masks, RLEMasks) else RLEMasks.encode(masks)
            for result, rle in zip(results, masks.rles, strict=True):
                result["segmentation"] = rle
        for result in results:
            number = result["category_id"]
            result["category_id"] = number + 1 if not self._class_ids else self._class_ids[number]
        return results

    def save(self, path: str | os.PathLike) -> None:
        """Write the drawing or, where the file ends with .json, what :meth:`to_coco` gives.

        Raises:
            OSError: the file cannot be written, or its suffix is of no known format.
        """
        if Path(path).suffix.lower() == ".json":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_text(path, strict_json.dumps(self.to_coco()))
        else:
            write_image(path, self.draw())

    def to(self, *args, **kwargs) -> "Prediction":
        """As of ``Instances``; what it is about comes along."""
        return self._with(super().to(*args, **kwargs))

    def __getitem__(self, item) -> "Prediction":
        return self._with(super().__getitem__(item))

    def _with(self, instances: Instances) -> "Prediction":
        return Prediction(instances, self._image, self._class_names, self._class_ids)
