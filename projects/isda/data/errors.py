"""Errors of data sets: one sentence with the culprit and the remedy."""

from isda.errors import UserError

__all__ = ["DatasetError", "ImageError"]


class DatasetError(UserError, ValueError):
    """A data set, its annotations or its images cannot be used as they are.

    Takes the sentence alone, so that PyTorch's data loader can raise it again outside its worker.
    """

    @property
    def sentence(self) -> str:
        """The message without the traceback that a worker's process puts before it."""
        name = f"{type(self).__module__}.{type(self).__qualname__}: "
        return str(self).rpartition(name)[2].strip()


class ImageError(DatasetError):
    """An image file is missing, damaged, or not what its annotation says."""
