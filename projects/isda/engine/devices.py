"""Checks of device names."""

import torch

from isda.errors import UserError

__all__ = ["DeviceError", "check_device"]


class DeviceError(UserError, ValueError):
    """There is no such device; the message says what there is."""


def check_device(name: str | torch.device, *, may_lack_cuda: bool = False) -> torch.device:
    """The device of a name.

    Args:
        may_lack_cuda: a CUDA device is accepted where there is none at all, as the default of
            ``MODEL.DEVICE``, in whose place the CPU is taken then.

    Raises:
        DeviceError: PyTorch knows no such name, or this machine has no such device.
    """
    try:
        device = torch.device(str(name))
    except RuntimeError as error:
        raise DeviceError(f"there is no device {str(name)!r}: {_choice()}") from error
    if device.type == "cpu" or (
        may_lack_cuda and device.type == "cuda" and not torch.cuda.is_available()
    ):
        return device
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None or found.type != device.type:
        raise DeviceError(
            f"no device {str(name)!r} can be used here (isda doctor says what there is): "
            f"{_choice()}"
        )
    if (device.index or 0) >= torch.accelerator.device_count():
        raise DeviceError(f"there is no device {str(name)!r}: {_choice()}")
    return device


def _choice() -> str:
    """What may be given instead."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return "give cpu, the only one here"
    names = [f"{found.type}:{index}" for index in range(torch.accelerator.device_count())]
    return f"give cpu, {found.type} or {' or '.join(names)}"
