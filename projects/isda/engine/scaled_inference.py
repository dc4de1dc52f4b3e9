"""A model applied to images in their own size: scaled, in batches, in the precision of TEST.AMP."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeTransform
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.structures import Instances
from torch import nn

from isda.data.augmentation import ResizeShortestEdge
from isda.engine.inference import inference_autocast
from isda.modeling.postprocessing import boxed_instances

__all__ = ["ScaledInference"]

Resize = Callable[[np.ndarray], np.ndarray]


class ScaledInference:
    """From images as they are to ``Instances`` of their size, whatever the model sees of them.

    Attributes:
        resize: Detectron2's, to ``INPUT.MIN_SIZE_TEST`` and ``INPUT.MAX_SIZE_TEST``.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, batch_size: int = 1):
        """
        Args:
            model: in evaluation mode.
            batch_size: images or windows that the model may get at a time, if of one size.
        """
        self.model, self.batch_size = model, batch_size
        self._autocast = functools.partial(inference_autocast, cfg, model)
        shortest = cfg.INPUT.MIN_SIZE_TEST
        self.resize = ResizeShortestEdge([shortest, shortest], cfg.INPUT.MAX_SIZE_TEST)

    def whole(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """Of images ``(H, W, C)`` with the channels of ``INPUT.FORMAT``, each as a whole.

        Returns:
            On the CPU, with masks of the images' sizes. They are computed all at once, in groups
            of one size after scaling.
        """
        return self._predict(images, lambda x: self.resize.get_transform(x).apply_image(x))

    def scaled(self, images: Iterable[np.ndarray], size: tuple[int, int]) -> Iterator[Instances]:
        """As :meth:`whole`, ``batch_size`` after each other, all resized to (height, width)."""
        resize = functools.partial(_resized, size=size)
        batch = []
        for image in images:
            batch.append(image)
            if len(batch) == self.batch_size:
                yield from self._predict(batch, resize)
                batch = []
        if batch:
            yield from self._predict(batch, resize)

    @torch.no_grad()
    def _predict(self, images: Sequence[np.ndarray], resize: Resize) -> list[Instances]:
        inputs = [_input(image, resize) for image in images]
        outputs: list[Any] = [None] * len(inputs)
        with self._autocast():
            for indices in _of_one_size(inputs):
                found = self._outputs([inputs[index] for index in indices])
                for index, instances in zip(indices, found, strict=True):
                    outputs[index] = instances
        return [instances.to("cpu") for instances in outputs]

    def _outputs(self, inputs: list[dict]) -> list[Instances]:
        if type(self.model) is not GeneralizedRCNN:
            return [output["instances"] for output in self.model(inputs)]
        # Detectron2 would paste all masks of a large image into one tensor.
        found = self.model.inference(inputs, do_postprocess=False)
        return [boxed_instances(i, (x["height"], x["width"])) for i, x in zip(found, inputs)]


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return ResizeTransform(*image.shape[:2], *size).apply_image(image)


def _input(image: np.ndarray, resize: Resize) -> dict:
    """Detectron2's dict of an ``(H, W, C)`` image."""
    pixels = np.ascontiguousarray(resize(image).transpose(2, 0, 1), np.float32)
    return {"image": torch.as_tensor(pixels), "height": image.shape[0], "width": image.shape[1]}


def _of_one_size(inputs: Sequence[dict]) -> list[list[int]]:
    """Indices of the images that have one size as the model gets them, in the order of the list."""
    groups: dict[torch.Size, list[int]] = {}
    for index, x in enumerate(inputs):
        groups.setdefault(x["image"].shape, []).append(index)
    return list(groups.values())
