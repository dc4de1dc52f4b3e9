"""Layouts of folders with annotations and images that are usual for COCO.

Nothing is registered or checked here: that is done by what reads the files.
"""

import functools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from isda.data.errors import DatasetError
from isda.data.file_names import base_names, images_by_name
from isda.data.json_files import load_json
from isda.data.walking import IMAGE_SUFFIXES, is_hidden
from isda.wording import listed

__all__ = ["Split", "annotation_format", "find_dataset"]

# What the splits are called in names of files and folders, the most usual first.
_NAMES = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
# COCO has these beside the annotations of instances.
_OTHER_TASKS = {"captions", "keypoints", "panoptic", "stuff", "unlabeled"}
_ANNOTATION_FOLDERS = ("annotations", "annotation")
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages", "data")
_PEEKED = 20  # files whose content is looked at where the name does not tell what they are
_SAMPLED = 50  # images that are looked for to find the folder which they are in
_LISTED = 6

_LOOKED_FOR = (
    "annotations/instances_train*.json (COCO), train/_annotations.coco.json (Roboflow), "
    "train.json or instances_train.json, the same with val or valid, or one .json file alone"
)
_CONVERT = "isda convert dataset turns it into COCO's format"


class Split(NamedTuple):
    """Annotations in COCO's format and the folder of their images."""

    name: str  # "train", "val" or "test"; "all" where there are no splits
    json_file: Path
    image_root: Path  # what the file names in the annotations are relative to
    # Of the whole data set, below which images are looked for that are not where the annotations
    # say; None: below the image_root.
    folder: Path | None = None


def find_dataset(path: str | os.PathLike) -> list[Split]:
    """The splits of a data set, however its folder is laid out.

    Known are COCO's layout (``annotations/instances_train2017.json`` and ``train2017/``),
    Roboflow's (``train/_annotations.coco.json`` beside the images, ``valid/``, ``test/``), a
    folder with ``train.json``, ``val.json`` or ``instances_train.json`` and so on, its images
    anywhere near, a folder with a single annotation file of any name, and such a file itself.

    Args:
        path: of the folder or of the file.

    Returns:
        ``train`` first, then ``val`` and ``test`` where they are; or ``all`` alone.

    Raises:
        DatasetError: nothing of that kind is there, or it is not clear which; the message says
            what was looked for and what was found.
    """
    path = Path(path).expanduser()
    if not path.exists():
        if path.is_symlink():
            raise DatasetError(f"{path}: is a link that leads nowhere: correct it")
        raise DatasetError(
            f"{path}: no such file or folder: give the folder of your data set, or its annotation "
            "file in COCO's format"
        )
    if not path.is_dir():
        return [_split_of_file(path)]
    files = _annotation_files(path)
    if "train" not in files:
        files = {"all": _only_file(path, files)}
    for file in files.values():
        _refuse_other_formats(file)
    return [Split(name, file, _image_root(file, path, name), path) for name, file in files.items()]


def annotation_format(json_file: str | os.PathLike) -> str:
    """What a JSON file is by its content: ``coco``, ``labelme``, ``via``, ``results``, ``other``.

    ``results`` are predictions in COCO's format. A file that is no valid JSON is ``broken``.
    """
    return _look_into(*_version(Path(json_file)))[0]


def _version(file: Path) -> tuple[Path, int]:
    return file, file.stat().st_mtime_ns if file.is_file() else 0


@functools.lru_cache(maxsize=64)
def _look_into(file: Path, changed: int) -> tuple[str, tuple[str, ...]]:
    """Format and names of the images; large files take long, so each is read once."""
    try:
        content, _ = load_json(file)
    except DatasetError:  # those who read the file say what is wrong with it
        return "broken", ()
    kind = _format(content)
    images = content["images"] if kind == "coco" else ()
    names = [image.get("file_name") for image in images if isinstance(image, dict)]
    return kind, tuple(name for name in names if isinstance(name, str) and name)


def _format(content: object) -> str:
    if isinstance(content, list):
        is_result = content and isinstance(content[0], dict) and "score" in content[0]
        return "results" if is_result else "other"
    if not isinstance(content, dict):
        return "other"
    if isinstance(content.get("images"), list):
        return "coco"
    if "shapes" in content and ("imagePath" in content or "imageData" in content):
        return "labelme"
    records = content.get("_via_img_metadata", content)
    first = next(iter(records.values()), None) if isinstance(records, dict) else None
    return "via" if isinstance(first, dict) and "regions" in first else "other"


def _split_of_file(path: Path) -> Split:
    if path.suffix.lower() != ".json" or not path.is_file():
        remedy = "unpack it and give the folder" if path.suffix in (".zip", ".tar", ".gz") else ""
        raise DatasetError(
            f"{path}: is neither a folder nor a .json file: "
            + (remedy or "give the folder of your data set, or its annotation file")
        )
    _refuse_other_formats(path)
    return Split("all", path, _image_root(path, path.parent, "all"), _dataset_folder(path.parent))


def _annotation_files(folder: Path) -> dict[str, Path]:
    """The annotation file of each split that has one, by names alone.

    Raises:
        DatasetError: several files could be a split's.
    """
    candidates = [(file, *_split_of_name(file, folder)) for file in _json_files(folder)]
    files = {}
    for split in _NAMES:
        ranks = {file: rank for file, name, rank in candidates if name == split}
        best = [file for file, rank in ranks.items() if rank == min(ranks.values())]
        if len(best) > 1:
            best = [file for file in best[:_PEEKED] if annotation_format(file) == "coco"] or best
        if len(best) > 1:
            _refuse_other_formats(best[0])
            raise DatasetError(
                f"{folder}: it is not clear which annotation file is for '{split}', there are "
                f"{listed((file.relative_to(folder) for file in best), _LISTED)}: move the others "
                "away"
            )
        if best:
            files[split] = best[0]
    return files


def _json_files(folder: Path) -> list[Path]:
    """Those at the top, in ``annotations/``, and in the folders of the splits."""
    inner = _folders(folder)
    places = [folder, *(f for f in inner if f.name.lower() in _ANNOTATION_FOLDERS)]
    for place in [f for f in inner if _split_word(f.name)]:
        places += [place, place / "annotations"]
    files = [file for place in places if place.is_dir() for file in place.glob("*.json")]
    files = [file for file in files if file.is_file() and not is_hidden(file.name)]
    return sorted(file for file in files if not _OTHER_TASKS & _words(file.stem))


def _split_of_name(file: Path, folder: Path) -> tuple[str, int]:
    """Name of the split, empty if the path does not tell, and how loosely: 0 fits best."""
    name = file.stem.lower()
    word = _split_word(name)
    if word and "image_info" not in name:
        split, position = word
        exact = name.removeprefix("instances_") in _NAMES[split]
        return split, 3 * position + (0 if exact else 1 if name.startswith("instances_") else 2)
    parents = file.relative_to(folder).parts[:-1]
    split, _ = next(filter(None, map(_split_word, parents)), ("", 0))
    is_usual = name in ("_annotations.coco", "annotations", "instances", "instances_default")
    return split, 0 if is_usual else 9


def _split_word(name: str) -> tuple[str, int] | None:
    """The split that a name speaks of, and the position of the word in ``_NAMES``."""
    words = _words(name)
    for split, known in _NAMES.items():
        for position, word in enumerate(known):
            if word in words:
                return split, position
    return None


def _words(name: str) -> set[str]:
    return set(re.findall("[a-z]+", name.lower()))


def _only_file(folder: Path, of_splits: dict[str, Path]) -> Path:
    """The annotation file of a folder without a training split.

    Raises:
        DatasetError: there is none, or more than one.
    """
    files = _json_files(folder)
    unnamed = [file for file in files if not _split_of_name(file, folder)[0]]
    formats = {file: annotation_format(file) for file in unnamed[:_PEEKED]}
    coco = [file for file, kind in formats.items() if kind == "coco"]
    # Those who read a broken file say what is wrong with it.
    coco = coco or [file for file, kind in formats.items() if kind == "broken"]
    if len(coco) == 1 and not of_splits:
        return coco[0]
    if len(coco) > 1:
        raise DatasetError(
            f"{folder}: has several annotation files, "
            f"{listed((file.relative_to(folder) for file in coco), _LISTED)}: give one of them, or "
            "name them train.json and val.json"
        )
    deeper = [file for file in _some_files(folder) if file.suffix.lower() == ".json"]
    for file in [*unnamed[:_PEEKED], *of_splits.values(), *deeper[:_PEEKED]]:
        _refuse_other_formats(file)
    if of_splits:
        found = ", ".join(str(file.relative_to(folder)) for file in of_splits.values())
        rename = f": if {coco[0].name} is to be trained on, name it train.json" if coco else ""
        raise DatasetError(
            f"{folder}: has {found}, but no annotations to train on{rename}; looked for "
            f"{_LOOKED_FOR}"
        )
    raise DatasetError(
        f"{folder}: no annotations in COCO's format: looked for {_LOOKED_FOR}; "
        f"found {_contents(folder)}{_hint(folder)}"
    )


def _refuse_other_formats(file: Path) -> None:
    kind = annotation_format(file)
    if kind == "labelme":
        raise DatasetError(f"{file}: is an annotation of labelme: {_CONVERT}")
    if kind == "via":
        raise DatasetError(f"{file}: is a project or an export of VIA: {_CONVERT}")
    if kind == "results":
        raise DatasetError(
            f"{file}: holds predictions (a list with scores), not annotations: give the annotation "
            "file that they were made for"
        )


def _image_root(json_file: Path, folder: Path, split: str) -> Path:
    """The folder near the annotations that has their images.

    Raises:
        DatasetError: none has.
    """
    _, names = _look_into(*_version(json_file))
    sample = names[:: max(len(names) // _SAMPLED, 1)]
    places = _image_places(json_file, folder, split)
    if not sample:  # what is wrong with the file is said by those who read it
        return json_file.parent
    found = {place: sum((place / name).is_file() for name in sample) for place in places}
    best = max(places, key=found.get)
    if found[best]:
        return best
    of_dataset = _dataset_folder(folder)
    known = images_by_name(of_dataset)
    if any(len(known.get(base, ())) == 1 for name in sample for base in base_names(name)):
        return of_dataset  # below which those who read the file find them
    raise DatasetError(_no_images(json_file, sample, places))


def _dataset_folder(folder: Path) -> Path:
    """The folder of a data set that has its annotations in ``folder``."""
    return folder.parent if folder.name.lower() in _ANNOTATION_FOLDERS else folder


def _image_places(json_file: Path, folder: Path, split: str) -> list[Path]:
    """Folders that may hold the images, the most usual first, each once."""
    stem = json_file.stem.lower()
    names = [stem.removeprefix("instances_"), stem]
    roots = [json_file.parent, folder]
    roots.append(_dataset_folder(folder))
    places = [json_file.parent]
    for root in dict.fromkeys(roots):
        images = [root / name for name in _IMAGE_FOLDERS]
        for base in (root, images[0]):
            of_split = [base / name for name in names] + _folders_of(split, base)
            places += of_split + [place / "images" for place in of_split]
        places += [*images, root]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def _folders_of(split: str, base: Path) -> list[Path]:
    folders = [(f, _split_word(f.name)) for f in _folders(base)]
    return [folder for folder, word in folders if word and word[0] == split]


def _folders(base: Path) -> list[Path]:
    if not base.is_dir():
        return []
    return sorted(f for f in base.iterdir() if f.is_dir() and not is_hidden(f.name))


def _no_images(json_file: Path, names: Sequence[str], places: list[Path]) -> str:
    base = re.split(r"[/\\]", names[0])[-1]
    elsewhere = next((place for place in places if (place / base).is_file()), None)
    if elsewhere and base != names[0]:
        return (
            f"{json_file}: file_name is {names[0]!r}, but the image lies at {elsewhere / base}: "
            "take the folders out of file_name, or move the images there"
        )
    return (
        f"{json_file}: none of its images is there, first {names[0]!r}: looked in "
        f"{listed(places, _LISTED)}: put them into a folder images beside the annotations"
    )


def _contents(folder: Path) -> str:
    """What is in a folder, in a few words."""
    entries = sorted(folder.iterdir())
    folders = [f"{entry.name}/" for entry in entries if entry.is_dir()]
    files = [entry.name for entry in entries if entry.is_file()]
    images = [name for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    others = [name for name in files if name not in images]
    parts = [f"{len(images)} images"] * bool(images) + folders + others
    return listed(parts, _LISTED) if parts else "an empty folder"


def _hint(folder: Path) -> str:
    """What to do next, from what is there instead of annotations in COCO's format."""
    for inner in _folders(folder):
        if any(_split_of_name(file, inner)[0] for file in _json_files(inner)):
            return f": did you mean {inner}?"
    suffixes = {file.suffix.lower() for file in _some_files(folder)}
    if (folder / "data.yaml").is_file() or ".txt" in suffixes:
        return (
            ": this looks like YOLO's format, but data.yaml has no names, and no line of a text "
            "file has a polygon"
        )
    return f"; of other tools, {_CONVERT}"


def _some_files(folder: Path) -> Iterable[Path]:
    """Files of the folder and of two levels of folders in it."""
    for pattern in ("*", "*/*", "*/*/*"):
        for number, file in enumerate(folder.glob(pattern)):
            if number >= 1000:
                break
            if file.is_file():
                yield file
