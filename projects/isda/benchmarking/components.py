"""A model's components: which of its modules belong to which, and how long each takes.

|Component|ISDA|ISTR|Detectron2's models|
|---|---|---|---|
|backbone|the network itself|the network itself|the network itself|
|neck|projections to one width|FPN|FPN|
|transformer|encoder, decoder, noised queries|queries, refinement steps||
|heads|classes, kernels, mask features|towers of the steps|all other modules|
|postprocessing|after the last module has returned|likewise|likewise|
|other|before and between the modules|likewise|likewise|

A module's time is that of its own without the components inside it, so all of them together are
the whole.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from detectron2.modeling.backbone import FPN, SimpleFeaturePyramid
from torch import nn
from torch.utils.hooks import RemovableHandle

from isda.benchmarking.timing import Timeline
from isda.benchmarking.workload import Training

__all__ = [
    "COMPONENTS",
    "PHASES",
    "InferenceTimer",
    "TrainingTimer",
    "component_of",
    "first_modules",
    "tensor_bytes",
]

COMPONENTS = ("backbone", "neck", "transformer", "heads", "postprocessing", "other")
PHASES = ("forward", "criterion", "backward", "optimiser")

_PATTERNS = {
    r"backbone\.(bottom_up|net)": "backbone",
    r"neck": "neck",
    r"transformer|denoising|queries|refinement": "transformer",
    r"refinement\.steps\.\d+\.(class_tower|box_tower|mask_tower|classes|deltas|masks)": "heads",
}


def first_modules(model: nn.Module) -> dict[str, str]:
    """Names of the modules at which a component begins, and the component."""
    found: dict[str, str] = {}
    for name, _ in model.named_modules():
        component = _stated(model, name)
        if component is not None and component != component_of(name, found):
            found[name] = component
    return found


def component_of(name: str, first: dict[str, str]) -> str:
    """Where a module or parameter belongs: to the innermost of ``first`` around it, or "other"."""
    while name:
        if name in first:
            return first[name]
        name = name.rpartition(".")[0]
    return "other"


def _stated(model: nn.Module, name: str) -> str | None:
    """The component that begins at this module, if one does."""
    if name == "backbone":
        has_neck = isinstance(model.backbone, (FPN, SimpleFeaturePyramid))
        return "neck" if has_neck else "backbone"
    for pattern, component in _PATTERNS.items():
        if re.fullmatch(pattern, name):
            return component
    return "heads" if name and "." not in name and name != "criterion" else None


class InferenceTimer:
    """Seconds of a model's calls, per component."""

    def __init__(
        self,
        model: nn.Module,
        timeline: Timeline,
        inputs: list[dict],
        autocast: AbstractContextManager | None = None,
    ):
        """
        Args:
            model: in evaluation mode.
            autocast: the context of each call.
        """
        self.model, self.timeline, self.inputs = model, timeline, inputs
        self.autocast = autocast or nullcontext()
        self.instances = 0  # of the last call's first image
        self._inside: list[str] = []
        self._hooks: list[RemovableHandle] = []
        for name, component in first_modules(model).items():
            module = model.get_submodule(name)
            self._hooks += [
                module.register_forward_pre_hook(lambda *_, c=component: self._enter(c)),
                module.register_forward_hook(lambda *_: self._leave()),
            ]

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Seconds of one call of the model."""
        self._inside.clear()
        self.timeline.start()
        with self.autocast:
            outputs = self.model(self.inputs)
        self.timeline.mark("postprocessing")
        self.instances = len(outputs[0].get("instances", ()))
        return self.timeline.seconds()

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, component: str) -> None:
        self.timeline.mark(self._inside[-1] if self._inside else "other")
        self._inside.append(component)

    def _leave(self) -> None:
        self.timeline.mark(self._inside.pop())


class TrainingTimer:
    """Seconds of training steps, per phase.

    The criterion is what comes after the last module of the network, targets and matching
    included. Detectron2's models compute their losses inside their heads, so for them it is a
    part of the forward pass.
    """

    def __init__(self, training: Training, timeline: Timeline, inputs: list[dict]):
        """The learning rate becomes 0: every step costs the same, whatever the recipe is."""
        self.training, self.timeline, self.inputs = training, timeline, inputs
        self.last = "criterion" if hasattr(training.model, "criterion") else "forward"
        for group in training.optimizer.param_groups:
            group["lr"] = 0.0
        for name, child in training.model.named_children():
            if name != "criterion":
                child.register_forward_hook(lambda *_: timeline.mark("forward"))
        if hasattr(training.model, "targets"):
            training.model.targets = self._of_criterion(training.model.targets)
        self._make_state()

    def __call__(self) -> dict[str, float]:
        """Seconds of one step, after which there are no gradients."""
        training, timeline = self.training, self.timeline
        timeline.start()
        with training.autocast():
            losses = training.model(self.inputs)
        timeline.mark(self.last)
        sum(losses.values()).backward()
        timeline.mark("backward")
        training.update()
        training.optimizer.zero_grad()
        timeline.mark("optimiser")
        return timeline.seconds()

    def _of_criterion(self, function: Callable) -> Callable:
        """The function, whose time belongs to the criterion although the network comes later."""

        def marked(*args):
            self.timeline.mark("forward")
            result = function(*args)
            self.timeline.mark("criterion")
            return result

        return marked

    def _make_state(self) -> None:
        """What the optimiser allocates in its first step is there before anything is measured."""
        for parameter in self._trained():
            parameter.grad = torch.zeros_like(parameter)
        self.training.optimizer.step()
        self.training.optimizer.zero_grad()

    def _trained(self) -> Iterator[nn.Parameter]:
        return (p for p in self.training.model.parameters() if p.requires_grad)


def tensor_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Of parameters, buffers and what the optimiser remembers."""
    tensors = [*model.parameters(), *model.buffers()]
    if optimizer is not None:
        for state in optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
