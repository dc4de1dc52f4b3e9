"""The file of a mask dictionary: arrays without pickles, ours and the authors' layout."""

import dataclasses
import math
import os
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.utils.file_io import PathManager

import isda.weights_files.package  # noqa: F401  (registers isda://)
from isda.errors import UserError
from isda.files import replacing

__all__ = [
    "AMPLITUDE",
    "SHIPPED",
    "DictionaryError",
    "MaskDictionary",
    "pairs_of",
    "read_archive",
    "write_archive",
]

# Mean of the authors' random logits: rho = max(0.01, 0.05 U), logit(1 - rho).
AMPLITUDE = 3.7693

SHIPPED = {"shipped": "isda://mask_dictionary_28.npz"}

_ARRAYS = ("components", "mean", "explained_variance", "explained_variance_ratio")
_AUTHORS = ("components_c", "mean_c", "explained_variance_c", "ratio_c")


class DictionaryError(UserError, ValueError):
    """A mask dictionary cannot be used; the message says why and what to do."""


@dataclass
class MaskDictionary:
    """A linear code of S×S masks, as it is stored (ISTR, arXiv 2105.00637, section 3.2).

    d components, D = S·S pixels.
    """

    components: np.ndarray  # (d, D) float32, orthonormal rows, by falling variance
    mean: np.ndarray  # (D,) float32, of logits
    explained_variance: np.ndarray  # (d,) float32, of logits along each component
    explained_variance_ratio: np.ndarray  # (d,) float32, shares of the variance of masks
    amplitude: float = AMPLITUDE  # the logit that stands for foreground
    num_masks: int = 0  # that it was fitted to; 0 where a file does not say
    sources: dict[str, str] = field(default_factory=dict)  # annotation file: its SHA-256
    iou: dict[str, float] = field(default_factory=dict)  # what was measured on which masks

    @property
    def dim(self) -> int:
        return len(self.components)

    @property
    def side(self) -> int:
        return math.isqrt(self.components.shape[1])

    def first(self, dim: int) -> "MaskDictionary":
        """The dictionary of the first ``dim`` components, which is the smaller fit itself.

        Raises:
            DictionaryError: it has fewer.
        """
        if not 0 < dim <= self.dim:
            raise DictionaryError(f"the first {dim} components of a dictionary of {self.dim}")
        names = ("components", "explained_variance", "explained_variance_ratio")
        return dataclasses.replace(self, **{name: getattr(self, name)[:dim] for name in names})

    def save(self, path: str | os.PathLike) -> None:
        """Write one ``.npz`` without pickles; equal contents give equal bytes."""
        write_archive(
            path,
            **{name: getattr(self, name).astype(np.float32) for name in _ARRAYS},
            side=self.side,
            amplitude=self.amplitude,
            num_masks=self.num_masks,
            source_names=np.array([*self.sources], dtype=str),
            source_sha256=np.array([*self.sources.values()], dtype=str),
            iou_names=np.array([*self.iou], dtype=str),
            iou=np.array([*self.iou.values()], dtype=np.float64),
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "MaskDictionary":
        """Read a file of ours or of the authors' layout.

        Args:
            path: a file, an address that iopath understands, or ``"shipped"`` for the dictionary
                that comes with this package.

        Raises:
            DictionaryError: there is no such file, or it is no dictionary.
        """
        content = read_archive(path)
        if _AUTHORS[0] in content:
            content = _from_authors(content)
        missing = [name for name in _ARRAYS if name not in content]
        if missing:
            raise DictionaryError(
                f"{path}: is no mask dictionary, it has no {', '.join(missing)}: fit one with "
                "isda mask-dictionary fit"
            )
        _check_shapes(content, path)
        return cls(
            *(np.ascontiguousarray(content[name], np.float32) for name in _ARRAYS),
            amplitude=float(content.get("amplitude", AMPLITUDE)),
            num_masks=int(content.get("num_masks", 0)),
            sources=pairs_of(content, "source_names", "source_sha256", str),
            iou=pairs_of(content, "iou_names", "iou", float),
        )


def write_archive(path: str | os.PathLike, **arrays: np.ndarray | float) -> None:
    """Write a whole ``.npz``; raises as :func:`isda.files.replacing`."""
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


def read_archive(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` without pickles.

    Raises:
        DictionaryError: there is no such file, or it is another kind of file.
    """
    path = SHIPPED.get(str(path), str(path))
    local = Path(PathManager.get_local_path(path)) if "://" in path else Path(path)
    if not local.is_file():
        raise DictionaryError(
            f"{path}: no such mask dictionary: name one that isda mask-dictionary fit has "
            "written, or 'shipped' for the one that comes with this package"
        )
    try:
        archive = np.load(local, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("one array, not an archive")
        with archive:
            return dict(archive)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DictionaryError(
            f"{path}: is no readable .npz without pickles, perhaps truncated{_reason(error)}: fit "
            "a dictionary with isda mask-dictionary fit"
        ) from error


def _reason(error: Exception) -> str:
    """What NumPy says, but for its advice to unpickle the file."""
    return "" if "pickle" in str(error) else f" ({error})"


def pairs_of(content: dict, names: str, values: str, kind: type) -> dict:
    """A dict that was stored as two arrays."""
    keys = [str(name) for name in content.get(names, ())]
    return dict(zip(keys, map(kind, content.get(values, ()))))


def _from_authors(content: dict) -> dict:
    """Our names and shapes; theirs have a leading dimension of one, of some arrays."""
    arrays = {ours: content[theirs] for ours, theirs in zip(_ARRAYS, _AUTHORS) if theirs in content}
    ndims = {name: 2 if name == "components" else 1 for name in arrays}
    return {
        name: array[0] if array.ndim == ndims[name] + 1 and len(array) == 1 else array
        for name, array in arrays.items()
    }


def _check_shapes(content: dict, path) -> None:
    components = content["components"]
    dim, pixels = components.shape if components.ndim == 2 else (0, 0)
    side = math.isqrt(pixels)
    wanted = {"components": (dim, pixels), "mean": (pixels,)}
    shapes = {name: content[name].shape for name in _ARRAYS}
    fits = all(shapes[name] == wanted.get(name, (dim,)) for name in _ARRAYS)
    if not fits or not 0 < dim <= pixels or side * side != pixels:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise DictionaryError(
            f"{path}: arrays of a mask dictionary are components [d, S·S], mean [S·S], "
            f"explained_variance [d] and explained_variance_ratio [d], here are {listed}"
        )
    if "side" in content and int(content["side"]) != side:
        raise DictionaryError(
            f"{path}: says that its masks are {int(content['side'])}×{int(content['side'])}, but "
            f"its components have {pixels} pixels: fit it anew"
        )
    finite = all(np.isfinite(content[name]).all() for name in _ARRAYS)
    if not finite or (content["explained_variance"] <= 0).any():
        raise DictionaryError(
            f"{path}: has numbers that are not finite, or variances that are not positive, which "
            "embeddings are divided by: fit it anew"
        )
