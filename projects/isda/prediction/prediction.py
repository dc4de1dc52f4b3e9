"""Prediction of one image: Detectron2's ``Instances`` that can say, draw and save it."""

import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
from detectron2.structures import Instances

from isda.data.images import rgb_image
from isda.engine.coco_results import coco_results
from isda.prediction.errors import needed
from isda.prediction.results import write_result
from isda.prediction.results.label_image import label_image
from isda.prediction.results.outlines import masks_of
from isda.prediction.results.table import rows_of
from isda.visualization import class_labels, draw_predictions

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
        image: np.ndarray | None,
        class_names: Sequence[str] | None = None,
        class_ids: Sequence[int] | None = None,
        pixels: np.ndarray | None = None,
    ):
        """
        Args:
            image: ``(H, W, 3)`` uint8 RGB, which they were found in; kept, not copied. None: it
                was read window by window, as it is too large to be kept.
            class_names, class_ids: of the model's classes, and their ids in COCO's JSON.
            pixels: ``(H, W)`` or ``(H, W, 3)``, the image in the numbers that it came in; None:
                ``image``.
        """
        super().__init__(instances.image_size, **instances.get_fields())
        self._image, self._class_names, self._class_ids = image, class_names, class_ids
        self._pixels = image if pixels is None else pixels

    @property
    def image(self) -> np.ndarray | None:
        """``(H, W, 3)`` uint8 RGB; None of a file that was read window by window."""
        return self._image

    @property
    def pixels(self) -> np.ndarray:
        """``(H, W)`` or, of colours, ``(H, W, 3)``: the image in the numbers that it came in."""
        return self._pixels

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
        if image is None:
            raise ValueError(
                "the image was read window by window, as it is too large to be drawn as a whole: "
                "save the instances as .json, or give draw() the image"
            )
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
        results = coco_results(self, image_id)
        for result in results:
            number = result["category_id"]
            result["category_id"] = number + 1 if not self._class_ids else self._class_ids[number]
        return results

    def label_image(self) -> np.ndarray:
        """``(H, W)`` uint16, or uint32 for more than 65,535: 0 is background, i + 1 instance i.

        Where masks overlap, the one with the higher score wins.
        """
        return label_image(self)

    def measurements(self) -> list[dict]:
        """Area, centroid, axes, mean intensity and more of each instance, in pixels.

        Intensities are those of the file, not of its 8 bits. ``pandas.DataFrame`` takes the list;
        :func:`isda.prediction.results.table.rows_of` says what each name means.

        Raises:
            MissingPackageError: scikit-image is not installed.
        """
        return rows_of(self)

    def to_supervision(self):
        """``supervision.Detections`` with masks, scores, classes and their names.

        Raises:
            MissingPackageError: supervision is not installed.
        """
        supervision = needed("supervision", "Prediction.to_supervision")
        masks = np.stack([*masks_of(self)]) if len(self) and self.has("pred_masks") else None
        return supervision.Detections(
            xyxy=self.pred_boxes.tensor.cpu().numpy().reshape(-1, 4),
            mask=masks,
            confidence=self.scores.cpu().numpy(),
            class_id=self.pred_classes.cpu().numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write what the suffix says.

        ``.png``, ``.jpg`` and other formats of images: the drawing. ``.tif`` or ``.masks.png``: a
        label image. ``.zip``: ImageJ's ROIs. ``.geojson``: outlines, as QuPath reads them.
        ``.txt``: outlines for YOLO. ``.csv``: measurements. ``.json``: what :meth:`to_coco` gives.

        Raises:
            OSError: the file cannot be written, or its suffix is of no known format.
            MissingPackageError: a package is missing that writes it.
        """
        write_result(self, path)

    def to(self, *args, **kwargs) -> "Prediction":
        """As of ``Instances``; what it is about comes along."""
        return self._with(super().to(*args, **kwargs))

    def __getitem__(self, item) -> "Prediction":
        return self._with(super().__getitem__(item))

    def _with(self, instances: Instances) -> "Prediction":
        about = self._image, self._class_names, self._class_ids, self._pixels
        return Prediction(instances, *about)
