"""Layers of Deformable DETR's Transformer (arXiv 2010.04159), post-norm."""

import torch.nn.functional as F
from torch import Tensor, nn

from isda.layers import MSDeformAttention
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
        self, *, hidden_dim, num_levels, num_heads, num_points, feedforward_dim, dropout
    ) -> None:
        super().__init__()
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
    ) -> Tensor:
        located = content + query_pos
        attended, _ = self.self_attn(
            located, located, content, need_weights=False, attn_mask=self._per_head(attention_mask)
        )
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

    def _per_head(self, attention_mask: Tensor | None) -> Tensor | None:
        """``(B, N, N)`` for each head, as PyTorch's attention wants it: ``(B · heads, N, N)``."""
        if attention_mask is None:
            return None
        return attention_mask.repeat_interleave(self.self_attn.num_heads, dim=0)


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
