"""Traces of a prediction: what a model computes for one image, kept by forward hooks.

The model runs as it always does; nothing of its forward pass is written here a second time.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from isda.modeling.deformable_transformer import DecodedQueries, DeformableTransformer
from isda.modeling.ellipse import NUM_CHANNELS
from isda.modeling.mask_head import InstanceHead
from isda.modeling.postprocessing import select_embedded_instances, select_instances
from isda.modeling.refinement import RefinementHead
from isda.prediction.predictor import Predictor
from isda.structures import EmbeddedPrediction, SetPrediction

__all__ = ["ISDATrace", "ISTRTrace", "LayerSamples", "trace_isda", "trace_istr"]


class _Call(NamedTuple):
    """One call of a module."""

    args: tuple
    output: Any


@dataclass
class LayerSamples:
    """Where the N queries of one image look in one decoder layer."""

    locations: Tensor  # (N, heads, levels, points, 2) as (x, y), fractions of the padded level
    weights: Tensor  # (N, heads, levels, points), a softmax over levels and points


@dataclass
class _Trace:
    instances: Instances  # as the predictor returned them, at the size of its image
    image_size: tuple[int, int]  # (height, width) that the model saw, without padding
    mask_threshold: float

    def _scale(self, like: Tensor) -> Tensor:
        """(x, y) factors from the image that the model saw to the predictor's image."""
        given, seen = self.instances.image_size[::-1], self.image_size[::-1]
        return like.new_tensor(given) / like.new_tensor(seen)

    def query_of(self, rank: int = 0) -> int:
        """The query that predicted the instance of this rank, 0 for the highest score.

        Raises:
            ValueError: there are not so many instances.
        """
        if rank >= len(self.instances):
            raise ValueError(
                f"the model found {len(self.instances)} instances in this image, so none has rank "
                f"{rank}: choose a query by its number"
            )
        return int(self.instances.queries[rank])

    def query_at(self, x: int, y: int) -> int:
        """The query of the instance at a pixel of the image, of several the highest score.

        Raises:
            ValueError: no mask covers the pixel.
        """
        height, width = self.instances.image_size
        if 0 <= x < width and 0 <= y < height:
            for rank, mask in enumerate(self.instances.pred_masks):
                if mask[y, x]:
                    return self.query_of(rank)
        raise ValueError(
            f"no mask covers the pixel {x},{y} of this image of {width}x{height}: choose another "
            "one, or a query by its number"
        )

    def check_query(self, query: int) -> None:
        """
        Raises:
            ValueError: the model has no query of this number.
        """
        if not 0 <= query < self.num_queries:
            raise ValueError(
                f"query {query} does not exist: the model's {self.num_queries} queries are "
                f"numbered from 0 to {self.num_queries - 1}"
            )

    @property
    def num_queries(self) -> int:
        return self.predictions[-1].class_logits.shape[1]


@dataclass
class ISDATrace(_Trace):
    """ISDA on one image: N queries, L decoder layers."""

    padded_size: tuple[int, int]  # (height, width) of the network's input
    strides: list[int]  # of the levels that are sampled, finest first
    # L of (N, 2) as (x, y) or (N, 4) as (centre x, centre y, width, height), in [0, 1] of the
    # image: around which each layer looks
    references: list[Tensor]
    samples: list[LayerSamples]  # L
    predictions: list[SetPrediction]  # L, each of a batch of one
    keep_largest_component: bool = False  # whether that is all that is kept of a mask
    ellipse: bool = False  # whether kernels draw one
    chosen: bool = False  # whether the first boxes come from the image

    def locations_in_pixels(self, layer: int) -> Tensor:
        """Sampling locations ``(N, heads, levels, points, 2)`` as (x, y) pixels of the image.

        They are where the cells lie that are read. On a padded image, whose extent a coarse level
        can only tell in whole cells, they need not centre on the query's reference point.
        """
        locations = self.samples[layer].locations
        return locations * locations.new_tensor(self.padded_size[::-1]) * self._scale(locations)

    @property
    def has_boxes(self) -> bool:
        """Whether queries look around boxes; in the paper's form they look around points."""
        return self.references[0].shape[1] == 4

    def reference_points_in_pixels(self, layer: int = 0) -> Tensor:
        """``(N, 2)`` as (x, y) pixels of the image; of boxes, their centres."""
        points = self.references[layer][:, :2]
        return points * points.new_tensor(self.instances.image_size[::-1])

    def reference_boxes_in_pixels(self, layer: int) -> Tensor:
        """Boxes ``(N, 4)`` that a layer looks around, XYXY pixels of the image."""
        return self._corners_in_pixels(self.references[layer])

    @property
    def num_steps(self) -> int:
        """Steps in which boxes are predicted: one per layer."""
        return len(self.predictions)

    def boxes_in_pixels(self, step: int) -> Tensor:
        """Boxes ``(N, 4)`` predicted by layer ``step``, XYXY pixels of the image; 0: the first."""
        boxes = self.predictions[step - 1].boxes[0] if step else self.references[0]
        return self._corners_in_pixels(boxes)

    def _corners_in_pixels(self, boxes: Tensor) -> Tensor:
        corners = box_convert(boxes, "cxcywh", "xyxy")
        return corners * corners.new_tensor(self.instances.image_size[::-1]).repeat(2)

    def padded_extent(self) -> tuple[float, float]:
        """(height, width) of the padded input, in pixels of the image."""
        width, height = self._scale(self.references[0]).tolist()
        return self.padded_size[0] * height, self.padded_size[1] * width

    def attention_per_level(self, layer: int) -> Tensor:
        """Share of each head's attention that a level gets: ``(N, heads, levels)``."""
        return self.samples[layer].weights.sum(dim=-1)

    def attention_outside(self, layer: int) -> Tensor:
        """Share of a query's attention that goes outside the image, all heads together: ``(N,)``.

        Outside the padded input, zeros are read there.
        """
        locations, weights = self.locations_in_pixels(layer), self.samples[layer].weights
        size = locations.new_tensor(self.instances.image_size[::-1])
        outside = ((locations < 0) | (locations > size)).any(dim=-1)
        return (weights * outside).sum(dim=(1, 2, 3)) / weights.shape[1]

    def mask_probs(self, query: int, layer: int = -1) -> Tensor:
        """Mask probabilities ``(h, w)`` of one query over the padded image, at the mask stride."""
        return sum(self.mask_logits(query, layer)).sigmoid()

    def mask_logits(self, query: int, layer: int = -1) -> list[Tensor]:
        """What adds up to the logits of a query's mask: the features' part and, last, the ellipse.

        Each is ``(h, w)`` over the padded image, at the mask stride; an ellipse is there only if
        the model draws them.
        """
        prediction = self.predictions[layer]
        features = prediction.mask_features[0]
        kernel = prediction.kernels[0, query].to(features.dtype)
        parts = [features.shape[0]]
        if self.ellipse:
            parts = [features.shape[0] - NUM_CHANNELS, NUM_CHANNELS]
        pairs = zip(kernel.split(parts), features.split(parts), strict=True)
        return [torch.einsum("c,chw->hw", *pair).float() for pair in pairs]

    def learned_features(self) -> Tensor:
        """Mask features ``(C, h, w)`` over the padded image, without the channels of ellipses."""
        features = self.predictions[-1].mask_features[0]
        return features[:-NUM_CHANNELS] if self.ellipse else features

    def instance_after(self, query: int, step: int) -> Instances:
        """As :meth:`instance_of`, of layer ``step``, from 1 on."""
        return self.instance_of(query, step - 1)

    def instance_of(self, query: int, layer: int = -1) -> Instances:
        """The best class of one query and its mask at the image's size; none if it is empty."""
        prediction = self.predictions[layer]
        instance = select_instances(
            prediction.queries(query, query + 1),
            0,
            image_size=self.image_size,
            padded_size=self.padded_size,
            output_size=self.instances.image_size,
            max_instances=1,
            threshold=self.mask_threshold,
            keep_largest_component=self.keep_largest_component,
        )
        return _named(instance, query)

    def class_probs(self) -> Tensor:
        """Class probability of every instance; its score is this times its maskness: ``(n,)``."""
        logits = self.predictions[-1].class_logits[0].float().cpu()
        return logits[self.instances.queries, self.instances.pred_classes].sigmoid()


@dataclass
class ISTRTrace(_Trace):
    """ISTR on one image: N queries, T refinement steps."""

    boxes: list[Tensor]  # T + 1 of (N, 4): learned, then of each step; XYXY as the model saw it
    predictions: list[EmbeddedPrediction]  # T, each of a batch of one
    decode: Callable[[Tensor], Tensor]

    @property
    def num_steps(self) -> int:
        return len(self.predictions)

    def boxes_in_pixels(self, step: int) -> Tensor:
        """Boxes ``(N, 4)`` after ``step`` steps (0: the learned ones), XYXY pixels of the image."""
        return self.boxes[step] * self._scale(self.boxes[step]).repeat(2)

    def instance_after(self, query: int, step: int) -> Instances:
        """The best class of one query after ``step`` steps (from 1 on), with its mask.

        None if its box lies outside the image.
        """
        prediction = self.predictions[step - 1]
        alone = EmbeddedPrediction(
            prediction.class_logits[:, query, None],
            prediction.boxes[:, query, None],
            prediction.embeddings[:, query, None],
        )
        instance = select_embedded_instances(
            alone,
            0,
            self.decode,
            image_size=self.image_size,
            output_size=self.instances.image_size,
            max_instances=1,
            threshold=self.mask_threshold,
        )
        return _named(instance, query)


@torch.no_grad()
def trace_isda(predictor: Predictor, image: np.ndarray) -> ISDATrace:
    """ISDA's reference points or boxes, sampling locations and predictions, layer by layer.

    Args:
        predictor: of an ISDA.
        image: ``(H, W, 3)`` uint8, RGB.

    Raises:
        ValueError: the predictor's model is another one.
    """
    model = predictor.model
    if not isinstance(getattr(model, "transformer", None), DeformableTransformer):
        raise ValueError(f"{type(model).__name__} has no deformable attention: only ISDA does")
    attentions = [layer.cross_attn for layer in model.transformer.decoder]
    heads = [model.backbone, model.mask_feature_head, model.transformer]
    with _recorded([*heads, *attentions]) as calls:
        instances = predictor(image)
    (padded,) = calls[model.backbone][0].args
    features = calls[model.mask_feature_head][0]
    decoded = calls[model.transformer][0].output
    return ISDATrace(
        instances=instances,
        image_size=tuple(features.args[1][0]),
        mask_threshold=model.mask_threshold,
        padded_size=tuple(padded.shape[-2:]),
        strides=_strides(padded, calls[attentions[0]][0].args[3]),
        references=_references(model.transformer, decoded),
        samples=[_layer_samples(module, calls[module][0]) for module in attentions],
        predictions=_predictions(model.instance_head, decoded, features.output),
        keep_largest_component=model.keep_largest_component,
        ellipse=model.instance_head.ellipse is not None,
        chosen=decoded.proposals is not None,
    )


def _references(transformer: DeformableTransformer, decoded: DecodedQueries) -> list[Tensor]:
    """Around which each layer looks, ``(N, 2)`` or ``(N, 4)``."""
    count, first = len(decoded.states), decoded.references[0]
    if transformer.reference_boxes is None or not transformer.reference_boxes.refine:
        return [first] * count
    return [first, *decoded.boxes[:-1, 0]]


def _predictions(
    head: InstanceHead, decoded: DecodedQueries, mask_features: Tensor
) -> list[SetPrediction]:
    """Of all layers; the model at inference asks for the last one's only."""
    boxes = [None] * len(decoded.states) if decoded.boxes is None else list(decoded.boxes)
    pairs = zip(*head(decoded.states, decoded.reference_points, decoded.boxes), strict=True)
    return [
        SetPrediction(*pair, mask_features, of_layer)
        for pair, of_layer in zip(pairs, boxes, strict=True)
    ]


def _layer_samples(attention: nn.Module, call: _Call) -> LayerSamples:
    query, reference_points, value, sizes, *_ = call.args
    locations, weights = attention.samples(query, reference_points, sizes, value.dtype)
    return LayerSamples(locations[0], weights[0])


def _strides(padded: Tensor, sizes_per_level: Iterable[tuple[int, int]]) -> list[int]:
    """To the nearest power of two: levels of odd extents are rounded up."""
    return [2 ** round(math.log2(padded.shape[-2] / height)) for height, _ in sizes_per_level]


@torch.no_grad()
def trace_istr(predictor: Predictor, image: np.ndarray) -> ISTRTrace:
    """ISTR's boxes, classes and mask embeddings, step by step.

    Args:
        predictor: of an ISTR.
        image: ``(H, W, 3)`` uint8, RGB.

    Raises:
        ValueError: the predictor's model is another one.
    """
    model = predictor.model
    head = getattr(model, "refinement", None)
    if not isinstance(head, RefinementHead):
        raise ValueError(f"{type(model).__name__} refines no boxes in steps: only ISTR does")
    with _recorded([model.queries, head, head.pooler, *head.steps]) as calls:
        instances = predictor(image)
    final = calls[head][0].output[-1]
    # What each step begins with is what the pooler was asked for.
    boxes = [call.args[1][0].tensor for call in calls[head.pooler]] + [final.boxes[0]]
    predictions = []
    for step, predicted in zip(head.steps, boxes[1:], strict=True):
        queries = calls[step][0].output
        predictions.append(
            EmbeddedPrediction(
                step.class_logits(queries), predicted[None], step.embeddings(queries)
            )
        )
    return ISTRTrace(
        instances=instances,
        image_size=tuple(calls[model.queries][0].args[1][0]),
        mask_threshold=model.mask_threshold,
        boxes=boxes,
        predictions=predictions,
        decode=model.mask_embedding.decode,
    )


def _named(instance: Instances, query: int) -> Instances:
    """On the CPU, with the query's own number: it was the only one of a batch."""
    instance = instance.to("cpu")
    instance.queries = torch.full_like(instance.queries, query)
    return instance


@contextlib.contextmanager
def _recorded(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, list[_Call]]]:
    """Every call of the modules until the end of the block."""
    calls: dict[nn.Module, list[_Call]] = {module: [] for module in modules}

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        calls[module].append(_Call(args, output))

    handles = [module.register_forward_hook(keep) for module in calls]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
