"""The images that a command line means, and the files that results go to."""

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from isda.prediction.errors import RequestError

__all__ = [
    "FORMS",
    "IMAGE_SUFFIXES",
    "Outputs",
    "Target",
    "find_images",
    "format_of",
    "make_folders",
    "needs_pixels",
    "sort_outputs",
    "split_outputs",
    "targets_of",
]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
# Of what is not a picture, by the end of the file's name; the first row that fits decides.
_ENDS = {
    ".masks.png": "labels",
    ".tif": "labels",
    ".tiff": "labels",
    ".zip": "rois",
    ".geojson": "geojson",
    ".txt": "yolo",
    ".csv": "table",
    ".json": "coco",
}
# What --save takes: the end of each image's file.
FORMS = ("masks.tif", "masks.png", "rois.zip", "geojson", "txt", "csv", "json", "png", "jpg")


def format_of(path: str | os.PathLike) -> str:
    """What a file of this name holds.

    ``.json``: COCO's results. ``.tif``, ``.tiff`` and ``.masks.png``: a label image. ``.zip``:
    ImageJ's ROIs. ``.geojson``: outlines, for QuPath. ``.txt``: outlines, for YOLO. ``.csv``: a
    table of measurements. All else: a picture.

    Returns:
        ``"coco"``, ``"labels"``, ``"rois"``, ``"geojson"``, ``"yolo"``, ``"table"``, ``"picture"``.
    """
    name = os.fspath(path).lower()
    return next((form for end, form in _ENDS.items() if name.endswith(end)), "picture")


def needs_pixels(path: str | os.PathLike) -> bool:
    """Whether a file of this name shows or measures the image itself."""
    return format_of(path) in ("picture", "table")


@dataclass(frozen=True)
class Outputs:
    """The arguments of ``--output`` by what they are for."""

    pictures: str | None = None  # a file, or a folder, of what is wanted of each image
    json: str | None = None  # for all images together
    table: str | None = None  # likewise
    files: tuple[str, ...] = ()  # other results of the one image


def sort_outputs(paths: list[str]) -> Outputs:
    """
    Raises:
        RequestError: there are two of a kind, or a folder has the name of a file of results.
    """
    kinds: dict[str, list[str]] = {"pictures": [], "json": [], "table": [], "files": []}
    names = {"coco": "json", "table": "table", "picture": "pictures"}
    for path in paths:
        kind = names.get(format_of(path), "files")
        is_folder = Path(path).is_dir()
        kinds["pictures" if is_folder and kind == "files" else kind].append(path)
    for kind in ("pictures", "json", "table"):
        if len(kinds[kind]) > 1:
            raise RequestError(
                f"--output {' '.join(kinds[kind])}: give one folder or file for pictures, one "
                ".json file for instances, and one .csv file for measurements, at most"
            )
    for path in (*kinds["json"], *kinds["table"]):
        if Path(path).is_dir():
            raise RequestError(f"--output {path} is a folder, and results are written into a file")
    first = {kind: next(iter(kinds[kind]), None) for kind in ("pictures", "json", "table")}
    return Outputs(**first, files=tuple(kinds["files"]))


def split_outputs(paths: list[str]) -> tuple[str | None, str | None]:
    """Of ``--output`` for a video: where it is drawn, and the JSON file; None where none.

    Raises:
        RequestError: there are two of a kind, or others.
    """
    outputs = sort_outputs(paths)
    others = [*outputs.files, *filter(None, [outputs.table])]
    if others:
        raise RequestError(
            f"--output {' '.join(others)}: of a video there is a drawn video and one .json file"
        )
    return outputs.pictures, outputs.json


def find_images(inputs: list[str]) -> tuple[list[Path], dict[str, str]]:
    """Files that the arguments of ``--input`` mean: themselves, matches, contents of folders.

    Returns:
        The files, and ``{argument: reason}`` of the arguments that mean none.

    Raises:
        RequestError: there is no file at all.
    """
    found: list[Path] = []
    missing: dict[str, str] = {}
    for item in inputs:
        path = Path(item).expanduser()
        if path.is_dir():
            files = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
        elif path.exists():  # first, because names may contain brackets
            files = [path]
        else:
            files = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not files:
            missing[item] = "no image there"
        found += files
    if not found:
        raise RequestError(f"--input {' '.join(inputs)}: no image there")
    return list(dict.fromkeys(found)), missing


@dataclass(frozen=True)
class Target:
    """Where results of one image go."""

    folder: Path
    stem: str
    ends: tuple[str, ...]  # such as ".png", ".masks.tif"

    def paths(self, page: int | None = None) -> list[Path]:
        """One for each end; of a page of a stack ``NAME_page3.png``."""
        stem = self.stem if page is None else f"{self.stem}_page{page}"
        return [self.folder / f"{stem}{end}" for end in self.ends]


def targets_of(
    images: list[Path], outputs: Outputs, forms: Sequence[str] = ()
) -> list[list[Target]]:
    """Of each image where its results go: into the folder, or to the files of those names.

    Results of images of one name from several folders are numbered.

    Args:
        forms: of :data:`FORMS`, what is written into the folder; none: a picture.

    Raises:
        RequestError: a file is to hold results of several images, there is no folder for
            ``forms``, or a result would replace an image.
    """
    pictures, files = outputs.pictures, [*outputs.files]
    is_folder = pictures and (Path(pictures).is_dir() or _is_folder_name(pictures))
    if pictures and not is_folder:
        files.append(pictures)
    if forms and not is_folder:
        raise RequestError(
            f"--save {' '.join(forms)}: writes into a folder: give it by --output FOLDER"
        )
    if files and len(images) > 1:
        raise RequestError(
            f"--output {' '.join(files)} is one file, but there are {len(images)} images: give a "
            "folder, and --save with the formats that are wanted"
        )
    targets = [[_target(file) for file in files] for _ in images]
    if is_folder:
        for image_targets, target in zip(targets, _numbered(images, Path(pictures), forms)):
            image_targets.append(target)
    originals = {image.resolve() for image in images}
    for path in [p for image_targets in targets for t in image_targets for p in t.paths()]:
        if path.resolve() in originals:
            where = pictures if is_folder else path
            raise RequestError(f"--output {where} would replace {path}: give another folder")
    return targets


def _is_folder_name(path: str) -> bool:
    return Path(path).suffix.lower() not in IMAGE_SUFFIXES


def _target(file: str) -> Target:
    path = Path(file)
    end = ".masks.png" if path.name.lower().endswith(".masks.png") else path.suffix
    return Target(path.parent, path.name[: len(path.name) - len(end)], (path.name[-len(end) :],))


def _numbered(images: list[Path], folder: Path, forms: Sequence[str]) -> list[Target]:
    taken: set[str] = set()
    targets = []
    for image in images:
        ends = tuple(f".{form}" for form in forms) or (_end_of_picture(image),)
        base = stem = _stem(image)
        number = 1
        while taken & {stem + end for end in ends}:
            number += 1
            stem = f"{base}_{number}"
        taken |= {stem + end for end in ends}
        targets.append(Target(folder, stem, ends))
    return targets


def _stem(image: Path) -> str:
    """Without ``.tif``, and without the ``.ome`` before it: what is written is no OME-TIFF."""
    return image.stem.removesuffix(".ome") if format_of(image) == "labels" else image.stem


def _end_of_picture(image: Path) -> str:
    """Pictures are of their image's kind; OpenCV writes some only, and a TIFF is a label image."""
    suffix = image.suffix.lower()
    return image.suffix if suffix in IMAGE_SUFFIXES - {".tif", ".tiff"} else ".png"


def make_folders(files: Iterable[str | Path]) -> None:
    """Where results will be written; seen to before there are any.

    Raises:
        RequestError: a folder cannot be made or written into.
    """
    for folder in {Path(file).parent for file in files}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(
                f"--output: the folder {folder} cannot be made ({error.strerror}): give another one"
            ) from error
        if not os.access(folder, os.W_OK):
            raise RequestError(f"--output: the folder {folder} cannot be written: give another one")
