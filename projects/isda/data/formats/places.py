"""Places of the images that annotations belong to."""

from pathlib import Path, PurePosixPath

from isda.data.errors import DatasetError, ImageError
from isda.data.file_names import base_names, images_by_name

__all__ = ["ImagePlaces", "split_of"]

_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def split_of(name: str) -> str:
    """The split that a name of a folder or subset speaks of: "train", "val", "test" or none."""
    return next((split for split, words in _SPLITS.items() if name.lower() in words), "")


class ImagePlaces:
    """Finds images by the names that annotations have for them."""

    def __init__(self, origin: Path, images: Path | None = None):
        """
        Args:
            origin: file or folder of the annotations.
            images: the folder of the images, if the user has named one.

        Raises:
            DatasetError: there is no such folder.
        """
        if images is not None and not images.is_dir():
            raise DatasetError(f"{images}: no such folder: correct --images")
        self.folder = images or (origin if origin.is_dir() else origin.parent)
        self._index: dict[str, list[Path]] | None = None

    def find(self, name: str, where: object) -> Path:
        """The image that ``name`` means: at its path below the folder, else by its name alone.

        Args:
            name: a path or an address, of this machine or another.
            where: what names it, for the message.

        Raises:
            ImageError: it is not there, or the name alone fits several.
        """
        relative = PurePosixPath(name.replace("\\", "/"))
        is_inner = not relative.is_absolute() and ".." not in relative.parts
        if is_inner and (self.folder / relative).is_file():
            return self.folder / relative
        if self._index is None:
            self._index = images_by_name(self.folder)
        for base in base_names(name):
            found = self._index.get(base, [])
            if len(found) == 1:
                return found[0]
            if found:
                raise ImageError(
                    f"{where}: its image {name} could be {found[0]} or {found[1]}: name the folder "
                    "of the images by --images"
                )
        raise ImageError(
            f"{where}: its image {name} is not in {self.folder}: name the folder of the images by "
            "--images"
        )

    def name_of(self, image: Path) -> str:
        """The image's path below the folder, with / between folders."""
        if image.is_relative_to(self.folder):
            return image.relative_to(self.folder).as_posix()
        return image.name
