"""Parameters and multiply-adds of models."""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from detectron2.utils.analysis import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import nn

from isda.benchmarking.components import component_of, first_modules

__all__ = ["count_flops", "count_parameters"]

_WRAPPER = "model"  # Detectron2's analysis puts the model into a module that can be traced


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Per component; trained or frozen."""
    first = first_modules(model)
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[component_of(name, first)] += parameter.numel()
    return dict(counts)


def count_flops(model: nn.Module, inputs: list[dict]) -> tuple[dict[str, int], dict[str, int]]:
    """Multiply-adds of one call at inference, as fvcore counts them.

    Beyond fvcore's own formulas:

    - Deformable attention is traced as bilinear samples, B·Q·heads·levels·points of them, each of
      C / heads channels; a channel of a sample costs 4, one per neighbouring cell. (The attention
      weight costs nothing more: kernels multiply it into the four coefficients.)
    - Attention costs 2·C per pair of query and key: one product for the weight, one for the sum.

    Returns:
        Counts per component, and how often operators without a formula occurred. What no module
        contains is postprocessing: before it, there are only operators that count as nothing.
    """
    analysis = FlopCountAnalysis(model, [{"image": x["image"]} for x in inputs])
    analysis.set_op_handle(
        **{
            "aten::grid_sampler": _bilinear_samples,
            "aten::scaled_dot_product_attention": _attention,
        }
    )
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator, whose parts could not be counted
    try:
        by_module = analysis.by_module()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    first = first_modules(model)
    counts: Counter[str] = Counter()
    for name, component in first.items():
        own = by_module[analysis.canonical_module_name(f"{_WRAPPER}.{name}")]
        counts[component] += own
        counts[_around(name, first)] -= own
    counts["postprocessing"] += by_module[""]
    return {c: int(n) for c, n in counts.items() if n}, dict(analysis.unsupported_ops())


def _around(name: str, first: dict[str, str]) -> str:
    """The component from whose count an inner one's has to be taken."""
    outer = name.rpartition(".")[0]
    component = component_of(outer, first)
    return "postprocessing" if component == "other" else component


def _bilinear_samples(inputs: Sequence, outputs: Sequence) -> int:
    """grid_sample: four products per number of the output, (images, channels, rows, columns)."""
    return 4 * math.prod(get_shape(outputs[0]))


def _attention(inputs: Sequence, outputs: Sequence) -> int:
    """Queries (..., Q, D), keys (..., K, D), values (..., K, E)."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
