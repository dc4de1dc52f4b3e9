"""Choice of queries from the image: the encoder's tokens propose boxes, the best become queries."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isda.modeling.initialization import prior_bias
from isda.modeling.reference_boxes import BoxHead

__all__ = ["Proposals", "QuerySelection", "token_boxes"]

_FINEST_SIDE = 0.05  # of the box that a token of the finest level starts from


@dataclass
class Proposals:
    """The chosen tokens' own predictions, which are trained like those of a decoder layer."""

    class_logits: Tensor  # (B, N, K) float32, best first
    boxes: Tensor  # (B, N, 4) as (centre x, centre y, width, height) of the valid extent
    states: Tensor  # (B, N, C), what both are read from


class QuerySelection(nn.Module):
    """Class logits and a box from every token; the best N by class are chosen.

    The proposals of two-stage Deformable DETR (arXiv 2010.04159, A.4).
    """

    def __init__(
        self, hidden_dim: int, num_classes: int, num_queries: int, relative_boxes: bool = False
    ):
        """
        Args:
            relative_boxes: see :class:`isda.modeling.reference_boxes.BoxHead`.
        """
        super().__init__()
        self.num_queries = num_queries
        self.project = nn.Linear(hidden_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        self.classes = nn.Linear(hidden_dim, num_classes)
        self.boxes = BoxHead(hidden_dim, relative_boxes)
        nn.init.constant_(self.classes.bias, prior_bias())

    def forward(self, memory: Tensor, boxes: Tensor, padding_mask: Tensor) -> Proposals:
        """
        Args:
            memory: ``(B, S, C)``, the encoder's output.
            boxes: ``(B, S, 4)`` that the tokens start from, see :func:`token_boxes`.
            padding_mask: ``(B, S)``, True on padding, which is chosen last.

        Returns:
            ``min(N, S)`` proposals per image.
        """
        memory = self.norm(self.project(memory.masked_fill(padding_mask[..., None], 0)))
        with torch.autocast(memory.device.type, enabled=False):  # many logits lie close together
            logits = self.classes(memory.to(self.classes.weight.dtype))  # (B, S, K)
        best = logits.detach().amax(dim=2).masked_fill(padding_mask, float("-inf"))
        chosen = best.topk(min(self.num_queries, best.shape[1]), dim=1).indices[..., None]
        states = _take(memory, chosen)
        return Proposals(_take(logits, chosen), self.boxes(_take(boxes, chosen), states), states)


def token_boxes(centres: Tensor, sizes_per_level: list[tuple[int, int]]) -> Tensor:
    """Boxes around tokens, a twentieth of the image wide, doubled from level to level.

    Args:
        centres: ``(B, S, 2)`` as (x, y), relative to the valid extent.

    Returns:
        ``(B, S, 4)``.
    """
    sides = [
        centres.new_full((height * width,), _FINEST_SIDE * 2**level)
        for level, (height, width) in enumerate(sizes_per_level)
    ]
    sides = torch.cat(sides)[:, None].expand(*centres.shape)
    return torch.cat([centres, sides], dim=-1)


def _take(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of ``(B, S, D)`` by ``(B, N, 1)``: ``(B, N, D)``."""
    return x.gather(1, indices.expand(-1, -1, x.shape[2]))
