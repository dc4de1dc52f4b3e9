"""Device, threads and versions that measured numbers depend on."""

import datetime
import platform

import torch

from isda.machine import processor_name

__all__ = ["describe_environment"]


def describe_environment(device: torch.device) -> dict:
    """Device, threads, versions and date."""
    import detectron2  # here, because the operator's benchmark does without it

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
