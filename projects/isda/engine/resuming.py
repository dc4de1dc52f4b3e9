"""Comparison of a configuration with the checkpoint's on ``--resume``."""

from typing import Any, NamedTuple

import yaml
from detectron2.config import CfgNode

from isda.checkpoint import classes_in, compare_classes, open_last_checkpoint
from isda.config import present_names
from isda.data.classes import classes_of
from isda.engine.config_keys import OnResume, flattened, idle_reason, on_resume
from isda.errors import ConfigError

__all__ = ["Resumption", "find_resumption", "saved_config"]

# 0 lets a training find them in its images, and so keeps what it found.
_FOUND = ("TEST.TILES.IMAGE_SIZE",)
_SHOWN = 60  # characters of a value


class Resumption(NamedTuple):
    """A checkpoint that a training is to go on from."""

    path: str
    classes: dict[str, list] | None
    config: dict[str, Any]  # full names of keys; empty: a checkpoint of before it had one

    def check(self, cfg: CfgNode, defaults: CfgNode) -> list[str]:
        """Compares with the configuration and the data of this start.

        Args:
            defaults: tell the value of keys that the checkpoint's configuration does not know.

        Returns:
            What has changed, one sentence for all that holds, and one for each key that does not.

        Raises:
            ConfigError: a key that cannot change has changed.
            WeightsError: the classes are others.
        """
        compare_classes(self.path, self.classes, classes_of(cfg.DATASETS.TRAIN[0]))
        changes = self._changes(cfg, defaults)
        self._refuse({k: v for k, v in changes.items() if on_resume(k) is OnResume.REFUSED})
        kept = [k for k in changes if on_resume(k) is OnResume.KEPT]
        holding = _listing({k: v for k, v in changes.items() if k not in kept})
        notes = [f"--resume: in effect from here on: {holding}"] if holding else []
        return notes + [f"{k} has no effect: --resume continues {self.path}" for k in kept]

    def _changes(self, cfg: CfgNode, defaults: CfgNode) -> dict[str, tuple[Any, Any]]:
        """The value before and now of each key that has changed and does something."""
        if not self.config:
            return {}
        before = _comparable(flattened(defaults) | self.config)
        now = _comparable(flattened(cfg))
        return {
            key: (before[key], value)
            for key, value in now.items()
            if key in before and before[key] != value and not _is_idle(cfg, key)
            if not (key in _FOUND and value == 0)
        }

    def _refuse(self, changes: dict[str, tuple[Any, Any]]) -> None:
        if changes:
            raise ConfigError(
                f"--resume: {self.path} cannot be continued with {_listing(changes)}: set "
                f"{'it' if len(changes) == 1 else 'them'} back, or start a new training from its "
                f"weights: without --resume, with MODEL.WEIGHTS {self.path} and another OUTPUT_DIR"
            )


def find_resumption(output_dir: str, *, to_train: bool = True) -> Resumption | None:
    """What ``--resume`` would continue in a folder; None: there is no training.

    Args:
        to_train: else for an evaluation, for which the model is enough.

    Raises:
        WeightsError: there is one, but its last checkpoint is gone, damaged, or of no training.
    """
    found = open_last_checkpoint(output_dir, to_train=to_train)
    if found is None:
        return None
    path, contents = found
    config = saved_config(contents["trainer"]) if to_train else {}
    return Resumption(path, classes_in(contents), config)


def saved_config(state: dict) -> dict[str, Any]:
    """Values by the full names of keys, out of the state of a trainer."""
    text = state.get("config")
    return read_flat(text) if isinstance(text, str) else {}


def read_flat(text: str) -> dict[str, Any]:
    """Values by the full, present names of keys; none of what is no table of keys."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return present_names(flattened(content)) if isinstance(content, dict) else {}


def _is_idle(cfg: CfgNode, key: str) -> bool:
    condition = idle_reason(key)
    return bool(condition and condition(cfg))


def _comparable(flat: dict[str, Any]) -> dict[str, Any]:
    """With lists for tuples, as files have them, and the learning rate of this batch.

    A folder may be renamed without a word.
    """
    flat = {key: list(v) if isinstance(v, tuple) else v for key, v in flat.items()}
    flat.pop("OUTPUT_DIR")
    reference = flat.pop("SOLVER.REFERENCE_BATCH")
    if reference > 0:
        scale = flat["SOLVER.IMS_PER_BATCH"] / reference
        for key in ("SOLVER.BASE_LR", "SOLVER.BASE_LR_END"):
            flat[key] *= scale
    return flat


def _listing(changes: dict[str, tuple[Any, Any]]) -> str:
    return ", ".join(
        f"{key} {_shown(now)} instead of {_shown(before)}" for key, (before, now) in changes.items()
    )


def _shown(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
