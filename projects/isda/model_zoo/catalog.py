"""Catalogue of models: config files, and the table of those that have been trained."""

import difflib
import fnmatch
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlparse

from isda.errors import UserError

__all__ = [
    "FOLDER_VARIABLE",
    "TABLE",
    "ModelEntry",
    "ModelZooError",
    "canonical_name",
    "entries",
    "entry_of",
    "find_config_file",
    "get_config_file",
    "is_known",
    "list_models",
    "own_folder",
    "read_table",
]

FOLDER_VARIABLE = "ISDA_MODEL_ZOO"
TABLE = "models.json"

_PACKAGE = Path(__file__).resolve().parents[1]
# Of the checkout, and of an installed wheel.
_CONFIG_FOLDERS = (_PACKAGE.parents[1] / "configs", _PACKAGE / "configs")
_SHOWN = 6  # names in a message


class ModelZooError(UserError, ValueError):
    """A model that does not exist, or not yet; the message says which ones do."""


@dataclass(frozen=True)
class ModelEntry:
    """One row of the table of trained models."""

    name: str
    weights: str  # isda://FILE, a URL, or the name of a file in the folder of ISDA_MODEL_ZOO
    sha256: str
    license: str
    data: str  # what it was trained and evaluated on
    metrics: dict[str, float] = field(default_factory=dict)  # segm/AP and so on, in percent
    training: dict[str, str] = field(default_factory=dict)  # command, duration, hardware, commit

    @property
    def file_name(self) -> str:
        """The weights' file, without where it lies."""
        return self.weights.rsplit("/", 1)[-1]

    def local_file(self) -> Path | None:
        """The file in the folder of ``ISDA_MODEL_ZOO``, if it is there."""
        folder = own_folder()
        path = folder and folder / self.file_name
        return path if path and path.is_file() else None

    def whereabouts(self) -> tuple[str, Path | None]:
        """Where the weights are, in words, and their file if it is on this computer."""
        path = self.local_file()
        if path:
            return f"in {FOLDER_VARIABLE}", path
        if self.weights.startswith("isda://"):
            path = _PACKAGE / "weights" / self.file_name
            return ("shipped", path) if path.is_file() else ("missing", None)
        if "://" not in self.weights:
            return "missing", None
        path = _downloaded(self.weights)
        return ("downloaded", path) if path.is_file() else ("to be downloaded", None)


def own_folder() -> Path | None:
    """The folder that ``ISDA_MODEL_ZOO`` names.

    Raises:
        ModelZooError: there is no such folder.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise ModelZooError(
            f"{FOLDER_VARIABLE} is {named}, which is no folder: correct it, or unset it"
        )
    return folder


def canonical_name(name: str | os.PathLike) -> str:
    """A name as the table has it; ``configs/`` before and ``.yaml`` after it are accepted."""
    return os.fspath(name).replace(os.sep, "/").removeprefix("configs/").removesuffix(".yaml")


def is_known(name: str | os.PathLike) -> bool:
    """Whether there is a model of this name, trained or not."""
    return canonical_name(name) in _config_files()


def get_config_file(name: str | os.PathLike) -> str:
    """The path of a model's config file.

    Raises:
        ModelZooError: there is no such model; the message proposes similar names.
    """
    files, name = _config_files(), canonical_name(name)
    if name not in files:
        raise ModelZooError(_unknown(name, [*files]))
    return str(files[name])


def find_config_file(path: str) -> str:
    """The file of a path or, where there is none, of the model of this name.

    So ``configs/nuclei/isda_tiny.yaml`` is found outside a checkout, too.
    """
    return path if os.path.exists(path) or not is_known(path) else get_config_file(path)


def list_models(pattern: str = "*", *, trained: bool = False) -> list[str]:
    """Names of models; those with trained weights come first.

    Args:
        pattern: as of file names, ``"nuclei/*"``; ``*`` matches ``/`` too.
        trained: only those with trained weights.
    """
    with_weights = [name for name in sorted(entries()) if is_known(name)]
    others = [] if trained else sorted(set(_config_files()) - set(with_weights))
    return [name for name in with_weights + others if fnmatch.fnmatchcase(name, pattern)]


def entries() -> dict[str, ModelEntry]:
    """The table of trained models: the package's and, before it, that of ``ISDA_MODEL_ZOO``."""
    tables = read_table(Path(__file__).parent / TABLE)
    folder = own_folder()
    if folder and (folder / TABLE).is_file():
        tables |= read_table(folder / TABLE)
    return tables


def entry_of(name: str | os.PathLike) -> ModelEntry:
    """The row of a model.

    Raises:
        ModelZooError: there is no such model, or it has no trained weights.
    """
    path, name, table = get_config_file(name), canonical_name(name), entries()
    if name not in table:
        some = ", ".join(list_models(trained=True)) or "none yet"
        raise ModelZooError(
            f"'{name}' has no trained weights here (those that have: {some}); train it by "
            f"isda train --config-file {_shortened(path)}"
        )
    return table[name]


def read_table(path: Path) -> dict[str, ModelEntry]:
    """The rows of a ``models.json`` by name.

    Raises:
        ModelZooError: the file is no such table.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: ModelEntry(name=name, **row) for name, row in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelZooError(
            f"{path} is no table of models ({error}): write it by tools/publish_model.py"
        ) from error


def _config_files() -> dict[str, Path]:
    """Names and files of all configs that can be trained; your own come before the package's."""
    shipped = next((f for f in _CONFIG_FOLDERS if (f / "Base-ISDA.yaml").is_file()), None)
    found: dict[str, Path] = {}
    for folder in (shipped, own_folder()):
        if folder:
            files = sorted(folder.rglob("*.yaml"))
            found |= {p.relative_to(folder).with_suffix("").as_posix(): p for p in files}
    return {name: p for name, p in found.items() if not p.name.startswith("Base-")}


def _downloaded(url: str) -> Path:
    """Where iopath keeps what it has fetched from an address."""
    from iopath.common.file_io import get_cache_dir

    return Path(get_cache_dir(), urlparse(url).path.lstrip("/"))


def _unknown(name: str, known: list[str]) -> str:
    same_end = [k for k in known if k.rsplit("/", 1)[-1] == name.rsplit("/", 1)[-1]]
    close = [*same_end, *difflib.get_close_matches(name, known, n=3, cutoff=0.5)]
    close = [*dict.fromkeys(close)][:_SHOWN]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"there is no model '{name}': {hint}isda.model_zoo.list() names all"


def _shortened(path: str) -> str:
    """The path as it would be typed here."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
