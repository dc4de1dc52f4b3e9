"""Deformable DETR's Transformer (arXiv 2010.04159), with or without boxes that layers refine."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isda.modeling.query_selection import Proposals, QuerySelection, token_boxes
from isda.modeling.reference_boxes import ReferenceBoxes
from isda.modeling.tokens import Tokens, flatten_levels
from isda.modeling.transformer_layers import DecoderLayer, EncoderLayer
from isda.requirements import COUNT, NOT_NEGATIVE, ArgumentError, Requirement, check
from isda.structures import NoisedQueries

__all__ = ["DROPOUT", "DecodedQueries", "DeformableTransformer"]

DROPOUT: Requirement = (lambda value: 0 <= value < 1, "at least 0 and below 1")


_FINEST_STRIDE = 8  # of P3


@dataclass
class DecodedQueries:
    """States, places and proposals of N queries per image."""

    states: Tensor  # (L, B, N, C), one per decoder layer
    # (B, N, 2) as (x, y), or (B, N, 4) as (centre x, centre y, width, height), where the first
    # layer looked; in [0, 1] of the image's valid extent
    references: Tensor
    boxes: Tensor | None = None  # (L, B, N, 4), predicted by each layer
    proposals: Proposals | None = None  # that the queries were chosen from
    noised: NoisedQueries | None = None  # the first of the N, in training

    def last(self) -> "DecodedQueries":
        """Of the last layer only."""
        boxes = None if self.boxes is None else self.boxes[-1:]
        return replace(self, states=self.states[-1:], boxes=boxes)

    @property
    def reference_points(self) -> Tensor:
        """``(B, N, 2)`` as (x, y): where the first layer looked."""
        return self.references[..., :2]


@dataclass
class _Queries:
    """Queries before the first decoder layer."""

    content: Tensor  # (B, N, C)
    position: Tensor | None  # (B, N, C); None where each layer's boxes give it
    references: Tensor  # (B, N, 2 or 4)
    scores: Tensor  # (B, N) logits of the proposals that they come from, 0 without any
    proposals: Proposals | None = None
    noised: NoisedQueries | None = None  # the first of the N

    def after(self, noised: NoisedQueries) -> "_Queries":
        """Noised queries first, then these."""
        return _Queries(
            torch.cat([noised.content.to(self.content.dtype), self.content], dim=1),
            None,
            torch.cat([noised.boxes, self.references], dim=1),
            # Noised queries are no duplicates of each other: none is above another.
            F.pad(self.scores, (noised.boxes.shape[1], 0)),
            self.proposals,
            noised,
        )


class DeformableTransformer(nn.Module):
    """Encoder over the tokens of all levels, decoder over N queries."""

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
        finest_every: int = 1,
        exact_extent: bool = False,
        reference_boxes: ReferenceBoxes | None = None,
        query_selection: QuerySelection | None = None,
        token_content: bool = False,
        query_relation: bool = False,
    ):
        """
        Args:
            hidden_dim: C. A multiple of ``num_heads`` and of 4 (two axes of sine and cosine).
            gradient_checkpointing: recompute every layer in the backward pass.
            finest_every: encoder layers from one that updates the finest level's tokens, which are
                three quarters of all, to the next; the last layer always does (Lite DETR,
                arXiv 2303.07335). 1 as in the paper.
            exact_extent: the valid part of a padded level is measured in pixels, not in cells.
            reference_boxes: queries look around boxes; None as in the paper: around points.
            query_selection: the first boxes come from the image; None: they are learned.
            token_content: with a selection: queries start with what the chosen tokens hold, as in
                RT-DETR (arXiv 2304.08069), instead of learned content ("mixed" selection of DINO,
                arXiv 2203.03605).
            query_relation: queries know how their boxes and scores compare; needs boxes.
        """
        super().__init__()
        _check_width(hidden_dim, num_heads)
        check(
            COUNT,
            num_queries=num_queries,
            num_points=num_points,
            decoder_layers=decoder_layers,
            feedforward_dim=feedforward_dim,
            finest_every=finest_every,
        )
        check(NOT_NEGATIVE, encoder_layers=encoder_layers)
        check(DROPOUT, dropout=dropout)
        assert query_selection is None or reference_boxes is not None
        assert query_selection is not None or not token_content
        assert reference_boxes is not None or not query_relation
        self.gradient_checkpointing = gradient_checkpointing
        self.finest_every = finest_every
        self.exact_extent = exact_extent
        self.reference_boxes = reference_boxes
        self.query_selection = query_selection
        self.token_content = token_content
        self.level_embed = nn.Parameter(torch.empty(num_levels, hidden_dim))
        # Position, then content; chosen queries have their position from the image, if not both.
        if not token_content:
            self.query_embed = nn.Embedding(num_queries, hidden_dim * (1 if query_selection else 2))
        if query_selection is None:
            self.reference_points = nn.Linear(hidden_dim, 4 if reference_boxes else 2)
        sizes = {
            "hidden_dim": hidden_dim,
            "num_levels": num_levels,
            "num_heads": num_heads,
            "num_points": num_points,
            "feedforward_dim": feedforward_dim,
            "dropout": dropout,
        }
        self.encoder = nn.ModuleList(EncoderLayer(**sizes) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(
            DecoderLayer(**sizes, relation=query_relation) for _ in range(decoder_layers)
        )
        nn.init.normal_(self.level_embed)
        if query_selection is None:
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)

    def forward(
        self,
        levels: list[Tensor],
        padding_mask: Tensor,
        noised: Callable[[int], NoisedQueries] | None = None,
    ) -> DecodedQueries:
        """
        Args:
            levels: P3..P6, each ``(B, C, h, w)``.
            padding_mask: ``(B, H, W)`` of the padded images, True on padding.
            noised: from the number of queries to noised ones, which are decoded before them.
        """
        strides = [_FINEST_STRIDE * 2**level for level in range(len(levels))]
        tokens = flatten_levels(
            levels, padding_mask, self.level_embed, strides if self.exact_extent else None
        )
        memory = self._encode(tokens)
        queries = self._chosen(memory, tokens) if self.query_selection else self._learned(memory)
        if noised is not None:
            queries = queries.after(noised(queries.content.shape[1]))
        return self._decode(queries, memory, tokens)

    def _encode(self, tokens: Tokens) -> Tensor:
        reference_points = tokens.per_level(tokens.centres())
        height, width = tokens.sizes_per_level[0]
        memory = tokens.content
        for remaining, layer in zip(reversed(range(len(self.encoder))), self.encoder):
            first = height * width if remaining % self.finest_every else 0
            updated = self._run(layer, memory, tokens, reference_points, first)
            memory = torch.cat([memory[:, :first], updated], dim=1) if first else updated
        return memory

    def _learned(self, memory: Tensor) -> _Queries:
        """The same queries for every image."""
        embedded = self.query_embed.weight.expand(memory.shape[0], -1, -1)
        position, content = embedded.chunk(2, dim=-1)  # (B, N, C) each
        with torch.autocast(memory.device.type, enabled=False):  # bf16 would move points by cells
            references = self.reference_points(position.float()).sigmoid()
        scores = references.new_zeros(references.shape[:2])
        return _Queries(content, None if self.reference_boxes else position, references, scores)

    def _chosen(self, memory: Tensor, tokens: Tokens) -> _Queries:
        """Around the boxes of the image's best tokens, with their content or a learned one."""
        boxes = token_boxes(tokens.centres(), tokens.sizes_per_level)
        proposals = self.query_selection(memory, boxes, tokens.padding_mask)
        references = proposals.boxes.detach()
        if self.token_content:
            # Detached: the choice learns by its own loss, not what the decoder would like to see.
            content = proposals.states.detach()
        else:
            content = self.query_embed.weight[: references.shape[1]].expand(len(memory), -1, -1)
        scores = proposals.class_logits.detach().amax(dim=2)
        return _Queries(content, None, references, scores, proposals)

    def _decode(self, queries: _Queries, memory: Tensor, tokens: Tokens) -> DecodedQueries:
        content, references, position = queries.content, queries.references, queries.position
        attention_mask = queries.noised.attention_mask if queries.noised else None
        states, boxes = [], []
        for layer in self.decoder:
            if self.reference_boxes:
                position = self.reference_boxes.query_pos(references)
            content = self._run(
                layer,
                content,
                position,
                tokens.per_level(references),
                memory,
                tokens,
                attention_mask,
                references,
                queries.scores,
            )
            states.append(content)
            if self.reference_boxes:
                predicted, references = self.reference_boxes(references, content)
                boxes.append(predicted)
        return DecodedQueries(
            torch.stack(states),
            queries.references,
            torch.stack(boxes) if boxes else None,
            queries.proposals,
            queries.noised,
        )

    def _run(self, layer: Callable[..., Tensor], *args) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, *args, use_reentrant=False)
        return layer(*args)


def _check_width(hidden_dim: int, num_heads: int) -> None:
    if num_heads <= 0 or hidden_dim <= 0 or hidden_dim % num_heads or hidden_dim % 4:
        raise ArgumentError(
            "hidden_dim",
            f"must be a positive multiple of num_heads and of 4, got {hidden_dim} and {num_heads}",
        )
