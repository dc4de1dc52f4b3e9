"""Pascal VOC's segmentation: ``SegmentationObject`` has instances, ``SegmentationClass`` classes.

Images of a palette, or in its colours (CVAT, Datumaro). ``labelmap.txt`` has the class of each
colour; without it the twenty classes of VOC are meant where the colours are theirs. Colour 0 is
background, 255 (224, 224, 192) the border that belongs to nobody.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from isda.data.errors import DatasetError, ImageError
from isda.data.formats.annotated import AnnotatedImage, Instance, Report, encode, read_size
from isda.data.formats.places import ImagePlaces, split_of
from isda.data.formats.registry import Format, Options
from isda.data.walking import image_files

__all__ = ["FORMAT", "voc_colours"]

_OBJECTS, _CLASSES = "SegmentationObject", "SegmentationClass"
_BACKGROUND, _VOID = 0, 255
_VOC = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def voc_colours() -> np.ndarray:
    """``(256, 3)`` uint8: the development kit's palette, bits of a number in turn to r, g, b."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for place in range(8):
        for channel in range(3):
            bit = numbers >> (3 * place + channel) & 1
            colours[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    return colours


def _root(path: Path) -> Path | None:
    """The folder that has both folders: the path, or one in it."""
    if not path.is_dir():
        return None
    places = [path, *sorted(p for p in path.glob("*") if p.is_dir()), *sorted(path.glob("VOC*/*"))]
    return next((p for p in places if (p / _OBJECTS).is_dir() and (p / _CLASSES).is_dir()), None)


def _read(path: Path, report: Report, options: Options) -> list[AnnotatedImage]:
    root = _root(path)
    if root is None:
        raise DatasetError(f"{path}: has no folders {_OBJECTS} and {_CLASSES}")
    names = _labelmap(root, report)
    splits = dict(_splits(root))
    places = ImagePlaces(root, options.images or _image_folder(root))
    by_stem = {file.stem: file for file in image_files(places.folder)}
    images = []
    for file in image_files(root / _OBJECTS):
        stem = file.relative_to(root / _OBJECTS).with_suffix("")
        try:
            source = next((p for p in image_files_of(places.folder / stem)), by_stem.get(stem.name))
            if source is None:
                raise ImageError(f"{file}: its image {stem} is not in {places.folder}")
            size = read_size(source)
            instances = _instances(file, root, size, names, report)
        except DatasetError as error:
            report.refuse(error)
            continue
        split = splits.get(stem.as_posix(), "")
        images.append(AnnotatedImage(places.name_of(source), source, size, instances, split))
    return images


def image_files_of(stem: Path) -> Iterator[Path]:
    """The images of a name without its ending."""
    if stem.parent.is_dir():
        yield from (f for f in image_files(stem.parent) if f.with_suffix("") == stem)


def _image_folder(root: Path) -> Path:
    return root / "JPEGImages" if (root / "JPEGImages").is_dir() else root


def _splits(root: Path) -> Iterator[tuple[str, str]]:
    """(name of an image, split) as ``ImageSets/Segmentation`` has them."""
    for file in sorted(root.glob("ImageSets/Segmentation/*.txt")):
        if split := split_of(file.stem):
            for line in file.read_text(encoding="utf-8-sig").splitlines():
                if line.strip():
                    yield line.split()[0], split


def _labelmap(root: Path, report: Report) -> dict[tuple[int, int, int], str]:
    """Classes by colour, of a file or VOC's own."""
    file = next(
        (p for p in (root / "labelmap.txt", root.parent / "labelmap.txt") if p.is_file()), None
    )
    if file is None:
        colours = voc_colours()[1 : len(_VOC) + 1]
        return {tuple(c): name for c, name in zip(colours.tolist(), _VOC, strict=True)}
    names = {}
    lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if ":" in line]
    lines = [line.split(":") for line in lines if not line.startswith("#")]
    for number, (name, colour, *_) in enumerate(lines):
        values = tuple(int(value) for value in colour.split(",") if value.strip().isdigit())
        if len(values) != 3:  # without colours the classes count from 0 on, the background
            values = tuple(voc_colours()[number % 256].tolist())
        if name.strip().lower() != "background":
            names[values] = name.strip()
            report.classes += [name.strip()] * (name.strip() not in report.classes)
    return names


def _instances(
    file: Path,
    root: Path,
    size: tuple[int, int],
    names: dict[tuple[int, int, int], str],
    report: Report,
) -> list[Instance]:
    relative = file.relative_to(root / _OBJECTS)
    objects, _ = _numbers(file, size)
    classes, colours = _numbers(root / _CLASSES / relative, size)
    instances = []
    for number in np.unique(objects).tolist():
        if number in (_BACKGROUND, _VOID):
            continue
        mask = objects == number
        found, counts = np.unique(classes[mask], return_counts=True)
        kind = int(found[counts.argmax()])
        if kind in (_BACKGROUND, _VOID):
            report.skip(f"object {number} of {file}", f"without a class in {_CLASSES}")
            continue
        label = names.get(tuple(int(value) for value in colours[kind]), f"class {kind}")
        instances.append(Instance(label, encode(mask)))
    return instances


def _numbers(file: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """``(H, W)`` numbers of a mask, and the ``(n, 3)`` colours that they stand for.

    Raises:
        ImageError: the file is not there, damaged, or of another size than the image.
    """
    try:
        with Image.open(file) as image:
            if image.mode == "P":
                palette = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
                numbers = np.asarray(image).astype(np.int64)
                colours = voc_colours()
                colours[: len(palette)] = palette
            elif image.mode in ("L", "1", "I", "I;16"):
                numbers, colours = np.asarray(image).astype(np.int64), voc_colours()
            else:
                numbers, colours = _of_colours(np.asarray(image.convert("RGB")))
    except Exception as error:  # on damaged files Pillow's decoders raise all kinds of errors
        raise ImageError(
            f"{file}: the mask cannot be read ({error}): export the data set again"
        ) from error
    if numbers.shape != size:
        raise ImageError(
            f"{file}: the mask has {numbers.shape[1]}x{numbers.shape[0]} pixels (width x height), "
            f"its image {size[1]}x{size[0]}: save both at one size"
        )
    return numbers, colours


def _of_colours(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the colours: those of VOC's palette, then others."""
    known = {tuple(colour): number for number, colour in enumerate(voc_colours().tolist())}
    found, inverse = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    colours = voc_colours().tolist()
    numbers = []
    for colour in map(tuple, found.tolist()):
        if colour not in known:
            known[colour] = len(colours)
            colours.append(colour)
        numbers.append(known[colour])
    return np.array(numbers)[inverse.reshape(-1)].reshape(pixels.shape[:2]), np.array(colours)


FORMAT = Format(
    "voc",
    f"Pascal VOC's {_OBJECTS} and {_CLASSES}",
    lambda path: _root(path) is not None,
    _read,
    frozenset({"images"}),
)
