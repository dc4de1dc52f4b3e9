"""Errors of predictions that cannot be done as they are asked for."""

import os
from importlib import import_module
from types import ModuleType

from isda.errors import MissingPackageError, UserError

__all__ = ["MissingPackageError", "RequestError", "needed"]


class RequestError(UserError):
    """Something that the user asked for is not possible; the message says why."""


def needed(module: str, what: str | os.PathLike, package: str = "") -> ModuleType:
    """The module, imported.

    Args:
        what: the file, or the result, that needs it.
        package: that has it, if its name is another one.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = package or module
        raise MissingPackageError(f"{what}: needs {package}: pip install {package}") from error
