"""Base classes: preprocess, predict, then losses or postprocessing."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from isda.meta_arch.declarations import DECLARED
from isda.meta_arch.inputs import normalised_images
from isda.requirements import Requirement

__all__ = ["InstanceSegmentor", "SetPredictor"]


class InstanceSegmentor(nn.Module):
    """The frame of all methods: an image becomes losses or instances.

    Subclasses say what is predicted (``predict``), which losses that gives (``losses``), and how
    instances are read out of a prediction (``select``). What tools need to know of a method they
    declare as class attributes (:mod:`isda.meta_arch.declarations`).
    """

    config_node: ClassVar[str]
    requirements: ClassVar[Mapping[str, Requirement]]
    exporter: ClassVar[str]
    compilation: ClassVar[str]
    tracer: ClassVar[str]

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any):
        """
        Args:
            abstract: no method yet, but what several have in common.

        Raises:
            TypeError: the method leaves out a declaration.
        """
        super().__init_subclass__(**kwargs)
        missing = [name for name in DECLARED if not hasattr(cls, name)]
        if missing and not abstract:
            raise TypeError(f"{cls.__name__} does not declare {', '.join(missing)}")

    @staticmethod
    def conflict(node: CfgNode) -> str:
        """What is wrong with the values of the method's keys together; "" if nothing is."""
        return ""

    def __init__(
        self,
        backbone: Backbone,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        max_instances: int,
        mask_threshold: float,
    ):
        """
        Args:
            pixel_mean, pixel_std: per channel, on the image's own 0–255 scale and channel order.
            max_instances: the largest number of instances per image at inference.
            mask_threshold: the probability that separates the pixels of a mask from the others.
        """
        super().__init__()
        self.backbone = backbone
        self.max_instances = max_instances
        self.mask_threshold = mask_threshold
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: Detectron2's dicts with ``image`` (C×H×W, 0–255) and, for training,
                ``instances`` with ``gt_classes``, ``gt_masks`` and, if the method needs them,
                ``gt_boxes`` tight around the masks; for inference ``height`` and ``width`` give
                the output size (default: the image's).

        Returns:
            Training: weighted losses by name. Inference: ``{"instances": Instances}`` per image.
        """
        images = self.preprocess(batched_inputs)
        if self.training:
            return self.losses(images, batched_inputs)
        prediction = self.final_prediction(images)
        with torch.autocast(self.device.type, enabled=False):
            return self.postprocess(prediction, batched_inputs, images)

    def preprocess(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images and pad them to one size, a multiple of 32."""
        return normalised_images(batched_inputs, self.pixel_mean, self.pixel_std, self.backbone)

    def losses(self, images: ImageList, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """Weighted losses by name."""
        raise NotImplementedError

    def predict(self, images: ImageList) -> Any:
        """What the model says of the images, all of it that depends on weights."""
        raise NotImplementedError

    def final_prediction(self, images: ImageList) -> Any:
        """The prediction that instances are read from."""
        return self.predict(images)

    def select(
        self,
        prediction,
        index: int,
        *,
        image_size: tuple[int, int],
        padded_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> Instances:
        """The instances of an image of the batch, at its output size; all sizes (H, W)."""
        raise NotImplementedError

    def postprocess(self, prediction, batched_inputs: list[dict], images: ImageList) -> list[dict]:
        """``Instances`` of each image at its output size."""
        results = []
        for index, (x, size) in enumerate(zip(batched_inputs, images.image_sizes, strict=True)):
            instances = self.select(
                prediction,
                index,
                image_size=tuple(size),
                padded_size=tuple(images.tensor.shape[-2:]),
                output_size=(x.get("height", size[0]), x.get("width", size[1])),
            )
            results.append({"instances": instances})
        return results


class SetPredictor(InstanceSegmentor, abstract=True):
    """A model whose queries predict a set of instances, several times over: no proposals, no NMS.

    Subclasses say what is predicted (``predict``), what should have been (``targets``), which
    losses that gives (``criterion``), and how instances are read out of a prediction (``select``).
    ``max_instances`` counts the (query, class) pairs that are considered.
    """

    criterion: nn.Module

    def losses(self, images: ImageList, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """Weighted losses by name."""
        targets = self.targets(batched_inputs)
        return self.compare(self.outputs(images, targets), targets)

    def outputs(self, images: ImageList, targets: list) -> Any:
        """What training compares with the targets; by default, the predictions of all layers."""
        return self.predict(images)

    def compare(self, outputs: Any, targets: list) -> dict[str, Tensor]:
        """The losses of what :meth:`outputs` gave."""
        return self.criterion(outputs, targets)

    def predict(self, images: ImageList) -> list:
        """One prediction per decoder layer or step; at inference of the last only."""
        raise NotImplementedError

    def final_prediction(self, images: ImageList) -> Any:
        return self.predict(images)[-1]

    def targets(self, batched_inputs: list[dict]) -> list:
        """What should have been predicted, for each image."""
        raise NotImplementedError
