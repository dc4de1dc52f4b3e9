"""Checks of image files: readable, and no two the same."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from isda.data.errors import ImageError
from isda.data.images import (
    DEFAULT_OPTIONS,
    ImageOptions,
    check_image_size,
    is_constant,
    is_turned,
    read_image,
)
from isda.data.walking import image_files, real_path

__all__ = ["equal_files", "read_all", "stray_images"]


def read_all(
    records: Sequence[dict],
    root: Path,
    advance: Callable[[], None],
    options: ImageOptions = DEFAULT_OPTIONS,
) -> tuple[dict[str, str], list[str], list[str]]:
    """Decodes every image, as training will.

    Args:
        records: of COCO's ``images``.
        root: the folder that their file names are relative to.
        advance: called after each image.
        options: how training will read them.

    Returns:
        ``{file name: what is wrong}`` of those that training would stop at, the names of those
        that an EXIF tag turns, and of those whose pixels are all equal.
    """

    def read(record: dict) -> tuple[str, str, bool, bool]:
        path = str(root / record["file_name"])
        problem, turned, constant = "", False, False
        try:
            pixels = read_image(path, "RGB", options)
            turned, constant = is_turned(path), is_constant(pixels)
            check_image_size(
                {"file_name": path, "height": record["height"], "width": record["width"]},
                pixels,
            )
        except ImageError as error:
            problem = str(error)
        advance()
        return record["file_name"], problem, turned, constant

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        results = list(pool.map(read, records))
    broken = {name: problem for name, problem, *_ in results if problem}
    turned = [name for name, _, is_turned, _ in results if is_turned]
    constant = [name for name, problem, _, same in results if same and not problem]
    return broken, turned, constant


def equal_files(paths: Iterable[Path]) -> list[list[Path]]:
    """Groups of files with the same bytes; only files of one length are read."""
    by_length = defaultdict(list)
    for path in dict.fromkeys(paths):
        if path.is_file():
            by_length[path.stat().st_size].append(path)
    groups = defaultdict(list)
    for same_length in by_length.values():
        if len(same_length) > 1:
            for path in same_length:
                groups[hashlib.sha256(path.read_bytes()).digest()].append(path)
    return [group for group in groups.values() if len(group) > 1]


def stray_images(roots: Iterable[Path], named: Iterable[Path]) -> list[str]:
    """Images below the folders that are not among ``named``, sorted."""
    known = set(map(real_path, named))
    images = (path for root in roots if root.is_dir() for path in image_files(root))
    return sorted(set(map(real_path, images)) - known)
