"""Masks that cellpose saves: ``im0_cp_masks.png`` or ``.tif`` beside ``im0.tif``, ``im0_seg.npy``.

The masks may lie in a folder ``masks``. ``_seg.npy`` is a pickle, which is read without calling
anything that it names. It is taken where there is no image of masks, or where it is newer, as it
is what the program's window saves.
"""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np

from isda.data.errors import DatasetError, ImageError
from isda.data.formats.annotated import AnnotatedImage, Instance, Report, encode, read_size
from isda.data.formats.mask_images import check_mask_size, read_values
from isda.data.formats.places import split_of
from isda.data.formats.registry import Format, Options
from isda.data.walking import IMAGE_SUFFIXES, files_below, image_files
from isda.weights_files.pickled_data import SAFE_NAMES, Array, DType, ForbiddenNameError

__all__ = ["FORMAT"]

_MASKS, _SEG = "_cp_masks", "_seg.npy"
_PRODUCTS = (_MASKS, "_cp_outlines", "_cp_output", "_flows", "_cp_flows")
_ANY_CLASS = "cell"


def _stem(file: Path) -> str:
    """The name of the image that a file of cellpose is of."""
    if file.name.endswith(_SEG):
        return file.name.removesuffix(_SEG)
    return file.stem.removesuffix(_MASKS)


def _files(path: Path) -> list[Path]:
    """Images of masks, and ``_seg.npy``, below a folder."""
    if not path.is_dir():
        return []
    found = files_below(path, (*IMAGE_SUFFIXES, ".npy"))
    return [f for f in found if f.name.endswith(_SEG) or f.stem.endswith(_MASKS)]


def _read(path: Path, report: Report, options: Options) -> list[AnnotatedImage]:
    folder = options.images or path
    by_stem: dict[str, list[Path]] = {}
    for file in image_files(folder):
        if not any(file.stem.endswith(product) for product in _PRODUCTS):
            by_stem.setdefault(file.stem, []).append(file)
    chosen: dict[Path, Path] = {}
    for file in _files(path):
        try:
            source = _image_of(file, by_stem, folder)
        except ImageError as error:
            report.refuse(error)
            continue
        other = chosen.get(source)
        if other is None or file.stat().st_mtime_ns > other.stat().st_mtime_ns:
            chosen[source] = file
    images = []
    for source, file in sorted(chosen.items()):
        try:
            size = read_size(source)
            masks = _seg(file) if file.name.endswith(_SEG) else read_values(file)
            check_mask_size(masks.shape, size, file)
        except DatasetError as error:
            report.refuse(error)
            continue
        numbers = np.unique(masks[masks > 0]).tolist()
        label = options.class_name or _ANY_CLASS
        instances = [Instance(label, encode(masks == number)) for number in numbers]
        name = source.relative_to(folder).as_posix()
        images.append(AnnotatedImage(name, source, size, instances, split_of(source.parent.name)))
    return images


def _image_of(file: Path, by_stem: dict[str, list[Path]], folder: Path) -> Path:
    """The image that the masks are of: beside them, or the only one of the name."""
    candidates = by_stem.get(_stem(file), [])
    near = [c for c in candidates if c.parent in (file.parent, file.parent.parent)]
    if len(near) == 1 or len(candidates) == 1:
        return (near or candidates)[0]
    raise ImageError(
        f"{file}: {'no' if not candidates else 'more than one'} image in {folder} is called "
        f"{_stem(file)}: name the folder of the images by --images"
    )


class _Objects:
    """Stands for the type of an array of Python's objects, as ``np.save`` makes one of a dict."""

    def __setstate__(self, state: tuple) -> None:
        pass


class _Array(Array):
    """As its base; of an array of objects ``value`` is a list of them."""

    def __setstate__(self, state: tuple) -> None:
        *_, dtype, _, data = state
        if not isinstance(dtype, _Objects):
            super().__setstate__(state)
        elif isinstance(data, list):
            self.value = data


class _PlainObjects(pickle.Unpickler):
    """Reads NumPy arrays and plain types, in an array of objects, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Callable:
        full = f"{module}.{name}"
        if full not in SAFE_NAMES:
            raise ForbiddenNameError(full)
        if full == "numpy.dtype":
            return lambda code, *rest: _Objects() if code[:1] == "O" else DType(code, *rest)
        if full.endswith("._reconstruct"):
            return lambda *_: _Array()
        return lambda *arguments: SAFE_NAMES[full](*arguments)


def _seg(file: Path) -> np.ndarray:
    """``(H, W)`` numbers of the cells in a ``_seg.npy``.

    Raises:
        ImageError: it is none, or it has other than plain data.
    """
    try:
        with file.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
            read_header(stream)
            (content,) = _PlainObjects(stream, encoding="latin1").load().value
        masks = np.squeeze(np.asarray(content["masks"].value))
        if masks.ndim != 2 or masks.dtype.kind not in "bui":
            raise ValueError(f"its masks are of shape {masks.shape} and type {masks.dtype}")
    except Exception as error:  # of a damaged or hostile pickle, any
        raise ImageError(
            f"{file}: the masks cannot be read ({error}): save them as PNG or TIFF in cellpose"
        ) from error
    return masks


FORMAT = Format(
    "cellpose",
    "what cellpose saves: NAME_cp_masks.png or .tif, or NAME_seg.npy, beside the image NAME",
    lambda path: bool(_files(path)),
    _read,
    frozenset({"images", "class_name"}),
)
