"""The operators that are compared, all called alike."""

import functools
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from isda import ops
from isda.ops import pytorch

__all__ = ["Contender", "by_name", "repaired"]

REFERENCE = "grid_sample"
_NATIVE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_WIDE = (torch.float64, torch.float32)


@dataclass(frozen=True)
class Contender:
    """``function(value, shapes, starts, locations, weights)`` for these types of the value."""

    function: Callable[..., Tensor]
    dtypes: tuple[torch.dtype, ...] = _WIDE

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def by_name(
    device: str, wanted: Sequence[str], reference_cuda: Path | None
) -> tuple[dict[str, Contender], list[str]]:
    """Those that can run on the device, and a line on each that cannot.

    Args:
        wanted: names; none means all. The reference is always among the results.
        reference_cuda: Deformable DETR's folder of the operator's sources.
    """
    found, left_out = {REFERENCE: Contender(_grid_sample)}, []
    built = ops.backends()
    if device in built.built:
        found[f"isda {device}"] = Contender(_forced(device), _NATIVE)
    else:
        left_out.append(f"isda {device}: {built.missing.get(device)}")
    found["isda torch"] = Contender(_forced("torch"), _NATIVE)
    found["gather"] = Contender(_gather)
    for name, load in (("torch-ms-deform-attn", _torch_ms_deform_attn), ("mmcv", _mmcv)):
        try:
            found[name] = load(device)
        except (ImportError, RuntimeError) as error:
            left_out.append(f"{name}: {error}")
    if reference_cuda is not None:
        found["2020 kernel"] = _kernel_of_2020(reference_cuda)
    elif device == "cuda":
        left_out.append("2020 kernel: no --reference-cuda")
    if unknown := set(wanted) - set(found):
        raise SystemExit(f"--contenders: no {', '.join(sorted(unknown))}; {'; '.join(left_out)}")
    chosen = {n: c for n, c in found.items() if not wanted or n in wanted or n == REFERENCE}
    return chosen, left_out


def _grid_sample(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    return pytorch.grid_sample_form(value, shapes.tolist(), starts.tolist(), locations, weights)


def _gather(*inputs: Tensor) -> Tensor:
    return pytorch.gather_forward(*inputs).flatten(2)


def _forced(backend: str) -> Callable[..., Tensor]:
    def call(*inputs: Tensor) -> Tensor:
        with ops.backend(backend):
            return ops.ms_deform_attn(*inputs)

    return call


def _torch_ms_deform_attn(device: str) -> Contender:
    from torch_ms_deform_attn import ms_deform_attn

    def call(value: Tensor, shapes: Tensor, starts: Tensor, *rest: Tensor) -> Tensor:
        return ms_deform_attn(value, _on(value.device, shapes), _on(value.device, starts), *rest)

    call(*_tiny(device))  # it may have been built without this device
    return Contender(call)


def _mmcv(device: str) -> Contender:
    from mmcv.ops.multi_scale_deform_attn import (
        MultiScaleDeformableAttnFunction,
        multi_scale_deformable_attn_pytorch,
    )

    if device == "cpu":
        return Contender(lambda v, shapes, _, *rest: multi_scale_deformable_attn_pytorch(
            v, shapes, *rest))  # fmt: skip

    def call(value: Tensor, shapes: Tensor, starts: Tensor, *rest: Tensor) -> Tensor:
        levels = (_on(value.device, shapes), _on(value.device, starts))
        return MultiScaleDeformableAttnFunction.apply(value, *levels, *rest, 64)

    call(*_tiny(device))
    return Contender(call)


def _tiny(device: str) -> tuple[Tensor, ...]:
    ones = torch.ones(1, 1, 1, 1, 1, device=device)
    return (ones[0], torch.ones(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64),
            torch.full((1, 1, 1, 1, 1, 2), 0.5, device=device), ones)  # fmt: skip


@functools.lru_cache(maxsize=16)
def _level_table(device: torch.device, numbers: tuple, shape: tuple) -> Tensor:
    return torch.tensor(numbers, device=device).view(shape)


def _on(device: torch.device, table: Tensor) -> Tensor:
    """Levels on the value's device, where others want them; copied once, not per call."""
    return _level_table(device, tuple(table.flatten().tolist()), tuple(table.shape))


def repaired(source: str) -> str:
    """The source of 2020 with its two dispatches as PyTorch wants them since 2.x.

    They pass a deprecated type where a scalar type is asked for.
    """
    pattern = r"(AT_DISPATCH_\w+\(\s*\w+)\.type\(\)"
    return re.sub(pattern, r"\1.scalar_type()", source)


def _kernel_of_2020(folder: Path) -> Contender:
    from torch.utils.cpp_extension import load

    sources = folder / "src"
    if not (sources / "cuda").is_dir():
        raise SystemExit(f"--reference-cuda: {folder} has no src/cuda: name Deformable DETR's "
                         "folder models/ops")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "src"
        shutil.copytree(sources, copy)
        for path in [*copy.rglob("*.cu"), *copy.rglob("*.cpp"), *copy.rglob("*.h")]:
            path.write_text(repaired(path.read_text(encoding="utf-8")), encoding="utf-8")
        parts = ("*.cpp", "cpu/*.cpp", "cuda/*.cu")
        module = load(
            "isda_benchmark_kernel_of_2020",
            [str(path) for part in parts for path in copy.glob(part)],
            extra_include_paths=[str(copy)],
            extra_cflags=["-O3", "-DWITH_CUDA"],
            extra_cuda_cflags=["-O3", "-lineinfo", "-DWITH_CUDA"],  # as ours
        )
    return Contender(functools.partial(_Kernel2020.call, module))


class _Kernel2020(torch.autograd.Function):
    """Deformable DETR's operator as its own module calls it."""

    @classmethod
    def call(cls, module, value: Tensor, shapes: Tensor, starts: Tensor, *rest: Tensor) -> Tensor:
        levels = (_on(value.device, shapes), _on(value.device, starts))
        return cls.apply(module, value, *levels, *rest)

    @staticmethod
    def forward(ctx, module, *inputs: Tensor) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(*inputs)
        return module.ms_deform_attn_forward(*inputs, _step(inputs[0]))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        inputs = ctx.saved_tensors
        grads = ctx.module.ms_deform_attn_backward(*inputs, grad.contiguous(), _step(inputs[0]))
        return None, grads[0], None, None, *grads[1:]


def _step(value: Tensor) -> int:
    """Images per launch, which must divide the batch."""
    return min(64, value.shape[0])
