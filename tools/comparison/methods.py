"""What is compared, and on which data."""

from dataclasses import dataclass

__all__ = ["Data", "Method"]


@dataclass(frozen=True)
class Data:
    """A data set to train and evaluate on, and the images on which speed is measured.

    Args:
        name: of the command line, and of the folder below configs/.
        backbone: for the table: which network, and how it begins.
        size: (height, width) in pixels of a typical image at inference.
        train_size: the same in training.
        train_batch: images of a training step, the same for all methods.
        instances: of a training image.
    """

    name: str
    backbone: str
    size: tuple[int, int]
    train_size: tuple[int, int]
    train_batch: int
    instances: int


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        name: of the command line, and of the training's folder.
        title: in the table.
        nuclei: its config below configs/nuclei/.
        shapes: its config below configs/shapes/.
    """

    name: str
    title: str
    nuclei: str
    shapes: str

    def config_file(self, data: Data) -> str:
        """Seen from the checkout."""
        return f"configs/{data.name}/{getattr(self, data.name)}.yaml"
