"""``torch.compile`` of inference."""

import functools
import os
import shutil
import sys
import types
from typing import Any

import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, ImageList
from torch import Tensor, nn

from isda.meta_arch import methods_with
from isda.meta_arch.base import InstanceSegmentor
from isda.meta_arch.declarations import declared
from isda.modeling.refinement import build_pooler
from isda.structures import SIZE_DIVISIBILITY

__all__ = ["as_it_is", "compile_inference", "pool_in_one_node"]


def compile_inference(model: nn.Module, **options: Any) -> nn.Module:
    """Let ``torch.compile`` see everything between the padded images and the last prediction.

    That is one graph, from the backbone to class scores, kernels and mask features, or boxes and
    mask embeddings. Images are padded and instances chosen and resized as before, because those
    shapes depend on what is found. Compilation happens at the first call, and again for another
    number of images in a batch; docs/EXPORT.md says what else causes it, and how long it takes.

    Args:
        model: of a method that can be compiled, changed in place. It is to be called without
            gradients, as ``isda.Predictor`` does.
        options: of ``torch.compile``, such as ``backend``, ``mode`` or ``fullgraph``; ``dynamic``
            is True unless it is among them, so that one graph serves images of many sizes.

    Returns:
        ``model``.

    Raises:
        ValueError: it is of another kind.
        FileNotFoundError: inductor, the default backend, lacks the C++ compiler that it needs for a
            model on a CPU.
    """
    if not isinstance(model, InstanceSegmentor):
        raise ValueError(
            f"{type(model).__name__} cannot be compiled by this package, only "
            f"{methods_with('compilation')} can; torch.compile(model) may "
            "do with others"
        )
    prepare = declared(type(model), "compilation")
    if model.device.type == "cpu" and options.get("backend", "inductor") == "inductor":
        _check_compiler()
    prepare(model)
    compiled = torch.compile(_predict, **{"dynamic": True, **options})

    def predict(self: nn.Module, images: ImageList) -> list:
        # In this form the compiler knows the strides to divide the sides, and its expressions of
        # sizes stay short.
        cells = (-1, SIZE_DIVISIBILITY)
        tiles = images.tensor.unflatten(3, cells).unflatten(2, cells)
        for axis in (1, 3, 5):
            torch._dynamo.mark_static(tiles, axis)
        return compiled(self, tiles, [tuple(size) for size in images.image_sizes])

    model.predict = types.MethodType(predict, model)  # of this model only; a copy gets its own
    return model


def as_it_is(model: nn.Module) -> None:
    """What has to be done first to a model that the compiler takes as it is: nothing."""


def pool_in_one_node(model: nn.Module) -> None:
    """Let the compiler take the pooler of a model with ``refinement`` as one operator."""
    model.refinement.pooler.__class__ = _PoolerInOneNode


def _predict(model: nn.Module, tiles: Tensor, image_sizes: list[tuple[int, int]]) -> list:
    """``tiles``: padded images as ``(B, 3, rows, 32, columns, 32)``."""
    padded = tiles.flatten(4).flatten(2, 3)
    return type(model).predict(model, ImageList(padded, image_sizes))


def _check_compiler() -> None:
    """Inductor would find it out after a minute of tracing."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if sys.platform != "win32" and shutil.which(name) is None:
        raise FileNotFoundError(
            f"torch.compile needs a C++ compiler on a CPU, and there is no {name}: apt install "
            "g++, or name another one in the environment variable CXX"
        )


class _PoolerInOneNode(ROIPooler):
    """A pooler that the compiler need not look into; not to be constructed.

    How many boxes a level has is known only when it runs, which inductor cannot compile.
    """

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        if torch.is_grad_enabled():  # the operator has no derivative
            return super().forward(x, box_lists)
        return _pool_regions(x, torch.stack([boxes.tensor for boxes in box_lists]), self.side)

    @property
    def side(self) -> int:
        return self.output_size[0]


@torch.library.custom_op("isda::pool_regions", mutates_args=())
def _pool_regions(levels: list[Tensor], boxes: Tensor, resolution: int) -> Tensor:
    """Levels ``(B, C, h, w)`` and boxes ``(B, N, 4)`` → ``(B * N, C, P, P)``, P the resolution."""
    return _pooler(len(levels), resolution)(levels, [Boxes(of_image) for of_image in boxes])


@_pool_regions.register_fake
def _(levels: list[Tensor], boxes: Tensor, resolution: int) -> Tensor:
    regions = boxes.shape[0] * boxes.shape[1]
    return levels[0].new_empty(regions, levels[0].shape[1], resolution, resolution)


@functools.cache
def _pooler(num_levels: int, resolution: int) -> ROIPooler:
    return build_pooler([4 * 2**index for index in range(num_levels)], resolution)
