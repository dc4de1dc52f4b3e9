"""Deformable DETR's Transformer, single stage, without box refinement (arXiv 2010.04159)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isda.layers import MSDeformAttention
from isda.modeling.position_encoding import sine_position_encoding

__all__ = ["DecodedQueries", "DeformableTransformer"]


@dataclass
class DecodedQueries:
    """What the decoder tells about N queries per image."""

    states: Tensor  # (L, B, N, C), one per decoder layer
    reference_points: Tensor  # (B, N, 2) as (x, y) in [0, 1] of the image's valid extent


@dataclass
class _Tokens:
    """The flattened levels: S tokens per image, finest level first."""

    content: Tensor  # (B, S, C)
    position: Tensor  # (B, S, C)
    padding_mask: Tensor  # (B, S), True on padding
    sizes_per_level: list[tuple[int, int]]
    valid_ratios: Tensor  # (B, levels, 2) as (x, y): valid / padded extent


class DeformableTransformer(nn.Module):
    """Encoder over the tokens of all levels, decoder over N learned queries."""

    def __init__(
        self,
        *,
        hidden_dim: int = 256,
        num_queries: int = 300,
        num_levels: int = 4,
        num_heads: int = 8,
        num_points: int = 4,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        feedforward_dim: int = 1024,
        dropout: float = 0.1,
        gradient_checkpointing: bool = False,
    ):
        """
        Args:
            hidden_dim: C. A multiple of ``num_heads`` and of 4 (two axes of sine and cosine).
            gradient_checkpointing: recompute every layer in the backward pass.
        """
        super().__init__()
        _check_width(hidden_dim, num_heads)
        _check_positive(
            NUM_QUERIES=num_queries,
            NUM_POINTS=num_points,
            DECODER_LAYERS=decoder_layers,
            FEEDFORWARD_DIM=feedforward_dim,
        )
        if encoder_layers < 0:
            raise ValueError(
                f"MODEL.ISDA.ENCODER_LAYERS must not be negative, got {encoder_layers}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"MODEL.ISDA.DROPOUT must be in [0, 1), got {dropout}")
        self.gradient_checkpointing = gradient_checkpointing
        self.level_embed = nn.Parameter(torch.empty(num_levels, hidden_dim))
        self.query_embed = nn.Embedding(num_queries, 2 * hidden_dim)  # position, then content
        self.reference_points = nn.Linear(hidden_dim, 2)
        sizes = {
            "hidden_dim": hidden_dim,
            "num_levels": num_levels,
            "num_heads": num_heads,
            "num_points": num_points,
            "feedforward_dim": feedforward_dim,
            "dropout": dropout,
        }
        self.encoder = nn.ModuleList(EncoderLayer(**sizes) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(**sizes) for _ in range(decoder_layers))
        nn.init.normal_(self.level_embed)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, levels: list[Tensor], padding_mask: Tensor) -> DecodedQueries:
        """
        Args:
            levels: P3..P6, each ``(B, C, h, w)``.
            padding_mask: ``(B, H, W)`` of the padded images, True on padding.
        """
        tokens = self._tokens(levels, padding_mask)
        memory = self._encode(tokens)
        return self._decode(memory, tokens)

    def _tokens(self, levels: list[Tensor], padding_mask: Tensor) -> _Tokens:
        masks = [_resize_padding_mask(padding_mask, level.shape[-2:]) for level in levels]
        positions = [
            sine_position_encoding(mask, level.shape[1] // 2).to(level.dtype) + embed[:, None, None]
            for mask, level, embed in zip(masks, levels, self.level_embed, strict=True)
        ]
        return _Tokens(
            content=_flatten(levels),
            position=_flatten(positions),
            padding_mask=torch.cat([mask.flatten(1) for mask in masks], dim=1),
            sizes_per_level=[tuple(level.shape[-2:]) for level in levels],
            valid_ratios=torch.stack([_valid_ratio(mask) for mask in masks], dim=1),
        )

    def _encode(self, tokens: _Tokens) -> Tensor:
        reference_points = _token_reference_points(tokens)
        memory = tokens.content
        for layer in self.encoder:
            memory = self._run(layer, memory, tokens, reference_points)
        return memory

    def _decode(self, memory: Tensor, tokens: _Tokens) -> DecodedQueries:
        batch = memory.shape[0]
        query_pos, content = self.query_embed.weight.expand(batch, -1, -1).chunk(2, dim=-1)
        with torch.autocast(memory.device.type, enabled=False):  # bf16 would move points by cells
            reference_points = self.reference_points(query_pos.float()).sigmoid()
        per_level = reference_points[:, :, None] * tokens.valid_ratios[:, None]  # (B, N, levels, 2)
        states = []
        for layer in self.decoder:
            content = self._run(layer, content, query_pos, per_level, memory, tokens)
            states.append(content)
        return DecodedQueries(torch.stack(states), reference_points)

    def _run(self, layer: Callable[..., Tensor], *args) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, *args, use_reentrant=False)
        return layer(*args)


class EncoderLayer(nn.Module):
    """Deformable self-attention of all tokens, then a feed-forward network; post-norm."""

    def __init__(
        self, *, hidden_dim, num_levels, num_heads, num_points, feedforward_dim, dropout
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttention(hidden_dim, num_levels, num_heads, num_points)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_dim)
        self.feedforward = FeedForward(hidden_dim, feedforward_dim, dropout)

    def forward(self, content: Tensor, tokens: _Tokens, reference_points: Tensor) -> Tensor:
        attended = self.self_attn(
            content + tokens.position,
            reference_points,
            content,
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
        tokens: _Tokens,
    ) -> Tensor:
        located = content + query_pos
        attended, _ = self.self_attn(located, located, content, need_weights=False)
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


def _flatten(levels: list[Tensor]) -> Tensor:
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # (B, S, C)


def _resize_padding_mask(padding_mask: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(padding_mask[:, None].float(), size=size).bool()[:, 0]


def _valid_ratio(padding_mask: Tensor) -> Tensor:
    """Valid divided by padded extent of ``(B, h, w)``, as ``(B, 2)`` in the order (x, y)."""
    valid = (~padding_mask).float()
    return torch.stack([valid[:, 0].mean(dim=1), valid[:, :, 0].mean(dim=1)], dim=-1)


def _token_reference_points(tokens: _Tokens) -> Tensor:
    """Every token's own cell centre as a fraction of each level: ``(B, S, levels, 2)``.

    The centre is first made relative to the valid extent of the token's level; multiplying by a
    level's valid ratio then gives the same spot of the image in that level's padded extent.
    """
    centres = []
    for level, (height, width) in enumerate(tokens.sizes_per_level):
        y, x = torch.meshgrid(
            torch.arange(height, device=tokens.content.device, dtype=torch.float32) + 0.5,
            torch.arange(width, device=tokens.content.device, dtype=torch.float32) + 0.5,
            indexing="ij",
        )
        cells = torch.stack([x / width, y / height], dim=-1).flatten(0, 1)  # (h * w, 2)
        centres.append(cells / tokens.valid_ratios[:, None, level])
    return torch.cat(centres, dim=1)[:, :, None] * tokens.valid_ratios[:, None]


def _check_width(hidden_dim: int, num_heads: int) -> None:
    if num_heads <= 0 or hidden_dim <= 0 or hidden_dim % num_heads or hidden_dim % 4:
        raise ValueError(
            f"MODEL.ISDA.HIDDEN_DIM must be a multiple of MODEL.ISDA.NUM_HEADS and of 4, "
            f"got {hidden_dim} and {num_heads}"
        )


def _check_positive(**sizes: int) -> None:
    for key, value in sizes.items():
        if value <= 0:
            raise ValueError(f"MODEL.ISDA.{key} must be positive, got {value}")
