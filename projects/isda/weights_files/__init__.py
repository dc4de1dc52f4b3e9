"""Files of weights, from whomever they come: read as numbers, never executed.

:func:`read_checkpoint` and :func:`read_state_dict` are the only way from a file of weights into
this package and its tools. They tell the kind of a file by its content, whatever its name ends in.
"""

from isda.weights_files import package  # noqa: F401  (registers isda://)
from isda.weights_files.errors import WeightsError
from isda.weights_files.reading import (
    local_file,
    others_read_tensors_only,
    read_checkpoint,
    read_state_dict,
)

__all__ = [
    "WeightsError",
    "local_file",
    "others_read_tensors_only",
    "read_checkpoint",
    "read_state_dict",
]
