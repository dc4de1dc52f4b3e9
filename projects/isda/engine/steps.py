"""Optimiser steps: accumulation, mixed precision, clipping, and what is not finite."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from isda.engine.random_state import preserved_random_state
from isda.weights_files import WeightsError

__all__ = ["StepTrainer", "averaged_model"]

logger = logging.getLogger(__name__)

_ADVICE = (
    "Lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS, look at the images and annotations "
    "named above, and train in bfloat16 or without SOLVER.AMP instead of float16"
)
# What these optimisers keep of each parameter.
_MOMENTS = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "SGD": {"momentum_buffer"}}


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of ``model`` for the exponential moving average of its parameters and buffers.

    In the n-th step the decay is at most n / (n + 10), so that short trainings do not keep their
    random start.
    """

    def average(averages: list[Tensor], values: list[Tensor], steps: Tensor | int) -> None:
        steps = int(steps)
        get_ema_multi_avg_fn(min(decay, steps / (steps + 10)))(averages, values, steps)

    copy = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    return copy.requires_grad_(False)


class StepTrainer(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` with several passes per step and a check of every number.

    With ``accumulation`` the loss is the mean over the passes. Each pass normalises by its own
    number of matched pairs, so one step equals the step of one big batch where these numbers
    agree, and weighs instances a little differently where they do not. Everything else (weights,
    clipping, schedule, averaging) happens once per step.

    A step with a loss or gradient that is not finite is skipped in all processes; it is reported
    with the images and loss terms that caused it.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict]],
        optimizer: torch.optim.Optimizer,
        *,
        clip_gradients: Callable[[Iterable[nn.Parameter]], Tensor],
        accumulation: int = 1,
        amp_dtype: torch.dtype | None = None,
        averaged: AveragedModel | None = None,
        max_nonfinite_steps: int = 5,
    ):
        """
        Args:
            data_loader: batches, one per pass.
            clip_gradients: clips in place and returns the gradients' norm.
            amp_dtype: bfloat16 or float16 (with a gradient scaler); None for full precision.
            averaged: updated after every step that was not skipped.
            max_nonfinite_steps: so many skipped steps in a row raise FloatingPointError.
        """
        super().__init__(model, data_loader, optimizer)
        self.device = next(model.parameters()).device
        self.clip_gradients = clip_gradients
        self.accumulation = accumulation
        self.amp_dtype = amp_dtype
        self.averaged = averaged
        self.max_nonfinite_steps = max_nonfinite_steps
        self.nonfinite_steps = 0  # in a row
        self.grad_scaler = torch.amp.GradScaler(
            self.device.type, enabled=amp_dtype is torch.float16
        )
        self._statistics = _RunningStatistics(self.bare_model)

    def set_precision(self, dtype: torch.dtype | None) -> None:
        """Compute in another type from here on; arguments as ``amp_dtype``."""
        self.amp_dtype = dtype
        if self.grad_scaler.is_enabled() != (dtype is torch.float16):
            self.grad_scaler = torch.amp.GradScaler(
                self.device.type, enabled=dtype is torch.float16
            )

    @property
    def bare_model(self) -> nn.Module:
        """The model without DistributedDataParallel around it."""
        distributed = isinstance(self.model, DistributedDataParallel)
        return self.model.module if distributed else self.model

    def run_step(self) -> None:
        """Read the batches of one step, and train on them or skip them."""
        assert self.model.training
        start = time.perf_counter()
        batches = [next(self._data_loader_iter) for _ in range(self.accumulation)]
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        self._statistics.save()
        losses = self._accumulate(batches)
        if losses is None:
            return
        self.after_backward()
        if not self._update(batches):
            return
        self.nonfinite_steps = 0
        self._write_metrics(losses, data_time)

    def _accumulate(self, batches: list[list[dict]]) -> dict[str, Tensor] | None:
        """Add up the gradients of all passes; the mean losses, or None if the step is skipped."""
        mean: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, start=1):
            with self._reduction(last=number == len(batches)):
                losses = self._losses(self.model, batch)
                total = sum(losses.values())
                # Decided by all processes before the backward pass: it is there that they wait
                # for each other.
                if not _true_everywhere(torch.isfinite(total)):
                    self._skip(self._culprits(batch, losses))
                    return None
                self.grad_scaler.scale(total / len(batches)).backward()
            for name, loss in losses.items():
                mean[name] = mean.get(name, 0) + loss.detach() / len(batches)
        return mean

    def _update(self, batches: list[list[dict]]) -> bool:
        """Clip, step and average; False if the gradients do not allow a step."""
        self.grad_scaler.unscale_(self.optimizer)
        norm = self.clip_gradients(self.model.parameters())
        finite = bool(torch.isfinite(norm))
        # A scaler that starts too high finds its scale by overflowing. Below 1 it is no longer
        # the scale that is at fault.
        searching = self.grad_scaler.is_enabled() and self.grad_scaler.get_scale() > 1
        if finite or searching:
            self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        if not finite:
            if not searching:
                names = ", ".join(_names(image) for batch in batches for image in batch)
                self._skip([f"the gradients, while the loss is finite, of {names}"])
            self.optimizer.zero_grad()
            return searching
        get_event_storage().put_scalar("grad_norm", float(norm))
        if self.averaged is not None:
            self.averaged.update_parameters(self.bare_model)
        return True

    def _losses(self, model: nn.Module, batch: list[dict]) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            losses = model(batch)
        return losses if isinstance(losses, dict) else {"total_loss": losses}

    @contextlib.contextmanager
    def _reduction(self, last: bool) -> Iterator[None]:
        """Processes exchange gradients in the last pass only."""
        if last or not isinstance(self.model, DistributedDataParallel):
            yield
        else:
            with self.model.no_sync():
                yield

    def _skip(self, culprits: list[str]) -> None:
        """Leave the weights as they are, say why, and stop after several times in a row."""
        self._statistics.restore()
        self.optimizer.zero_grad()
        self.nonfinite_steps += 1
        culprits = [line for lines in comm.all_gather(culprits) for line in lines]
        message = (
            f"iteration {self.iter}: not finite: {'; '.join(culprits)}. The step is skipped "
            f"({self.nonfinite_steps} in a row, SOLVER.MAX_NONFINITE_STEPS is "
            f"{self.max_nonfinite_steps})"
        )
        broken = [n for n, p in self.bare_model.named_parameters() if not p.isfinite().all()]
        if broken:
            raise FloatingPointError(
                f"{message}. The weights themselves are no longer finite ({broken[0]} and "
                f"{len(broken) - 1} more); resume from an earlier checkpoint. {_ADVICE}"
            )
        if self.nonfinite_steps >= self.max_nonfinite_steps:
            raise FloatingPointError(f"{message}. {_ADVICE}")
        logger.warning(message)

    @torch.no_grad()
    def _culprits(self, batch: list[dict], losses: dict[str, Tensor]) -> list[str]:
        """Which images, taken alone, give which terms that are not finite.

        All processes do this together, because a model's loss may communicate.
        """
        found = []
        with preserved_random_state(), self._statistics.frozen():
            for image in batch:
                terms = _nonfinite(self._losses(self.bare_model, [image]))
                if terms:
                    found.append(f"{terms} of {_names(image)}")
        terms = _nonfinite(losses)
        if terms and not found:
            found.append(f"{terms} of {', '.join(_names(image) for image in batch)} together")
        return found

    def state_dict(self) -> dict:
        state = super().state_dict()
        state["grad_scaler"] = self.grad_scaler.state_dict()
        state["nonfinite_steps"] = self.nonfinite_steps
        state["parameters"] = self._parameter_names()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue with the moments of the checkpoint, and with the rates of this optimiser."""
        names = state_dict.get("parameters")
        saved = self._matched(state_dict["optimizer"], names)
        super().load_state_dict(state_dict | {"optimizer": saved})
        self.nonfinite_steps = state_dict.get("nonfinite_steps", 0)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])

    def _parameter_names(self) -> list[str]:
        """In the order of the optimiser's groups."""
        names = {parameter: name for name, parameter in self.bare_model.named_parameters()}
        return [names[p] for group in self.optimizer.param_groups for p in group["params"]]

    def _matched(self, saved: dict, names: list[str] | None) -> dict:
        """The moments of ``saved`` by the parameters' names, in this optimiser's groups.

        Groups follow from rates and decays: with other ones they are others, in another order.
        """
        ours = self._parameter_names()
        by_name = {
            name: saved["state"][index]
            for index, name in enumerate(names or ours)
            if index in saved["state"]
        }
        self._check_moments({name: by_name[name] for name in ours if name in by_name})
        state = {index: by_name[name] for index, name in enumerate(ours) if name in by_name}
        return {"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]}

    def _check_moments(self, moments: dict[str, dict]) -> None:
        """
        Raises:
            WeightsError: they are another optimiser's, which this one would ignore, or those of
                parameters of other shapes.
        """
        kind = type(self.optimizer).__name__
        parameters = dict(self.bare_model.named_parameters())
        for name, state in moments.items():
            if not state:
                continue
            tensors = (value for value in state.values() if isinstance(value, Tensor))
            shapes = {tensor.shape for tensor in tensors if tensor.dim() > 0}
            if state.keys() != _MOMENTS.get(kind, state.keys()) or shapes - {
                parameters[name].shape
            }:
                raise WeightsError(
                    f"--resume: what the checkpoint has of the optimiser is not the state of "
                    f"{kind} for this model ({name}: {', '.join(map(str, state))}): start a new "
                    "training from its weights: without --resume, with MODEL.WEIGHTS and another "
                    "OUTPUT_DIR"
                )


class _RunningStatistics:
    """Batch normalisation's buffers, which a forward pass changes even if its step is skipped."""

    def __init__(self, model: nn.Module):
        self.modules = [
            module
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        self.buffers = [b for module in self.modules for b in module.buffers(recurse=False)]
        self.saved: list[Tensor] = []

    def save(self) -> None:
        self.saved = [buffer.clone() for buffer in self.buffers]

    def restore(self) -> None:
        for buffer, saved in zip(self.buffers, self.saved, strict=True):
            buffer.copy_(saved)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Normalise by what was saved: single images may be too small to have statistics."""
        self.restore()
        training = [module for module in self.modules if module.training]
        for module in training:
            module.eval()
        try:
            yield
        finally:
            for module in training:
                module.train()


def _true_everywhere(flag: Tensor) -> bool:
    """Whether a scalar flag is true in all processes."""
    flag = flag.to(torch.int32)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
    return bool(flag)


def _nonfinite(losses: dict[str, Tensor]) -> str:
    return ", ".join(f"{k} = {float(v)}" for k, v in losses.items() if not torch.isfinite(v))


def _names(image: dict) -> str:
    return str(image.get("file_name", image.get("image_id", "an image without a name")))
