"""What is measured: the shapes of an 800 x 1333 image, as encoders and decoders use them.

Symbols: B images, S tokens, M heads, D channels, Q queries, L levels, P points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["LEVELS", "OFFSETS", "Inputs", "Workload", "parse_levels"]

LEVELS = ((100, 168), (50, 84), (25, 42), (13, 21))  # strides 8 to 64, padded to 800 x 1344
OFFSETS = ("init", "wide", "uniform")
_WIDE = 4.0  # standard deviation, in cells of each level
_JITTER = 0.5
_BEYOND = 0.05  # how far uniform locations leave the image


@dataclass
class Inputs:
    """What an operator gets, and the gradient of its output."""

    value: Tensor  # (B, S, M, D)
    shapes: Tensor  # (L, 2), on the CPU
    starts: Tensor  # (L), on the CPU
    locations: Tensor  # (B, Q, M, L, P, 2)
    weights: Tensor  # (B, Q, M, L, P)
    grad: Tensor  # (B, Q, M * D)

    def leaves(self) -> list[Tensor]:
        """Value, locations and weights, to be differentiated."""
        tensors = (self.value, self.locations, self.weights)
        return [tensor.detach().clone().requires_grad_() for tensor in tensors]

    def double(self) -> "Inputs":
        return self._to(torch.float64, torch.float64)

    def float(self) -> "Inputs":
        return self._to(torch.float32, torch.float32)

    def _to(self, value: torch.dtype, geometry: torch.dtype) -> "Inputs":
        return Inputs(
            self.value.to(value),
            self.shapes,
            self.starts,
            self.locations.to(geometry),
            self.weights.to(geometry),
            self.grad.to(value),
        )

    def away_from_borders(self, margin: float = 1e-3) -> Tensor:
        """Samples that are not within ``margin`` cells of a border, where the derivative jumps."""
        extents = self.shapes.flip(-1).to(self.locations.device)[:, None]
        cells = self.locations.double() * extents - 0.5
        return ((cells - cells.round()).abs() > margin).all(-1)

    def result_bytes(self, *, gradients: bool) -> int:
        """Of what the operator returns: the output, or the three gradients."""
        tensors = (self.value, self.locations, self.weights) if gradients else (self.grad,)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class Workload:
    """One setting. ``offsets`` are around each query's reference point.

    "init": the head's direction times 1 to P cells, as modules start; "wide": normal with a
    deviation of 4 cells; "uniform": anywhere, 5 % beyond the image included.
    """

    kind: str  # "encoder": a query per token, at its centre; "decoder": anywhere
    batch: int
    offsets: str
    dtype: torch.dtype = torch.float32
    levels: tuple[tuple[int, int], ...] = LEVELS
    heads: int = 8
    channels: int = 32
    points: int = 4
    queries: int = 300  # of a decoder

    def changed(self, **changes) -> "Workload":
        return replace(self, **changes)

    def described(self) -> dict:
        """For a row of the results."""
        return {
            "kind": self.kind,
            "batch": self.batch,
            "offsets": self.offsets,
            "dtype": str(self.dtype).removeprefix("torch."),
            "tokens": sum(height * width for height, width in self.levels),
            "points": self.points,
        }

    def inputs(self, device: str) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        shapes = torch.tensor(self.levels)
        starts = shapes.prod(1).cumsum(0) - shapes.prod(1)
        references = self._references(generator)  # (B, Q, 2)
        queries = references.shape[1]
        size = (self.batch, queries, self.heads, len(self.levels), self.points, 2)
        locations = self._locations(references, size, shapes, generator)
        tokens = int(shapes.prod(1).sum())
        value = torch.randn(self.batch, tokens, self.heads, self.channels, generator=generator)
        logits = torch.randn(*size[:3], size[3] * size[4], generator=generator)
        grad = torch.randn(self.batch, queries, self.heads * self.channels, generator=generator)
        geometry = torch.float64 if self.dtype == torch.float64 else torch.float32
        weights = logits.softmax(-1).view(size[:-1])
        return Inputs(
            value.to(device, self.dtype),
            shapes,
            starts,
            locations.to(device, geometry),
            weights.to(device, geometry),
            grad.to(device, self.dtype),
        )

    def _references(self, generator: torch.Generator) -> Tensor:
        if self.kind == "decoder":
            return torch.rand(self.batch, self.queries, 2, generator=generator)
        centres = []
        for height, width in self.levels:
            y, x = torch.meshgrid(
                (torch.arange(height) + 0.5) / height,
                (torch.arange(width) + 0.5) / width,
                indexing="ij",
            )
            centres.append(torch.stack([x, y], dim=-1).flatten(0, 1))
        return torch.cat(centres).expand(self.batch, -1, -1)

    def _locations(
        self, references: Tensor, size: Sequence[int], shapes: Tensor, generator: torch.Generator
    ) -> Tensor:
        if self.offsets == "uniform":
            return torch.rand(size, generator=generator) * (1 + 2 * _BEYOND) - _BEYOND
        noise = torch.randn(size, generator=generator)
        cells = _WIDE * noise if self.offsets == "wide" else self._initial() + _JITTER * noise
        return references[:, :, None, None, None] + cells / shapes.flip(-1)[:, None]

    def _initial(self) -> Tensor:
        """(M, 1, P, 2): each head looks its own way, point by point a cell further."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ways = torch.stack([angles.cos(), angles.sin()], dim=-1)
        ways = ways / ways.abs().amax(-1, keepdim=True)
        return ways[:, None, None] * torch.arange(1, self.points + 1)[:, None]


def parse_levels(text: str) -> tuple[tuple[int, int], ...]:
    """``100x168,50x84`` as pairs of height and width."""
    pairs = (level.split("x") for level in text.split(","))
    return tuple((int(height), int(width)) for height, width in pairs)
