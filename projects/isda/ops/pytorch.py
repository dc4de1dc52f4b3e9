"""Multi-scale deformable attention in PyTorch, for every device and wherever nothing is compiled.

Three forms of the same sum. ``grid_sample_form`` is what export and ONNX know. The gather form
consists of basic operations only, so it can be differentiated any number of times. The bag form
(``bags``) is several times faster on a CPU. Symbols as in ``isda.ops.ms_deform_attn``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from isda.ops import bags

__all__ = [
    "backward",
    "forward",
    "gather_backward",
    "gather_form",
    "gather_forward",
    "grid_sample_form",
]

_GATHERED_BYTES = 1 << 28


def forward(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor):
    """The output (B, Q, M·D) in the dtype of ``value``; ``shapes`` and ``starts`` are int64."""
    batch, queries, heads = weights.shape[:3]
    if not value.numel() * weights.numel():
        return value.new_zeros(batch, queries, heads * value.shape[-1])
    inputs = (value.to(weights.dtype), shapes, starts, locations, weights)
    if _bags_fit(value, shapes):
        output = bags.forward(inputs[0], shapes.tolist(), starts.tolist(), *inputs[3:])
    else:
        pieces = [gather_forward(*inputs[:3], *piece) for piece in _pieces(value, *inputs[3:])]
        output = torch.cat(pieces, dim=1)
    return output.flatten(2).to(value.dtype)


def backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of value, locations and weights; None where ``output_mask`` is False."""
    inputs = (value, locations, weights)
    if not value.numel() * weights.numel():
        return _masked([torch.zeros_like(tensor) for tensor in inputs], output_mask)
    grads = grad_output.unflatten(-1, (weights.shape[2], -1)).to(weights.dtype)
    wide = value.to(weights.dtype)
    if _bags_fit(value, shapes):
        sizes = (shapes.tolist(), starts.tolist())
        results = bags.backward(grads, wide, *sizes, locations, weights, output_mask)
    else:
        results = _gather_backward_by_pieces(
            grads, wide, shapes, starts, locations, weights, output_mask
        )
    return _masked(
        [r if r is None else r.to(t.dtype) for r, t in zip(results, inputs, strict=True)],
        output_mask,
    )


def _masked(tensors: Sequence[Tensor | None], mask: Sequence[bool]):
    return tuple(tensor if wanted else None for tensor, wanted in zip(tensors, mask, strict=True))


def _bags_fit(value: Tensor, shapes: Tensor) -> bool:
    return value.device.type == "cpu" and bags.fits(shapes.tolist(), value.shape[1])


def _pieces(value: Tensor, *per_query: Tensor):
    """Split tensors (B, Q, ...), of which the last has a number per sample, along Q."""
    per_query_bytes = 4 * per_query[-1][:, 0].numel() * value.shape[-1] * 8
    step = max(1, _GATHERED_BYTES // per_query_bytes)
    return zip(*(tensor.split(step, dim=1) for tensor in per_query), strict=True)


def _gather_backward_by_pieces(
    grads: Tensor,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    output_mask: Sequence[bool],
) -> list[Tensor | None]:
    pieces = [
        gather_backward(grad, value, shapes, starts, *piece, output_mask)
        for grad, *piece in _pieces(value, grads, locations, weights)
    ]
    of_value, of_locations, of_weights = zip(*pieces, strict=True)
    return [
        torch.stack(of_value).sum(0) if output_mask[0] else None,
        torch.cat(of_locations, dim=1) if output_mask[1] else None,
        torch.cat(of_weights, dim=1) if output_mask[2] else None,
    ]


def grid_sample_form(
    value: Tensor,
    sizes: list[tuple[int, int]],
    starts: list[int],
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """One ``grid_sample`` per level, in differentiable operations; (B, Q, M·D)."""
    batch, _, heads, channels = value.shape
    queries = weights.shape[1]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B·M, Q, L, P, 2)
    sampled = []
    for level, ((height, width), start) in enumerate(zip(sizes, starts, strict=True)):
        cells = value[:, start : start + height * width].permute(0, 2, 3, 1)  # (B, M, D, h·w)
        image = cells.reshape(batch * heads, channels, height, width).to(locations.dtype)
        sampled.append(F.grid_sample(image, grids[:, :, level], align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    output = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)  # (B·M, D, Q)
    output = output.view(batch, heads * channels, queries).transpose(1, 2)
    return output.to(value.dtype).contiguous()


def gather_form(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """The output (B, Q, M·D) in the dtype of ``value``, with the derivatives that backward has."""
    batch, queries, heads = weights.shape[:3]
    if not value.numel() * weights.numel():
        return value.new_zeros(batch, queries, heads * value.shape[-1])
    wide = value.to(weights.dtype)
    pieces = [
        gather_forward(wide, shapes, starts, *piece, right_derivative=True)
        for piece in _pieces(value, locations, weights)
    ]
    return torch.cat(pieces, dim=1).flatten(2).to(value.dtype)


def gather_forward(
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    *,
    right_derivative: bool = False,
) -> Tensor:
    """The output as (B, Q, M, D), by differentiable basic operations."""
    geometry = _geometry(value, shapes, starts, locations, right_derivative=right_derivative)
    right, below, tokens = geometry
    coefficients = _coefficients(right, below, _nan_of_invalid(weights, locations, shapes))
    cells = _gather(value, tokens)
    return (coefficients.flatten(3).unsqueeze(3) @ cells).squeeze(3)


def gather_backward(
    grads: Tensor,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients for ``grads`` (B, Q, M, D), by differentiable basic operations."""
    right, below, tokens = _geometry(value, shapes, starts, locations, right_derivative=True)
    grad_value = grad_locations = grad_weights = None
    if output_mask[0]:
        coefficients = _coefficients(right, below, weights).flatten(3)  # (B, Q, M, L·P·4)
        grad_value = _scatter(value, tokens, coefficients.unsqueeze(-1) * grads.unsqueeze(3))
    if output_mask[1] or output_mask[2]:
        dots = (_gather(value, tokens) @ grads.unsqueeze(-1)).view(*weights.shape, 4)
        d00, d01, d10, d11 = dots.unbind(-1)
        upper, lower = d00 + right * (d01 - d00), d10 + right * (d11 - d10)
        grad_weights = upper + below * (lower - upper)
        slope_x = (1 - below) * (d01 - d00) + below * (d11 - d10)
        slopes = torch.stack([slope_x, lower - upper], dim=-1)
        grad_locations = weights.unsqueeze(-1) * slopes * _extents(shapes, weights)
    return _masked((grad_value, grad_locations, grad_weights), output_mask)


def _extents(shapes: Tensor, like: Tensor) -> Tensor:
    """(L, 1, 2) as (width, height)."""
    return shapes.to(like.device, like.dtype).flip(-1).unsqueeze(1)


def _nan_of_invalid(weights: Tensor, locations: Tensor, shapes: Tensor) -> Tensor:
    """Make the weights of infinite and undefined locations NaN, which then reaches the output."""
    return weights + (locations.detach() * _extents(shapes, locations)).sum(-1) * 0


def _geometry(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, *, right_derivative: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """α and β of the samples, and the tokens of their four cells (..., 4): S where there is none.

    With ``right_derivative``, samples exactly one cell left of or above a level count as inside.
    """
    extents = _extents(shapes, locations)
    xy = locations * extents - 0.5
    seen = ((xy >= -1 if right_derivative else xy > -1) & (xy < extents)).all(-1, keepdim=True)
    xy = torch.where(seen, xy, -2)
    first = xy.detach().floor()
    right, below = (xy - first).unbind(-1)
    offsets = first.new_tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    cells = first.unsqueeze(-2) + offsets  # (B, Q, M, L, P, 4, 2)
    inside = ((cells >= 0) & (cells < extents.unsqueeze(-2))).all(-1)
    column, row = cells.long().unbind(-1)
    width = shapes[:, 1].to(value.device)[:, None, None]
    tokens = starts.to(value.device)[:, None, None] + row * width + column
    size = value.shape[1]
    return right, below, torch.where(inside, tokens.clamp(0, max(size - 1, 0)), size)


def _coefficients(right: Tensor, below: Tensor, weights: Tensor) -> Tensor:
    rights = weights * right
    lefts = weights - rights
    upper = torch.stack([lefts, rights], dim=-1)
    lower = upper * below.unsqueeze(-1)
    return torch.cat([upper - lower, lower], dim=-1)


def _rows(value: Tensor, tokens: Tensor) -> Tensor:
    """Numbers of the tokens' rows in (B, S + 1, M) of them."""
    batch, size, heads, _ = value.shape
    image = torch.arange(batch, device=value.device).view(-1, 1, 1, 1, 1, 1)
    head = torch.arange(heads, device=value.device).view(-1, 1, 1, 1)
    return ((image * (size + 1) + tokens) * heads + head).flatten()


def _gather(value: Tensor, tokens: Tensor) -> Tensor:
    """The tokens' rows of the values as (B, Q, M, L·P·4, D), zero for token S."""
    table = F.pad(value, (0, 0, 0, 0, 0, 1)).flatten(0, 2)
    cells = table.index_select(0, _rows(value, tokens))
    return cells.view(*tokens.shape, value.shape[-1]).flatten(3, 5)


def _scatter(value: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
    """Sum (B, Q, M, L·P·4, D) into the tokens of the values' shape, token S left out."""
    batch, size, heads, channels = value.shape
    table = rows.new_zeros(batch * (size + 1) * heads, channels)
    table = table.index_add(0, _rows(value, tokens), rows.flatten(0, -2))
    return table.view(batch, size + 1, heads, channels)[:, :size]
