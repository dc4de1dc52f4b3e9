"""Files of trained weights: where they lie, fetching them, and their sha256."""

import hashlib
import os
from pathlib import Path

from detectron2.utils.file_io import PathManager

import isda.weights_files.package  # noqa: F401  (registers isda://)
from isda.checkpoint import WeightsError
from isda.model_zoo.catalog import FOLDER_VARIABLE, ModelEntry

__all__ = ["checkpoint_path", "sha256_of"]


def checkpoint_path(entry: ModelEntry) -> Path:
    """The file of a model's weights: that of ``ISDA_MODEL_ZOO``, else shipped, else downloaded.

    A download is kept in fvcore's cache (``$FVCORE_CACHE``) and not repeated.

    Raises:
        WeightsError: the file is not there, cannot be fetched, or has another sha256.
    """
    path = entry.local_file() or _fetched(entry)
    if not path.is_file():
        raise WeightsError(
            f"{entry.weights} of model '{entry.name}' is not at {path}: put {entry.file_name} "
            f"into a folder and name that by {FOLDER_VARIABLE}"
        )
    found = sha256_of(path)
    if found != entry.sha256:
        raise WeightsError(
            f"{path} is not what the table says of model '{entry.name}': its sha256 is {found}, "
            f"stated is {entry.sha256}. It is damaged or of another version: delete it and "
            "fetch it again"
        )
    return path


def _fetched(entry: ModelEntry) -> Path:
    try:
        return Path(PathManager.get_local_path(entry.weights))
    except OSError as error:
        raise WeightsError(
            f"{entry.weights} of model '{entry.name}' cannot be fetched ({error}): put "
            f"{entry.file_name} into a folder and name that by {FOLDER_VARIABLE}"
        ) from error


def sha256_of(path: str | os.PathLike) -> str:
    """In hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
