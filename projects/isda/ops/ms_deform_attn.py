"""Multi-scale deformable attention as an operator: schema, fakes, autograd, autocast, checks.

Everything but speed is defined here. Compiled extensions only register kernels for devices.
"""

import functools
import itertools
import logging
import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from isda.ops import nvrtc, pytorch, selection

__all__ = ["ms_deform_attn"]

logger = logging.getLogger(__name__)

_library = torch.library.Library("isda", "DEF")
_INPUTS = (
    "Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
    "Tensor sampling_locations, Tensor attention_weights"
)
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_HALVES = (torch.bfloat16, torch.float16)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    level_start_index: Sequence[int] | Tensor | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, eq. 3).

    Every query and head sums bilinear samples of the levels, as ``grid_sample`` takes them with
    zeros outside and ``align_corners=False``. A location that is infinite or not a number makes
    its query and head NaN. Differentiable twice in value, locations and weights.

    Args:
        value: ``(B, S, heads, channels)``, level after level, zero on padding; float64, float32,
            bfloat16 or float16.
        spatial_shapes: (height, width) of the levels in cells, as Python pairs or int64
            ``(L, 2)``; best not on a GPU.
        level_start_index: first token of every level; None: one level follows the other.
        sampling_locations: ``(B, Q, heads, L, points, 2)`` as (x, y), fractions of the padded
            level, outside of which all is zero; float64 if the value is, else float32. (Half
            types are accepted and too coarse for it: they move points by whole cells.)
        attention_weights: ``(B, Q, heads, L, points)`` in the same dtype, used as they are;
            normally a softmax per head.

    Returns:
        ``(B, Q, heads * channels)`` in the value's dtype.

    Raises:
        ValueError: ranks or extents do not agree, or levels reach beyond S.
        TypeError: a dtype is not as above.
        RuntimeError: tensors on different devices, or a forced backend that cannot serve them.
    """
    sampling_locations = _widen_locations(sampling_locations)
    if attention_weights.dtype in _HALVES:
        attention_weights = attention_weights.float()
    if _exporting():
        lists = _as_lists(spatial_shapes, level_start_index)
        return pytorch.grid_sample_form(value, *lists, sampling_locations, attention_weights)
    shapes, starts = _as_tensors(spatial_shapes, level_start_index)
    inputs = (value, shapes, starts, sampling_locations, attention_weights)
    _check(*inputs)
    if not torch.compiler.is_compiling():
        _check_levels(value, shapes, starts)
    if _transformed(value, sampling_locations, attention_weights):
        return _spelled_out(*inputs)
    if selection.pure_requested(value.device):
        return torch.ops.isda.ms_deform_attn_pure(*inputs)
    return torch.ops.isda.ms_deform_attn(*inputs)


def _as_tensors(
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    level_start_index: Sequence[int] | Tensor | None,
) -> tuple[Tensor, Tensor]:
    if not isinstance(spatial_shapes, Tensor):
        if any(len(pair) != 2 for pair in spatial_shapes):
            raise ValueError(f"spatial_shapes must be (height, width) pairs, got {spatial_shapes}")
        if level_start_index is None:
            level_start_index = _starts(spatial_shapes)
        spatial_shapes = torch.tensor(spatial_shapes, dtype=torch.int64).view(-1, 2)
    if level_start_index is None:
        areas = spatial_shapes.prod(1)
        level_start_index = areas.cumsum(0) - areas
    elif not isinstance(level_start_index, Tensor):
        level_start_index = torch.tensor(level_start_index, dtype=torch.int64)
    return spatial_shapes, level_start_index


def _as_lists(
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    level_start_index: Sequence[int] | Tensor | None,
) -> tuple[list[tuple[int, int]], list[int]]:
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = spatial_shapes.tolist()
    if level_start_index is None:
        level_start_index = _starts(spatial_shapes)
    elif isinstance(level_start_index, Tensor):
        level_start_index = level_start_index.tolist()
    return list(spatial_shapes), list(level_start_index)


def _starts(sizes: Sequence[tuple[int, int]]) -> list[int]:
    return list(itertools.accumulate((height * width for height, width in sizes), initial=0))[:-1]


def _widen_locations(locations: Tensor) -> Tensor:
    if locations.dtype not in _HALVES:
        return locations
    if not torch.compiler.is_compiling():
        _warn_of_coarse_locations(locations.dtype)
    return locations.float()


@functools.cache
def _warn_of_coarse_locations(dtype: torch.dtype) -> None:
    logger.warning(
        "sampling_locations come in %s, which cannot tell neighbouring cells of a large level "
        "apart: compute them in float32",
        dtype,
    )


def _exporting() -> bool:
    """Exported programs and ONNX know ``grid_sample``, but not this operator."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()


def _transformed(*tensors: Tensor) -> bool:
    """Whether ``torch.func`` or forward mode looks on, whose rules no custom operator can have."""
    return torch._C._are_functorch_transforms_active() or _has_tangent(*tensors)


def _has_tangent(*inputs) -> bool:
    if forward_ad._current_level < 0:
        return False
    tensors = (x for x in inputs if isinstance(x, Tensor))
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def _spelled_out(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    with torch.autocast(value.device.type, enabled=False):
        return pytorch.gather_form(value, shapes, starts, locations, weights)


def _check(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> None:
    """Everything that can be told without reading a tensor."""
    _check_ranks(value, shapes, starts, locations, weights)
    _check_types(value, shapes, starts, locations, weights)
    batch, _, heads, _ = value.shape
    queries, levels, points = weights.shape[1], len(shapes), weights.shape[-1]
    expected = (batch, queries, heads, levels, points)
    if len(starts) != levels:
        raise ValueError(
            f"level_start_index must list {levels} levels as spatial_shapes does, got {len(starts)}"
        )
    for name, tensor, wanted in (
        ("attention_weights", weights, expected),
        ("sampling_locations", locations, (*expected, 2)),
    ):
        if tuple(tensor.shape) != wanted:
            raise ValueError(
                f"{name} must be {wanted} for the value {tuple(value.shape)} and {levels} levels, "
                f"got {tuple(tensor.shape)}"
            )


def _check_ranks(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> None:
    for name, tensor, axes in (
        ("value", value, "(B, S, heads, channels)"),
        ("spatial_shapes", shapes, "(L, 2)"),
        ("level_start_index", starts, "(L)"),
        ("sampling_locations", locations, "(B, Q, heads, L, points, 2)"),
        ("attention_weights", weights, "(B, Q, heads, L, points)"),
    ):
        wrong_pair = name == "spatial_shapes" and tensor.shape[-1:] != (2,)
        if tensor.dim() != axes.count(",") + 1 or wrong_pair:
            raise ValueError(f"{name} must be {axes}, got {tuple(tensor.shape)}")


def _check_types(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> None:
    if value.dtype not in _DTYPES:
        raise TypeError(f"value must be one of {', '.join(map(str, _DTYPES))}, got {value.dtype}")
    geometry = torch.float64 if value.dtype == torch.float64 else torch.float32
    for name, tensor, dtype in (
        ("spatial_shapes", shapes, torch.int64),
        ("level_start_index", starts, torch.int64),
        ("sampling_locations", locations, geometry),
        ("attention_weights", weights, geometry),
    ):
        if tensor.dtype != dtype:
            raise TypeError(
                f"{name} must be {dtype} beside a value of {value.dtype}, got {tensor.dtype}"
            )
        on_host = dtype == torch.int64 and tensor.device.type == "cpu"
        if tensor.device != value.device and not on_host:
            raise RuntimeError(f"{name} is on {tensor.device}, but value is on {value.device}")


def _check_levels(value: Tensor, shapes: Tensor, starts: Tensor) -> None:
    """What takes reading the shapes, which on a device means waiting for it."""
    if shapes.device.type != "cpu" and os.environ.get("ISDA_MSDA_CHECK") != "1":
        return
    size = value.shape[1]
    pairs = zip(shapes.tolist(), starts.tolist(), strict=True)
    for level, ((height, width), start) in enumerate(pairs):
        if min(height, width, start) < 0 or start + height * width > size:
            raise ValueError(
                f"level {level} of {height}x{width} cells from token {start} does not fit into "
                f"the value's {size} tokens"
            )


def _forward(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    _check(value, shapes, starts, locations, weights)
    _check_levels(value, shapes, starts)
    return pytorch.forward(value, shapes, starts, locations, weights)


def _announced_forward(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    selection.announce(value.device.type)
    return _forward(value, shapes, starts, locations, weights)


def _fake_forward(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    _check(value, shapes, starts, locations, weights)
    batch, queries, heads = weights.shape[:3]
    return value.new_empty(batch, queries, heads * value.shape[-1])


def _backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    _check(value, shapes, starts, locations, weights)
    _check_levels(value, shapes, starts)
    grads = pytorch.backward(grad_output, value, shapes, starts, locations, weights, output_mask)
    return tuple(value.new_empty(0) if grad is None else grad for grad in grads)


def _fake_backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = zip((value, locations, weights), output_mask, strict=True)
    return tuple(t.new_empty(t.shape if wanted else 0) for t, wanted in tensors)


def _save_inputs(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(backward_operator, ctx, grad_output: Tensor):
    output_mask = [ctx.needs_input_grad[i] for i in (0, 3, 4)]
    grads = backward_operator(grad_output, *ctx.saved_tensors, output_mask)
    value, locations, weights = _wanted(grads, output_mask)
    return value, None, None, locations, weights


def _save_backward_inputs(ctx, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.output_mask = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_backward(ctx, *grad_grads: Tensor):
    """The second derivative: that of the gather form's first, on every backend."""
    inputs = list(ctx.saved_tensors)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        if not create_graph:
            inputs = [
                tensor.detach().requires_grad_(needed)
                for tensor, needed in zip(inputs, ctx.needs_input_grad, strict=False)
            ]
        outputs = _gather_gradients(*inputs, ctx.output_mask)
        pairs = [(o, g) for o, g in zip(outputs, grad_grads, strict=True) if o is not None]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[:6]) if needed]
        results = torch.autograd.grad(
            [output for output, _ in pairs],
            [inputs[i] for i in wanted],
            [grad for _, grad in pairs],
            create_graph=create_graph,
            materialize_grads=True,
        )
    found = dict(zip(wanted, results, strict=True))
    return (*(found.get(i) for i in range(6)), None)


def _gather_gradients(
    grad_output: Tensor,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    grads = grad_output.to(weights.dtype).view(*weights.shape[:3], value.shape[-1])
    wide = value.to(weights.dtype)
    results = pytorch.gather_backward(grads, wide, shapes, starts, locations, weights, output_mask)
    return (None if results[0] is None else results[0].to(value.dtype), *results[1:])


class _ForwardModeLibrary:
    """Where ``register_autograd`` leaves its kernel, which drops tangents without a word.

    Inputs with tangents go past it, to the operator in basic operations, which have their rules.
    """

    def __init__(self, spelled_out):
        self._spelled_out = spelled_out

    def impl(self, name: str, kernel, key: str, **options) -> None:
        def with_tangents(keyset, *inputs):
            if _has_tangent(*inputs):
                return self._spelled_out(*inputs)
            return kernel(keyset, *inputs)

        _library.impl(name, with_tangents, key, **options)


def _spelled_out_forward(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    _check(value, shapes, starts, locations, weights)
    _check_levels(value, shapes, starts)
    return _spelled_out(value, shapes, starts, locations, weights)


def _spelled_out_backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (grad_output, value, shapes, starts, locations, weights, output_mask)
    if not value.numel() * weights.numel():
        return _backward(*inputs)
    _check(*inputs[1:6])
    _check_levels(*inputs[1:4])
    with torch.autocast(value.device.type, enabled=False):
        grads = _gather_gradients(*inputs)
    return tuple(value.new_empty(0) if grad is None else grad for grad in grads)


def _wanted(tensors: Sequence[Tensor], output_mask: Sequence[bool]) -> list[Tensor | None]:
    return [t if wanted else None for t, wanted in zip(tensors, output_mask, strict=True)]


def _under_autocast(operator, device_type: str, *inputs):
    """Autocast would cast everything to one type and ruin the locations."""
    value, shapes, starts, *geometry = inputs
    geometry = [tensor.float() if tensor.dtype in _HALVES else tensor for tensor in geometry]
    with torch.autocast(device_type, enabled=False):
        return operator(value, shapes, starts, *geometry)


def _register(name: str, forward) -> None:
    """Define an operator and its backward; the latter's derivative is PyTorch's own."""
    backward_name = f"{name}_backward"
    tags = (torch.Tag.pt2_compliant_tag,)
    _library.define(f"{name}({_INPUTS}) -> Tensor", tags=tags)
    _library.define(
        f"{backward_name}(Tensor grad_output, {_INPUTS}, bool[3] output_mask) "
        "-> (Tensor, Tensor, Tensor)",
        tags=tags,
    )
    _library.impl(name, forward, "CompositeExplicitAutograd")
    _library.impl(backward_name, _backward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"isda::{name}", _fake_forward, lib=_library)
    torch.library.register_fake(f"isda::{backward_name}", _fake_backward, lib=_library)
    operator = getattr(torch.ops.isda, name).default
    backward_operator = getattr(torch.ops.isda, backward_name).default
    torch.library.register_autograd(
        f"isda::{name}",
        functools.partial(_differentiate, backward_operator),
        setup_context=_save_inputs,
        lib=_ForwardModeLibrary(_spelled_out_forward),
    )
    torch.library.register_autograd(
        f"isda::{backward_name}",
        _differentiate_backward,
        setup_context=_save_backward_inputs,
        lib=_ForwardModeLibrary(_spelled_out_backward),
    )
    for key, device_type in (("AutocastCPU", "cpu"), ("AutocastCUDA", "cuda")):
        kernel = functools.partial(_under_autocast, operator, device_type)
        _library.impl(name, kernel, key)


def _register_cuda() -> None:
    """Only Python can tell whether to be deterministic, so it chooses the CUDA kernel's way."""
    _library.define(
        f"ms_deform_attn_backward_cuda(Tensor grad_output, {_INPUTS}, bool[3] output_mask, "
        "bool deterministic) -> (Tensor, Tensor, Tensor)"
    )
    if "cuda" not in selection.load_extensions():
        _library.impl("ms_deform_attn_backward", _cuda_backward, "CUDA")
    if selection.uses_nvrtc():
        _library.impl("ms_deform_attn", _nvrtc_forward, "CUDA")
        _library.impl("ms_deform_attn_backward_cuda", _nvrtc_backward, "CUDA")


def _cuda_backward(*inputs) -> tuple[Tensor, Tensor, Tensor]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    return torch.ops.isda.ms_deform_attn_backward_cuda(*inputs, deterministic)


def _nvrtc_forward(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    _check(value, shapes, starts, locations, weights)
    _check_levels(value, shapes, starts)
    return nvrtc.forward(value, shapes, starts, locations, weights)


def _nvrtc_backward(grad_output: Tensor, *inputs) -> tuple[Tensor, Tensor, Tensor]:
    _check(*inputs[:5])
    _check_levels(*inputs[:3])
    return nvrtc.backward(grad_output, *inputs)


# The second pair never gets compiled kernels: it is what forcing PyTorch calls.
_register("ms_deform_attn", _announced_forward)
_register("ms_deform_attn_pure", _forward)
_register_cuda()
