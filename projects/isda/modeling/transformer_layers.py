"""Layers of Deformable DETR's Transformer (arXiv 2010.04159), post-norm."""

import torch.nn.functional as F
from torch import Tensor, nn

from isda.layers import MSDeformAttention
from isda.modeling.query_relation import QueryRelation
from isda.modeling.tokens import Tokens

__all__ = ["DecoderLayer", "EncoderLayer", "FeedForward"]


class EncoderLayer(nn.Module):
    """Deformable attention of tokens to all tokens, then a feed-forward network; post-norm."""

    def __init__(
        self, *, hidden_dim, num_levels, num_heads, num_points, feedforward_dim, dropout
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttention(hidden_dim, num_levels, num_heads, num_points)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_dim)
        self.feedforward = FeedForward(hidden_dim, feedforward_dim, dropout)

    def forward(
        self, memory: Tensor, tokens: Tokens, reference_points: Tensor, first: int = 0
    ) -> Tensor:
        """
        Args:
            memory: ``(B, S, C)``, that every token reads from.
            reference_points: ``(B, S, levels, 2)``.
            first: the first of the tokens that are updated; those before it stay as they are.

        Returns:
            The updated tokens, ``(B, S - first, C)``.
        """
        content, position = memory, tokens.position
        if first:
            content, position = content[:, first:], position[:, first:]
            reference_points = reference_points[:, first:]
        attended = self.self_attn(
            content + position,
            reference_points,
            memory,
            tokens.sizes_per_level,
            tokens.padding_mask,
        )
        return self.feedforward(self.norm(self.dropout(attended).add_(content)))


class DecoderLayer(nn.Module):
    """Self-attention of the queries, deformable attention into the memory, feed-forward."""

    def __init__(
        self,
        *,
        hidden_dim,
        num_levels,
        num_heads,
        num_points,
        feedforward_dim,
        dropout,
        relation: bool = False,
    ) -> None:
        """
        Args:
            relation: self-attention knows how boxes and scores of two queries compare.
        """
        super().__init__()
        self.relation = QueryRelation(hidden_dim, num_heads) if relation else None
        self.self_attn = nn.MultiheadAttention(hidden_dim, num_heads, dropout, batch_first=True)
        self.self_dropout = nn.Dropout(dropout)
        self.self_norm = nn.LayerNorm(hidden_dim)
        self.cross_attn = MSDeformAttention(hidden_dim, num_levels, num_heads, num_points)
        self.cross_dropout = nn.Dropout(dropout)
        self.cross_norm = nn.LayerNorm(hidden_dim)
        self.feedforward = FeedForward(hidden_dim, feedforward_dim, dropout)
        nn.init.xavier_uniform_(self.self_attn.out_proj.weight)

    def forward(
        self,
        content: Tensor,
        query_pos: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        tokens: Tokens,
        attention_mask: Tensor | None = None,
        boxes: Tensor | None = None,
        scores: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            content, query_pos: ``(B, N, C)``.
            reference_points: ``(B, N, levels, 2 or 4)``.
            memory: ``(B, S, C)``.
            attention_mask: ``(B, N, N)``, True where a row does not see a column.
            boxes, scores: ``(B, N, 4)`` and ``(B, N)`` of the queries, for their relations.
        """
        attended = self._attend(content, query_pos, attention_mask, boxes, scores)
        content = self.self_norm(content + self.self_dropout(attended))
        attended = self.cross_attn(
            content + query_pos,
            reference_points,
            memory,
            tokens.sizes_per_level,
            tokens.padding_mask,
        )
        content = self.cross_norm(content + self.cross_dropout(attended))
        return self.feedforward(content)

    def _attend(
        self,
        content: Tensor,
        query_pos: Tensor,
        mask: Tensor | None,
        boxes: Tensor | None,
        scores: Tensor | None,
    ) -> Tensor:
        """Self-attention of the queries, with their relations if there are any."""
        located = content + query_pos
        if self.relation is None:
            mask = None if mask is None else self._per_head(mask[:, None])
            return self.self_attn(located, located, content, need_weights=False, attn_mask=mask)[0]
        pairs, bias = self.relation(boxes, scores)
        if mask is not None:
            bias = bias.masked_fill(mask[:, None], float("-inf"))
        attended, weights = self.self_attn(
            located,
            located,
            content,
            attn_mask=self._per_head(bias).to(located.dtype),
            average_attn_weights=False,
        )
        return attended + self.relation.read(weights, pairs)

    def _per_head(self, mask: Tensor) -> Tensor:
        """``(B, heads or 1, N, N)`` as PyTorch's attention wants it: ``(B · heads, N, N)``."""
        return mask.expand(-1, self.self_attn.num_heads, -1, -1).flatten(0, 1)


class FeedForward(nn.Module):
    """Two linear layers with a residual connection and post-norm."""

    def __init__(self, hidden_dim: int, feedforward_dim: int, dropout: float):
        super().__init__()
        self.linear1 = nn.Linear(hidden_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        # In place, as no derivative needs what is overwritten.
        inner = self.dropout(F.relu_(self.linear1(x)))
        return self.norm(self.dropout(self.linear2(inner)).add_(x))
