"""Relations between queries: what two boxes and their scores say about each other."""

import torch
from torch import Tensor, nn

__all__ = ["QueryRelation", "pair_features"]

_NUM_FEATURES = 6
_SMALLEST_SIDE = 1e-4  # of the image; keeps ratios of sides finite


class QueryRelation(nn.Module):
    """Self-attention that knows how the boxes of two queries lie and which has the higher score.

    One prediction per object needs to be told from its duplicates, and the states of two
    queries at one object are nearly equal. Relations enter attention twice, as relative positions
    do in Shaw et al. (arXiv 1803.02155): as a bias of the logits, which Relation-DETR (arXiv
    2407.11699) has as well, and as a part of what is read.
    """

    def __init__(self, hidden_dim: int, num_heads: int, relation_dim: int = 16):
        """
        Args:
            hidden_dim: C, of the queries.
            num_heads: of the self-attention.
            relation_dim: R, of the embedding of a pair.
        """
        super().__init__()
        self.embed = nn.Linear(_NUM_FEATURES, relation_dim)
        self.bias = nn.Linear(relation_dim, num_heads, bias=False)  # softmax removes a constant
        self.value = nn.Linear(num_heads * relation_dim, hidden_dim, bias=False)
        # At first attention is a plain one, also with weights that were trained without relations.
        nn.init.zeros_(self.bias.weight)
        nn.init.zeros_(self.value.weight)

    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            boxes: ``(B, N, 4)`` as (centre x, centre y, width, height).
            scores: ``(B, N)`` logits.

        Returns:
            Embeddings of all pairs, ``(B, N, N, R)``, and their biases, ``(B, heads, N, N)``.
        """
        pairs = self.embed(pair_features(boxes, scores).to(self.embed.weight.dtype)).relu()
        return pairs, self.bias(pairs).permute(0, 3, 1, 2)

    def read(self, weights: Tensor, pairs: Tensor) -> Tensor:
        """What the relations add to the attended states, ``(B, N, C)``.

        Args:
            weights: of the attention, ``(B, heads, N, N)``.
            pairs: ``(B, N, N, R)``.
        """
        read = weights.transpose(1, 2) @ pairs  # (B, N, heads, R)
        return self.value(read.flatten(2))


def pair_features(boxes: Tensor, scores: Tensor) -> Tensor:
    """Six numbers for each pair of queries, ``(B, N, N, 6)`` float32, for query i of the rows.

    Distances of the centres in sides of i, and ratios of the sides, as logarithms; the IoU; the
    difference of the scores, positive where j has the higher one, between -1 and 1.

    Args:
        boxes: ``(B, N, 4)`` as (centre x, centre y, width, height).
        scores: ``(B, N)`` logits.
    """
    boxes, scores = boxes.detach().float(), scores.detach().float()
    centres, sides = boxes.split(2, dim=-1)
    sides = sides.clamp(min=_SMALLEST_SIDE)
    distances = (centres[:, :, None] - centres[:, None]).abs() / sides[:, :, None]
    logs = sides.log()
    ratios = logs[:, None] - logs[:, :, None]
    low, high = centres - sides / 2, centres + sides / 2
    shared = torch.minimum(high[:, :, None], high[:, None])
    shared = (shared - torch.maximum(low[:, :, None], low[:, None])).clamp_(min=0).prod(dim=-1)
    areas = sides.prod(dim=-1)
    ious = shared / (areas[:, :, None] + areas[:, None] - shared)
    higher = (scores[:, None] - scores[:, :, None]).tanh()
    return torch.cat([distances.log1p(), ratios, ious[..., None], higher[..., None]], dim=-1)
