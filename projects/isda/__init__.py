"""End-to-end, NMS-free instance segmentation on Detectron2.

``from isda import Predictor`` applies a trained model to images, ``from isda import model_zoo``
has the models that there are. ``from isda import add_config`` (or ``add_isda_config`` for the keys
of one method) registers the meta-architectures, backbones and data sets with Detectron2. So does
``import isda`` alone in a program that imports ``detectron2.engine``, before or after, such as one
that builds a ``DefaultPredictor`` from the ``config.yaml`` of a training.
``import isda.ops`` alone needs nothing but PyTorch.
"""

import importlib
import importlib.util

from isda._imports import before_import_of, put_off_dynamo
from isda._warnings import ignore_known_warnings

__all__ = [
    "Predictor",
    "add_blendmask_config",
    "add_condinst_config",
    "add_config",
    "add_isda_config",
    "add_istr_config",
    "add_solo_config",
    "model_zoo",
]

_HOMES = {"Predictor": "isda.prediction.predictor"}  # all others: isda.config
_REGISTERING = ("isda.modeling.backbone", "isda.meta_arch", "isda.data")

ignore_known_warnings()
put_off_dynamo()


def _register() -> None:
    """Import what registers itself with Detectron2; none of it imports ``detectron2.engine``."""
    for module in _REGISTERING:
        importlib.import_module(module)


def __getattr__(name: str):
    # Here and not above: whoever wants only the operator is spared Detectron2 and the models.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec("detectron2") is None:
        raise ImportError("isda needs Detectron2: docs/INSTALL.md says how it is installed")
    _register()
    if name == "model_zoo":
        return importlib.import_module("isda.model_zoo")
    globals()[name] = getattr(importlib.import_module(_HOMES.get(name, "isda.config")), name)
    return globals()[name]


# Not at once: Detectron2 takes seconds to import, and `isda --help` and isda.ops do without it.
before_import_of("detectron2.engine.defaults", _register)
