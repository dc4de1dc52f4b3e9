"""Connected components of masks: all but the largest of each are removed."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["largest_components", "largest_components_in_graph"]

# Cells that touch by a corner are connected. So no pixel lies between the cells of two components,
# and without the others a component keeps its outline when it is enlarged.
_NEIGHBOURS = [
    [[0] * 3] * 3,
    [[1] * 3] * 3,
    [[0] * 3] * 3,
]  # of a cell of (n, h, w): in its own mask
_ROUNDS = 10
_JUMPS = 3  # from a component to what it has joined, and to what that has


def largest_components(probs: Tensor, threshold: float, valid_size: tuple[int, int]) -> Tensor:
    """Set to zero what is above the threshold and not connected with most of its mask.

    A kernel that has learnt what its object looks like, but not yet quite where it is, gives some
    of its look-alikes too. Not part of ISDA (arXiv 2202.12251).

    Args:
        probs: ``(n, h, w)``.
        valid_size: ``(height, width)`` in cells; what lies beyond is left as it is.

    Returns:
        ``probs``, changed in place. Of components of one size the first in reading order stays.
    """
    height, width = valid_size
    from scipy import ndimage  # half a second that only models with KEEP_LARGEST_COMPONENT need

    visible = probs[:, :height, :width]
    above = visible > threshold
    labels, count = ndimage.label(above.cpu().numpy(), structure=_NEIGHBOURS)
    labels = torch.from_numpy(labels).long()
    areas = labels.flatten().bincount(minlength=count + 1)
    areas[0] = 0  # outside of all
    kept = _of_the_largest(labels, areas[labels]).to(probs.device)
    visible.masked_fill_(above & ~kept, 0.0)
    return probs


def largest_components_in_graph(probs: Tensor, threshold: float, valid: Tensor) -> Tensor:
    """The same in operators that ``torch.export`` and ONNX know, out of place.

    Each cell begins as a component of its own. In every round a component joins the neighbour with
    the highest number, and what that has joined. Ten rounds are enough for random mazes of 80×80
    cells; of a spiral with many turns less than the largest component remains.

    Args:
        probs: ``(n, h, w)``.
        valid: ``(h, w)``, 1 where cells count and 0 beyond.
    """
    above = (probs > threshold).to(probs.dtype) * valid
    numbers = torch.arange(valid.numel() + 1, device=probs.device)
    labels = (above * numbers[1:].view_as(valid)).long()  # exact up to 2^24 cells; 0 is outside
    for _ in range(_ROUNDS):
        near = F.max_pool2d(labels.to(probs.dtype)[None], 3, stride=1, padding=1)[0] * above
        joined = numbers.expand(len(probs), -1)
        joined = joined.scatter_reduce(1, labels.flatten(1), near.long().flatten(1), "amax")
        for _ in range(_JUMPS):
            joined = joined.gather(1, joined)
        labels = joined.gather(1, labels.flatten(1)).view_as(labels)
    areas = torch.zeros_like(numbers, dtype=probs.dtype).expand(len(probs), -1)
    areas = areas.scatter_add(1, labels.flatten(1), above.flatten(1))
    areas = areas.gather(1, labels.flatten(1)).view_as(above) * above
    others = above * (1 - _of_the_largest(labels, areas).to(probs.dtype))
    return probs * (1 - others)


def _of_the_largest(labels: Tensor, areas: Tensor) -> Tensor:
    """Which cells of ``(n, h, w)`` are of the component with the largest area."""
    best = areas.flatten(1).argmax(dim=1, keepdim=True)
    return labels == labels.flatten(1).gather(1, best)[..., None]
