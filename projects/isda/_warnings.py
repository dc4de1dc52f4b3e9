"""Deprecation warnings of dependencies that a user of this package cannot act on.

Each is named by its text and by the module that it is attributed to, so that nothing else is
hidden. `isda` ignores them when it is imported, and the tests hand them to pytest.
"""

import re
import warnings

# (start of the message, category, module)
IGNORED = (
    ("pkg_resources is deprecated as an API", UserWarning, "detectron2.model_zoo.model_zoo"),
    ("`torch.jit.script` is deprecated", FutureWarning, "torch.jit._script"),
)


def ignore_known_warnings() -> None:
    """Silence the warnings that importing Detectron2 prints."""
    for message, category, module in IGNORED:
        warnings.filterwarnings("ignore", re.escape(message), category, re.escape(module) + "$")
