"""Numerically safe decoding of boxes that a network moves."""

import math

import torch
from torch import Tensor

__all__ = ["bounded_boxes", "decode_boxes"]

_CENTRE_WEIGHT = 2.0  # deltas of the centre are in halves of the box's size
_MAX_LOG_SCALE = math.log(100_000 / 16)  # a step enlarges a side by at most this factor
_SMALLEST = 0.01  # pixels
_LARGEST = 100  # image sides
_RESOLUTION = 2.0**-22  # relative; float32 still tells corners so far apart from each other


def decode_boxes(deltas: Tensor, boxes: Tensor, extents: Tensor) -> Tensor:
    """Move and scale boxes (R-CNN's parametrisation with the weights 2, 2, 1, 1).

    Args:
        deltas: ``(B, N, 4)``: shifts of the centre (x, y), logarithms of the factors (w, h).
        boxes: ``(B, N, 4)`` XYXY in pixels, not empty.
        extents: ``(B, 2)``, the images' (width, height) in pixels.

    Returns:
        ``(B, N, 4)`` XYXY, at least float32, bounded as :func:`bounded_boxes` says. They may
        reach beyond the image.
    """
    dtype = torch.promote_types(deltas.dtype, torch.float32)
    deltas, boxes = deltas.to(dtype), boxes.to(dtype)
    sizes = boxes[..., 2:] - boxes[..., :2]
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    centres = centres + deltas[..., :2] / _CENTRE_WEIGHT * sizes
    sizes = sizes * deltas[..., 2:].clamp(max=_MAX_LOG_SCALE).exp()
    return bounded_boxes(centres, sizes, extents)


def bounded_boxes(centres: Tensor, sizes: Tensor, extents: Tensor) -> Tensor:
    """Boxes from centres and sizes, none of them empty, inverted or absurdly large.

    Sizes are clamped to 0.01 pixels and 100 times the image, centres to 100 times the image.
    Where float32 cannot tell corners 0.01 pixels apart, far outside the image, boxes are as small
    as it can.

    Args:
        centres, sizes: ``(B, N, 2)`` as (x, y) and (width, height), in pixels.
        extents: ``(B, 2)``, the images' (width, height).

    Returns:
        ``(B, N, 4)`` XYXY; NaN stays NaN, so that training can report it.
    """
    limits = _LARGEST * extents[:, None].to(centres.dtype)
    centres = torch.clamp(centres, -limits, limits)
    smallest = (centres.detach().abs() * _RESOLUTION).clamp(min=_SMALLEST)
    halves = torch.clamp(sizes, smallest, limits) / 2
    return torch.cat([centres - halves, centres + halves], dim=-1)
