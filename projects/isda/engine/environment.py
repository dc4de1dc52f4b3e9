"""Record of where and how a training ran: machine, versions, command, duration."""

import importlib.util
import json
import logging
import os
import platform
import shlex
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm

from isda import strict_json
from isda.data.registration import is_temporary
from isda.files import copy_file, write_text
from isda.machine import commit, processor_name, version_of

__all__ = ["FILE_NAME", "EnvironmentRecorder", "machine", "read_environment", "versions"]

logger = logging.getLogger(__name__)

FILE_NAME = "environment.json"
_STARTED = time.time()  # of the process, nearly: this module is imported first of all
_GIB = 2**30
_PACKAGES = (
    *("isda", "torch", "torchvision", "detectron2", "numpy", "pycocotools", "pillow"),
    *("opencv-python-headless", "opencv-python"),
)


class EnvironmentRecorder(HookBase):
    """Writes machine, versions, command and duration to ``OUTPUT_DIR/environment.json``.

    Each process that takes part in a training, so each resumption, is a session of its own. One
    that was killed has no end. For the main process only.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg
        self._path = Path(cfg.OUTPUT_DIR) / FILE_NAME
        self._sessions: list[dict] = []

    def before_train(self) -> None:
        resumed = self.trainer.start_iter > 0
        self._sessions = read_environment(self.cfg.OUTPUT_DIR).get("sessions", []) * resumed
        self._sessions.append(
            {
                "started": _now(_STARTED),
                "first_iteration": self.trainer.start_iter,
                "planned_iterations": self.trainer.max_iter,
                "command": shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
                "folder": os.getcwd(),
                "commit": commit(),
                "machine": machine(self.cfg.MODEL.DEVICE),
                "versions": versions(),
            }
        )
        self._write()

    def after_train(self) -> None:
        # Also after an error or Ctrl-C; and where a resumed training stopped before it began.
        if not self._sessions:
            return
        self._sessions[-1] |= {
            "ended": _now(time.time()),
            "seconds": round(time.time() - _STARTED, 1),
            "iterations": self.trainer.iter,
            "peak_memory": _peak_memory(),
        }
        self._write()

    def _write(self) -> None:
        content = {"sessions": self._sessions, "data": _data(self.cfg)}
        write_text(self._path, strict_json.dumps(content, indent=1) + "\n")


def read_environment(folder: str | os.PathLike) -> dict:
    """What :class:`EnvironmentRecorder` wrote there; empty if there is nothing, or not JSON."""
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        logger.warning("%s cannot be read: %s", path, error)
        return {}
    return content if isinstance(content, dict) else {}


def machine(device: str = "cpu") -> dict:
    """Processor, memory and GPUs; those that this process sees, not those of the whole house.

    Args:
        device: ``MODEL.DEVICE``; GPUs are listed only where the model is on one.
    """
    gpus = range(torch.cuda.device_count()) if device.startswith("cuda") else ()
    return {
        "system": platform.platform(),
        "cpu": processor_name(),
        "cores": _usable_cores(),
        "threads": torch.get_num_threads(),
        "memory": _memory(),
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
        "processes": comm.get_world_size(),
    }


def versions() -> dict[str, str]:
    """Of Python, of the packages that decide about results, and of CUDA where PyTorch has it."""
    found = {"python": platform.python_version()}
    found |= {name: version for name in _PACKAGES if (version := version_of(name))}
    # As they say themselves: with the build, and however they were installed.
    found |= {"torch": str(torch.__version__), "detectron2": detectron2.__version__}
    if torch.version.cuda:
        found["CUDA"] = torch.version.cuda
    return found


def _data(cfg: CfgNode) -> dict[str, list[dict]]:
    """Per use the data sets and their files, as far as these are in COCO's format."""
    used = {"train": cfg.DATASETS.TRAIN, "test": cfg.DATASETS.TEST}
    return {use: [_source(name, cfg.OUTPUT_DIR) for name in used[use]] for use in used}


def _source(name: str, folder: str) -> dict:
    metadata = MetadataCatalog.get(name)
    json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
    if json_file is None or metadata.get("evaluator_type", "coco") != "coco":
        return {"name": name}
    if is_temporary(json_file):
        # Cleaned or split by this process: without a copy nobody could look at it again.
        kept = Path(folder) / f"annotations_{name}.json"
        copy_file(json_file, kept)
        json_file = kept
    return {
        "name": name,
        "json_file": os.path.abspath(json_file),
        "image_root": os.path.abspath(image_root or "."),
    }


def _now(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).astimezone().isoformat(timespec="seconds")


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> float | None:
    """Of the machine, in GiB."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB, 1)
    except (AttributeError, ValueError, OSError):  # no such thing on this system
        return None


def _peak_memory() -> dict[str, float]:
    """GiB of this process, and of its GPU where it has used one."""
    peak = {}
    if importlib.util.find_spec("resource"):  # not on Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        peak["host"] = round(used / _GIB, 2)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["gpu"] = round(torch.cuda.max_memory_allocated() / _GIB, 2)
    return peak
