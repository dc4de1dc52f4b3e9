"""Finding the images that annotations name by a place on another machine."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote

from isda.data.changes import Changes
from isda.data.coco_json import find_missing_images
from isda.data.walking import IMAGE_SUFFIXES, files_below

__all__ = ["base_names", "images_by_name", "resolve_file_names"]

_MOST_FILES = 1_000_000  # below a folder, beyond which it is no data set but a disk
_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio puts before names


def base_names(name: str) -> Iterator[str]:
    """What the image may be called on this machine, the most likely first.

    Percent signs are decoded, folders of Unix and Windows taken off, addresses stripped of their
    query, unless it holds the path, as ``/data/local-files/?d=photos/a.png`` does.
    """
    before, _, query = name.partition("?")
    texts = [*parse_qs(query).get("d", []), name, before] if query else [name]
    texts += [unquote(text) for text in texts]
    bases = [re.split(r"[/\\]", text)[-1] for text in texts]
    bases += [_UPLOADED.sub("", base) for base in bases]
    yield from dict.fromkeys(base for base in bases if base)


def images_by_name(folder: Path) -> dict[str, list[Path]]:
    """Paths of the images below a folder by their names; empty where it holds a whole disk."""
    found: dict[str, list[Path]] = {}
    for number, path in enumerate(files_below(folder, IMAGE_SUFFIXES)):
        if number > _MOST_FILES:
            return {}
        found.setdefault(path.name, []).append(path)
    return found


def resolve_file_names(
    content: dict, image_root: str | os.PathLike, changes: Changes, folder: Path | None = None
) -> dict:
    """The content with images found by their base names where no image is at the place named.

    Taken is an image that alone has this name below the data set, and that nothing else names.

    Args:
        content: of a COCO annotation file, with images in order; stays as it is.
        image_root: the folder that the file names are relative to.
        changes: told of the images that were found so.
        folder: of the data set; by default the ``image_root``.

    Returns:
        The same with ``file_name`` relative to ``image_root``.
    """
    missing = set(find_missing_images(content, image_root))
    if not missing or not Path(image_root).is_dir():  # an address is not gone through
        return content
    image_root = Path(image_root).absolute()
    index = images_by_name(folder or image_root)
    places = {name: place for name in missing if (place := _place(name, index))}
    present = {i["file_name"] for i in content["images"]} - missing
    named = Counter(places.values()) + Counter(image_root / name for name in present)
    images = []
    for image in content["images"]:
        place = places.get(image["file_name"])
        if place is not None and named[place] == 1:
            relative = os.path.relpath(place, image_root)
            what = f"'{image['file_name']}' is {relative}"
            kind = "images are not where file_name says, but found by their names"
            changes.mend(kind, what, relative, is_note=True)
            image = image | {"file_name": relative}
        images.append(image)
    return content | {"images": images}


def _place(name: str, index: dict[str, list[Path]]) -> Path | None:
    for base in base_names(name):
        if len(paths := index.get(base, [])) == 1:
            return paths[0].absolute()
        if paths:
            return None
    return None
