"""Sampled cells for mask costs and losses, so that they do not grow with the image.

Poisson sampling: every cell is drawn on its own, with a probability of its own, and weighs as much
as that is improbable. So weighted sums over the drawn cells are unbiased estimates of sums over all
cells (Horvitz and Thompson, 1952). Half of the probability is even, half is shared alike by the
instances, each inside its enlarged box, so that small ones are seen as well as large ones.
"""

import torch
from torch import Tensor

from isda.structures import SetTarget

__all__ = ["inclusion_probabilities", "sample_cells"]

_ENLARGED = 2.0  # sides of the boxes in which an instance's cells are drawn
_EVEN = 0.5  # share of the cells that is drawn regardless of instances


def sample_cells(target: SetTarget, num_cells: int) -> SetTarget:
    """The target at about ``num_cells`` cells, or as it is where the image has no more.

    Args:
        target: with masks over the grid ``(G, h, w)`` and boxes.
        num_cells: the expected number of cells, at most.
    """
    height, width = target.masks.shape[-2:]
    if num_cells >= height * width:
        return target
    probs = inclusion_probabilities(target.boxes, (height, width), num_cells)
    cells = (torch.rand_like(probs) < probs).nonzero().T
    rows, columns = cells
    masks = target.masks[:, rows, columns]
    return SetTarget(target.classes, masks, target.boxes, cells, probs[rows, columns].reciprocal())


def inclusion_probabilities(boxes: Tensor, size: tuple[int, int], num_cells: int) -> Tensor:
    """The probability that each cell is drawn: ``(h, w)`` in (0, 1], in sum at most ``num_cells``.

    Args:
        boxes: ``(G, 4)`` as (centre x, centre y, width, height), relative to the grid's extent.
        size: ``(h, w)``.
        num_cells: below h · w.
    """
    height, width = size
    even = torch.full(size, 1 / (height * width), device=boxes.device)
    if len(boxes) == 0:
        return num_cells * even
    density = _EVEN * even + (1 - _EVEN) / len(boxes) * _density_of_boxes(boxes, size)
    return (num_cells * density).clamp(max=1)


def _density_of_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The sum over boxes of 1 / cells inside each: ``(h, w)``, whose sum is G."""
    limits = boxes.new_tensor([size[1], size[0]])
    halves = boxes[:, 2:] * (_ENLARGED / 2)
    first = ((boxes[:, :2] - halves) * limits).floor().clamp(min=0).minimum(limits - 1).long()
    end = ((boxes[:, :2] + halves) * limits).ceil().minimum(limits).long().maximum(first + 1)
    share = (end - first).prod(dim=1).double().reciprocal()
    # Corners of each box in a table of differences; the sums along both axes fill the boxes.
    table = share.new_zeros(size[0] + 1, size[1] + 1)
    for rows, columns, sign in (
        (first[:, 1], first[:, 0], 1),
        (first[:, 1], end[:, 0], -1),
        (end[:, 1], first[:, 0], -1),
        (end[:, 1], end[:, 0], 1),
    ):
        table.index_put_((rows, columns), sign * share, accumulate=True)
    return table.cumsum(0).cumsum(1)[:-1, :-1].clamp(min=0).to(boxes.dtype)
