"""Denoising queries: noised ground truths that the decoder learns to restore."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isda.requirements import COUNT, check
from isda.structures import NoisedQueries, SetTarget

__all__ = ["DenoisingQueries", "add_noise", "group_attention_mask"]

_SHIFT = 0.4  # of half a side: the centre stays inside the box
_SCALE = 0.4  # of a side
_WRONG_LABELS = 0.2  # share
_MIN_SIDE = 1e-4


class DenoisingQueries(nn.Module):
    """Groups of noised ground truths, each of which attends to itself only (DN-DETR, 2203.01305).

    A noised query starts at the box and the label of its ground truth, so nothing has to be
    matched. They exist in training only.
    """

    def __init__(self, hidden_dim: int, num_classes: int, num_queries: int):
        """
        Args:
            num_queries: noised queries per image, at most. Fewer ground truths are repeated in as
                many groups as fit; of more, a random choice takes part.
        """
        super().__init__()
        check(COUNT, num_queries=num_queries)
        self.num_queries = num_queries
        self.labels = nn.Embedding(num_classes, hidden_dim)

    def forward(self, targets: Sequence[SetTarget], num_queries: int) -> NoisedQueries:
        """
        Args:
            targets: one per image, with boxes.
            num_queries: N, the number of the real queries, which follow these.
        """
        counts = [len(target.classes) for target in targets]
        # Never none: under DDP every parameter has to take part in every step.
        group_size = min(max(*counts, 1), self.num_queries)
        groups = self.num_queries // group_size
        chosen = torch.stack([self._chosen(target, group_size) for target in targets])
        chosen = chosen.repeat(1, groups)  # (B, D)
        classes = _rows([target.classes for target in targets], chosen)
        boxes = _rows([target.boxes for target in targets], chosen)
        classes, boxes = add_noise(classes, boxes, self.labels.num_embeddings)
        mask = group_attention_mask(chosen >= 0, group_size, num_queries)
        return NoisedQueries(self.labels(classes), boxes, chosen, mask)

    @staticmethod
    def _chosen(target: SetTarget, group_size: int) -> Tensor:
        """Numbers of the ground truths in a group, -1 on padding: ``(group_size,)``."""
        order = torch.randperm(len(target.classes), device=target.classes.device)[:group_size]
        return nn.functional.pad(order, (0, group_size - len(order)), value=-1)


def add_noise(classes: Tensor, boxes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Shift and scale boxes, replace some classes by random ones.

    Centres move by up to 0.4 of half a side, sides change by up to 40 %, a fifth of the classes is
    drawn anew.

    Args:
        classes: ``(...)`` int64.
        boxes: ``(..., 4)`` as (centre x, centre y, width, height), relative to the image.
    """
    random = torch.rand(*classes.shape, device=classes.device)
    drawn = torch.randint_like(classes, num_classes)
    classes = torch.where(random < _WRONG_LABELS, drawn, classes)
    shift, scale = (torch.rand_like(boxes) * 2 - 1).split(2, dim=-1)  # in [-1, 1)
    centres = boxes[..., :2] + _SHIFT * shift * boxes[..., 2:] / 2
    sides = boxes[..., 2:] * (1 + _SCALE * scale)
    return classes, torch.cat([centres.clamp(0, 1), sides.clamp(_MIN_SIDE, 1)], dim=-1)


def group_attention_mask(is_real: Tensor, group_size: int, num_queries: int) -> Tensor:
    """Which queries must not see which: ``(B, D + N, D + N)`` bool, True where a row is blind.

    Noised queries see their own group, real queries see each other, and neither sees the other.
    Padding is seen by itself alone, so an image does not depend on its neighbours' instances.

    Args:
        is_real: ``(B, D)``, False on padding; whole groups.
        num_queries: N.
    """
    length = is_real.shape[1]
    groups = torch.arange(length, device=is_real.device) // group_size
    groups = nn.functional.pad(groups, (0, num_queries), value=-1)  # real queries are one group
    seen = nn.functional.pad(is_real, (0, num_queries), value=True)
    sees = (groups[:, None] == groups) & seen[:, None]
    return ~(sees | torch.eye(length + num_queries, dtype=torch.bool, device=is_real.device))


def _rows(tables: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """Rows of each image's table by number; row 0 of a table of zeros where the number is -1."""
    rows = [
        nn.functional.pad(table, [0, 0] * (table.dim() - 1) + [1, 0])[indices + 1]
        for table, indices in zip(tables, chosen, strict=True)
    ]
    return torch.stack(rows)
