"""Parameter groups, optimisers and gradient clipping of the recipe."""

import math
from collections.abc import Callable, Iterable

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params
from torch import Tensor, nn

from isda.errors import ConfigError

__all__ = ["build_gradient_clipper", "build_optimizer", "learning_rate_factor"]

SAMPLING_MODULES = ("sampling_offsets", "reference_points")
CLIP_TYPES = ("full_model", "norm", "value")


def learning_rate_factor(
    name: str,
    *,
    backbone_multiplier: float,
    sampling_multiplier: float,
    pretrained_prefix: str = "backbone.",
    bias_factor: float = 1.0,
) -> float:
    """Learning rate of the parameter ``name`` relative to the base learning rate.

    The backbone's multiplier goes to what lies below ``pretrained_prefix``; the sampling
    multiplier to modules called ``sampling_offsets`` or ``reference_points`` (Deformable DETR,
    arXiv 2010.04159, section 5).
    """
    factor = bias_factor if name.endswith(".bias") else 1.0
    if name.startswith(pretrained_prefix):
        return factor * backbone_multiplier
    if any(part in SAMPLING_MODULES for part in name.split(".")):
        return factor * sampling_multiplier
    return factor


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD, as ``SOLVER.OPTIMIZER`` says; every trained parameter is in one group.

    A backbone with an FPN gets its multiplier on ``bottom_up`` only: the FPN's own layers start
    fresh. Clipping is not part of it, see ``build_gradient_clipper``.
    """
    solver = cfg.SOLVER
    with_fpn = hasattr(getattr(model, "backbone", None), "bottom_up")

    def factor(name: str) -> float:
        return learning_rate_factor(
            name,
            backbone_multiplier=solver.BACKBONE_MULTIPLIER,
            sampling_multiplier=solver.SAMPLING_MULTIPLIER,
            pretrained_prefix="backbone.bottom_up." if with_fpn else "backbone.",
            bias_factor=solver.BIAS_LR_FACTOR,
        )

    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=factor,
    )
    if solver.OPTIMIZER == "ADAMW":
        return torch.optim.AdamW(groups, solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
    if solver.OPTIMIZER == "SGD":
        return torch.optim.SGD(
            groups, solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV
        )
    raise ConfigError(f"SOLVER.OPTIMIZER must be ADAMW or SGD, got {solver.OPTIMIZER!r}")


def build_gradient_clipper(
    clip_type: str | None, clip_value: float = 1.0, norm_type: float = 2.0
) -> Callable[[Iterable[nn.Parameter]], Tensor]:
    """A function that clips the gradients of parameters in place.

    Args:
        clip_type: "full_model": the norm over all gradients together; "norm": of each parameter's
            gradient; "value": each element; None: nothing is clipped.

    Returns:
        The function's result is the norm over all gradients before clipping, a scalar.
    """
    if clip_type not in (None, *CLIP_TYPES):
        raise ConfigError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE must be one of {', '.join(CLIP_TYPES)}, "
            f"got {clip_type!r}"
        )
    max_norm = clip_value if clip_type == "full_model" else math.inf

    def clip(parameters: Iterable[nn.Parameter]) -> Tensor:
        parameters = [p for p in parameters if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
        if clip_type == "norm":
            for parameter in parameters:
                nn.utils.clip_grad_norm_(parameter, clip_value, norm_type)
        elif clip_type == "value":
            nn.utils.clip_grad_value_(parameters, clip_value)
        return norm

    return clip
