"""``isda://FILE``: a file of weights that comes with this package, for Detectron2's PathManager."""

from pathlib import Path

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

__all__ = ["PackageWeights"]

_FOLDER = Path(__file__).resolve().parents[1] / "weights"


class PackageWeights(PathHandler):
    """Maps ``isda://FILE`` to the package's folder of weights."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["isda://"]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        return str(_FOLDER / path.removeprefix("isda://"))


PathManager.register_handler(PackageWeights(), allow_override=True)
