"""What a user hears when the data are at fault: one sentence with the culprit and the remedy."""

__all__ = ["DatasetError", "ImageError"]


class DatasetError(ValueError):
    """A data set, its annotations or its images cannot be used as they are.

    Takes the sentence alone, so that PyTorch's data loader can raise it again outside its worker.
    """


class ImageError(DatasetError):
    """An image file is missing, damaged, or not what its annotation says."""
