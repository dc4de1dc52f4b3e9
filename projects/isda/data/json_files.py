"""Reading JSON of users, and saying what is wrong with what is none."""

import json
import os
from pathlib import Path

from isda.data.errors import DatasetError

__all__ = ["is_lfs_pointer", "load_json"]

_MARK = b"\xef\xbb\xbf"  # byte-order mark of UTF-8, as Windows writes it
_LFS = b"version https://git-lfs"


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that begins so stands in place of one that Git LFS has not fetched."""
    return start.startswith(_LFS)


def load_json(path: str | os.PathLike, name: str | os.PathLike = "") -> tuple[object, bool]:
    """The content of a JSON file, and whether a byte-order mark precedes it.

    Args:
        path: of the file.
        name: what messages call it; by default the path.

    Raises:
        DatasetError: it is no regular file, no text in UTF-8, or no JSON.
    """
    name = name or path
    if not Path(path).is_file():  # a pipe would be waited for without end
        raise DatasetError(f"{name}: is no regular file: put the file itself there")
    data = Path(path).read_bytes()
    if is_lfs_pointer(data[:40]):
        raise DatasetError(f"{name}: is a pointer of Git LFS: fetch the file by `git lfs pull`")
    has_mark = data.startswith(_MARK)
    try:
        text = data.decode("utf-8-sig")
        del data  # of a large file, as much as the text again
        return json.loads(text), has_mark
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{name}: not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}): "
            "is the file whole? Fetch, save or export it again"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{name}: not a text file in UTF-8 (byte {error.start}): save it as plain JSON"
        ) from error
    except RecursionError as error:
        raise DatasetError(
            f"{name}: is nested too deeply for annotations: is it the right file?"
        ) from error
