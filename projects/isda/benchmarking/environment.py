"""What measured numbers depend on."""

import datetime
import platform
from pathlib import Path

import torch

__all__ = ["describe_environment", "processor_name"]


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


def processor_name() -> str:
    """Its model where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
