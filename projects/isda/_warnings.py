"""Deprecation warnings of dependencies that a user of this package cannot act on.

Each is named by its text and by the module that it is attributed to, so that nothing else is
hidden. `isda` ignores them when it is imported, and the tests hand them to pytest.
"""

import logging
import re
import warnings
from collections.abc import Callable

# (start of the message, category, module)
IGNORED = (
    ("pkg_resources is deprecated as an API", UserWarning, "detectron2.model_zoo.model_zoo"),
    ("`torch.jit.script` is deprecated", FutureWarning, "torch.jit._script"),
    ("torch.meshgrid: in an upcoming release", UserWarning, "torch.functional"),
    ("`broadcast_buffers` is deprecated", FutureWarning, "detectron2.engine.defaults"),
)
# (start of the message, logger): what PyTorch logs instead of warning.
IGNORED_LOGS = (
    ("is_fx_tracing will return true for both", "torch.fx._symbolic_trace"),
    ("No CUDA runtime is found", "torch.utils.cpp_extension"),
    ("Skipping constant folding for op", "onnxscript.optimizer._constant_folding"),
)


def ignore_known_warnings() -> None:
    """Silence the warnings that importing and using Detectron2 prints."""
    for message, category, module in IGNORED:
        warnings.filterwarnings("ignore", re.escape(message), category, re.escape(module) + "$")
    for message, name in IGNORED_LOGS:
        logging.getLogger(name).addFilter(_without(message))


def _without(message: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: not record.getMessage().startswith(message)
