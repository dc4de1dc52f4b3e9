"""Reference boxes of queries: position encoding and refinement, layer by layer.

A box is (centre x, centre y, width, height), relative to the image's valid extent, in float32.
"""

import math

import torch
from torch import Tensor, nn

from isda.modeling.position_encoding import inverse_sigmoid

__all__ = ["BoxHead", "ReferenceBoxes", "box_position_encoding"]


_MAX_LOG_SCALE = 4.0  # a step changes a side by at most 55 times
_SMALLEST_SIDE = 1e-4  # of the image


class BoxHead(nn.Module):
    """Three linear layers that move boxes; as initialised, they move nothing."""

    def __init__(self, hidden_dim: int, relative: bool = False):
        """
        Args:
            relative: boxes are moved by shares of their own sides. A logit's shift moves the
                centre of a small box by as many pixels as that of a large one.
        """
        super().__init__()
        self.relative = relative
        self.layers = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, 4),
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, boxes: Tensor, states: Tensor) -> Tensor:
        """Boxes ``(..., 4)`` after a shift of their logits (Deformable DETR, arXiv 2010.04159).

        If relative: after centres moved by halves of their sides, and sides were multiplied by
        exponentials (R-CNN, arXiv 1311.2524, appendix C).

        Args:
            boxes: ``(..., 4)``.
            states: ``(..., C)``.
        """
        with torch.autocast(states.device.type, enabled=False):  # bf16 moves boxes by cells
            dtype = self.layers[-1].weight.dtype
            boxes, deltas = boxes.to(dtype), self.layers(states.to(dtype))
            if not self.relative:
                return (inverse_sigmoid(boxes) + deltas).sigmoid()
            (centres, sides), (shifts, scales) = boxes.split(2, dim=-1), deltas.split(2, dim=-1)
            centres = (centres + sides * shifts / 2).clamp(0, 1)
            sides = sides * scales.clamp(-_MAX_LOG_SCALE, _MAX_LOG_SCALE).exp()
            return torch.cat([centres, sides.clamp(_SMALLEST_SIDE, 1)], dim=-1)


class ReferenceBoxes(nn.Module):
    """Boxes that decoder layers attend around and that each of them predicts anew.

    One head serves all layers. The box that a layer hands on is detached, so a layer learns to
    correct its input, not to prepare its successors (Deformable DETR, arXiv 2010.04159, A.4).
    """

    def __init__(self, hidden_dim: int, refine: bool = True, relative: bool = False):
        """
        Args:
            refine: layers hand on what they predict; otherwise all see the first boxes.
            relative: see :class:`BoxHead`.
        """
        super().__init__()
        self.refine = refine
        self.head = BoxHead(hidden_dim, relative)
        self.position = nn.Sequential(
            nn.Linear(2 * hidden_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, hidden_dim)
        )

    def query_pos(self, boxes: Tensor) -> Tensor:
        """Positional part of queries, ``(B, N, C)``, from their boxes (DAB-DETR, 2201.12329)."""
        features = box_position_encoding(boxes, self.position[0].in_features // 4)
        return self.position(features)

    def forward(self, boxes: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """The boxes that a layer predicts, and those that the next layer starts from."""
        predicted = self.head(boxes, states)
        return predicted, predicted.detach() if self.refine else boxes


def box_position_encoding(boxes: Tensor, num_features: int, temperature: float = 10000.0) -> Tensor:
    """Sine encoding of the four numbers of boxes, float32.

    Args:
        boxes: ``(..., 4)`` in [0, 1].
        num_features: per number, even.

    Returns:
        ``(..., 4 * num_features)``; of each number first all sines, then all cosines.
    """
    exponents = torch.arange(num_features // 2, device=boxes.device, dtype=torch.float32)
    frequencies = 2 * math.pi * temperature ** (-2 * exponents / num_features)
    phases = boxes.float()[..., None] * frequencies  # (..., 4, num_features / 2)
    return torch.cat([phases.sin(), phases.cos()], dim=-1).flatten(-2)
