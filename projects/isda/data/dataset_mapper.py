"""Dataset mapper: a dataset dict to what a model trains on."""

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from isda.data.augmentation import build_augmentations
from isda.data.errors import DatasetError
from isda.data.images import DEFAULT_OPTIONS, ImageOptions, check_image_size, read_image
from isda.data.masks import BitmapStack, PolygonStack, UnusableSegmentationError, parse_segmentation
from isda.errors import ConfigError

__all__ = ["InstanceDatasetMapper", "build_mapper"]

logger = logging.getLogger(__name__)

_VANISHED = "without a pixel after augmentation"


def build_mapper(cfg: CfgNode, is_train: bool = True) -> "InstanceDatasetMapper":
    """The mapper that ``INPUT.DATASET_MAPPER_NAME`` asks for: ``isda``, ``isda_lsj``, ``fixed``.

    Raises:
        ConfigError: the name, or a value that its augmentation needs, is not valid.
    """
    return InstanceDatasetMapper(cfg, is_train)


class InstanceDatasetMapper:
    """Reads the image of a dataset dict and takes it and its instances through augmentations.

    Works on every data set in Detectron2's format (COCO, LVIS, Cityscapes, one's own). Polygons,
    RLEs and bitmaps may be mixed. Crowds are left out, and so is, counted and now and then
    logged, what cannot be trained on: malformed or of zero area, outside the image, or without a
    pixel after the augmentation.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str = "RGB",
        mask_format: str = "bitmask",
        image_options: ImageOptions = DEFAULT_OPTIONS,
    ):
        """
        Args:
            is_train: whether the result holds ``instances``; else only the image is prepared.
            augmentations: applied in this order.
            image_format: as in :func:`isda.data.images.read_image`.
            mask_format: ``"bitmask"`` gives BitMasks, ``"polygon"`` PolygonMasks, which data with
                RLEs or bitmaps cannot have.
            image_options: how the files are read.
        """
        if mask_format not in ("bitmask", "polygon"):
            raise ConfigError(f"INPUT.MASK_FORMAT must be bitmask or polygon, got {mask_format!r}")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.mask_format = mask_format
        self.image_options = image_options
        self.left_out: Counter[str] = Counter()  # annotations by reason, in this process
        mode = "training" if is_train else "inference"
        logger.info("augmentations used in %s: %s", mode, augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "mask_format": cfg.INPUT.MASK_FORMAT,
            "image_options": ImageOptions.from_config(cfg),
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Args:
            dataset_dict: of one image; stays as it is.

        Returns:
            A copy of the dict with ``image``, a ``(C, H, W)`` tensor in 0–255, and without
            ``annotations``. For training also with ``instances``: ``gt_boxes`` (tight around the
            masks), ``gt_classes`` and ``gt_masks``, in the order of the annotations.

        Raises:
            DatasetError: the image cannot be read or is of another size than its annotations, or
                the dict has no annotations to train on.
        """
        result = {k: v for k, v in dataset_dict.items() if k != "annotations"}
        image = read_image(result["file_name"], self.image_format, self.image_options)
        check_image_size(result, image)
        input_size = image.shape[:2]
        image, transforms = self._augment(image, result["file_name"])
        result["image"] = torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
        if self.is_train:
            if "annotations" not in dataset_dict:
                raise DatasetError(
                    f"{result['file_name']}: the dataset dict has no 'annotations': train on a "
                    "data set with instance annotations ([] for an image without instances)"
                )
            result["instances"] = self._instances(
                dataset_dict, transforms, input_size, image.shape[:2]
            )
        return result

    def _augment(self, image: np.ndarray, file_name: str) -> tuple[np.ndarray, T.TransformList]:
        augmented = T.AugInput(image)
        try:
            transforms = self.augmentations(augmented)
        except ValueError as error:
            raise DatasetError(
                f"{file_name}: an image of {image.shape[1]}x{image.shape[0]} pixels cannot be "
                f"augmented ({error}): leave it out of the annotations or change the sizes in INPUT"
            ) from error
        return augmented.image, transforms

    def _instances(
        self,
        dataset_dict: dict,
        transforms: T.TransformList,
        input_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> Instances:
        file_name = dataset_dict["file_name"]
        annotations = [a for a in dataset_dict["annotations"] if not a.get("iscrowd", 0)]
        usable, reasons = _parse(annotations, input_size, file_name)
        of_polygons = [i for i, parsed in usable.items() if isinstance(parsed, list)]
        of_bitmaps = [i for i, parsed in usable.items() if not isinstance(parsed, list)]
        if of_bitmaps and self.mask_format == "polygon":
            raise DatasetError(
                f"{file_name}: INPUT.MASK_FORMAT is polygon, but an annotation has a bitmap or "
                "RLE: set INPUT.MASK_FORMAT bitmask"
            )
        polygons = PolygonStack([usable[i] for i in of_polygons], transforms, output_size)
        bitmaps = BitmapStack([usable[i] for i in of_bitmaps], transforms, input_size)
        boxes = np.concatenate([polygons.boxes, bitmaps.boxes])
        stacks = [(polygons, i) for i in range(len(of_polygons))]
        stacks += [(bitmaps, i) for i in range(len(of_bitmaps))]
        # In the order of the annotations, and only what still has a pixel.
        order = np.argsort(of_polygons + of_bitmaps, kind="stable").astype(int)
        kept = [i for i in order if boxes[i, 2] > boxes[i, 0]]
        reasons[_VANISHED] += len(order) - len(kept)
        self._count(reasons, file_name)

        categories = [annotations[(of_polygons + of_bitmaps)[i]]["category_id"] for i in kept]
        instances = Instances(tuple(output_size))
        instances.gt_boxes = Boxes(torch.as_tensor(boxes[kept], dtype=torch.float32))
        instances.gt_classes = torch.tensor(categories, dtype=torch.int64)
        if self.mask_format == "polygon":
            instances.gt_masks = _polygon_masks(polygons, kept)
        else:
            instances.gt_masks = _bit_masks([stacks[i] for i in kept], output_size)
        return instances

    def _count(self, reasons: Counter, file_name: str) -> None:
        """Add up what was left out; a line when a reason's sum passes a power of ten."""
        for reason, number in reasons.items():
            before = self.left_out[reason]
            self.left_out[reason] += number
            if _digits(self.left_out[reason]) > _digits(before):
                logger.info(
                    f"{self.left_out[reason]} annotations {reason} have been left out of training "
                    f"so far in this process, last of {file_name}"
                )


def _digits(number: int) -> int:
    return len(str(number)) if number else 0


def _parse(
    annotations: list[dict], image_size: tuple[int, int], file_name: str
) -> tuple[dict[int, list | np.ndarray], Counter]:
    """Usable segmentations by the annotation's index, and the reasons against the others."""
    usable, reasons = {}, Counter()
    for index, annotation in enumerate(annotations):
        if "category_id" not in annotation:
            raise DatasetError(f"{file_name}: an annotation is without category_id: add it")
        try:
            usable[index] = parse_segmentation(annotation.get("segmentation"), image_size)
        except UnusableSegmentationError as error:
            reasons[str(error)] += 1
        except ValueError as error:
            raise DatasetError(f"{file_name}: {error}") from error
    return usable, reasons


def _polygon_masks(polygons: PolygonStack, kept: Sequence[int]) -> PolygonMasks:
    return PolygonMasks([[p.reshape(-1) for p in polygons.polygons[i]] for i in kept])


def _bit_masks(
    stacks: list[tuple[PolygonStack | BitmapStack, int]], size: tuple[int, int]
) -> BitMasks:
    masks = np.zeros((len(stacks), *size), dtype=bool)
    for mask, (stack, index) in zip(masks, stacks, strict=True):
        stack.draw(index, mask)
    return BitMasks(torch.from_numpy(masks))
