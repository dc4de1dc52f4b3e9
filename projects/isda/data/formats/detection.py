"""Detection of the format of a path, and one call that reads any of them."""

from pathlib import Path

from isda.data.errors import DatasetError
from isda.data.formats.annotated import AnnotatedImage, Report
from isda.data.formats.peeking import first_files, peek_text
from isda.data.formats.registry import Format, Options, formats
from isda.data.json_files import load_json

__all__ = ["detect_format", "diagnosis", "read_annotations"]

_COCO = "coco"  # beside which other tools' files mean more


def detect_format(path: Path) -> Format:
    """The format of a file or folder.

    Raises:
        DatasetError: there is nothing at the path, it is in no format or in several; the message
            lists what was looked for.
    """
    if not path.exists():
        raise DatasetError(f"{path}: there is no such file or folder: correct the path")
    found = [format for format in formats().values() if format.recognises(path)]
    if len(found) > 1:
        found = [format for format in found if format.name != _COCO]
    if len(found) > 1:
        names = " and ".join(format.name for format in found)
        raise DatasetError(f"{path}: is in several formats, {names}: name one by --format")
    if found:
        return found[0]
    known = "; ".join(f"{format.name}: {format.description}" for format in formats().values())
    reason = diagnosis(path) or f"is in no format that can be read; there are {known}"
    raise DatasetError(f"{path}: {reason}")


# What is in files that no format here reads, and what to do about them.
_FOREIGN = {
    "<bndbox>": "has Pascal VOC's boxes ({}), which are no masks: export the masks, as "
    "SegmentationObject and SegmentationClass",
    "<polygon>": "has XML of LabelMe's web tool ({}), which is not read: export the data set in "
    "another format, by CVAT for example",
    "<annotation>": "has XML of an annotation without masks ({}): export the masks",
}


def diagnosis(path: Path) -> str:
    """What a path that no format recognises has instead; empty if nobody knows.

    Raises:
        DatasetError: a JSON file is broken.
    """
    for file in first_files(path, ".json"):
        load_json(file)  # says what is wrong with a broken one
    for file in first_files(path, ".xml"):
        text = peek_text(file)
        for mark, reason in _FOREIGN.items():
            if mark in text:
                return reason.format(file.name)
    return ""


def read_annotations(
    path: Path, report: Report, options: Options | None = None, format: str | None = None
) -> list[AnnotatedImage]:
    """Reads whatever is at ``path``.

    Args:
        path: in one of :func:`formats`.
        report: told of what cannot be used.
        options: what the user says of it.
        format: its name; by default the format is recognised.

    Raises:
        DatasetError: it cannot be read at all, or an option does not belong to its format.
    """
    options = options or Options()
    if format is not None and not path.exists():
        raise DatasetError(f"{path}: there is no such file or folder: correct the path")
    chosen = detect_format(path) if format is None else formats()[format]
    for name in options.given():
        if name not in chosen.options:
            flag = f"--{name.replace('_', '-')}"
            raise DatasetError(
                f"{path}: is {chosen.description}, for which {flag} means nothing: leave it out"
            )
    return chosen.read(path, report, options)
