"""Options that a file does not tell: which of its pixels are meant, and how they become 8 bits."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from detectron2.config import CfgNode

__all__ = ["DEFAULT_OPTIONS", "MAX_PIXELS", "ImageOptions"]

MAX_PIXELS = 178_956_970  # Pillow's own limit


@dataclass(frozen=True)
class ImageOptions:
    """How image files are read; the same for all images of a model and of its training.

    Attributes:
        intensity: ``INPUT.INTENSITY``, how pixels of other types than 8 bits are scaled to them;
            see :func:`isda.data.images.intensity.limits`.
        page: ``INPUT.PAGE``, which page of a file that has several, from 0; -1: it must have one.
        channel: ``INPUT.CHANNEL``, which channel, from 0, becomes a grey image; -1: the file must
            have one, or red, green and blue.
        max_pixels: ``INPUT.MAX_PIXELS``, beyond which an image is refused: a small damaged or
            hostile file can claim any size.
    """

    intensity: str = "percentile"
    page: int = -1
    channel: int = -1
    max_pixels: int = MAX_PIXELS

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "ImageOptions":
        return cls(cfg.INPUT.INTENSITY, cfg.INPUT.PAGE, cfg.INPUT.CHANNEL, cfg.INPUT.MAX_PIXELS)

    @classmethod
    def of_keys(cls, values: Mapping[str, object]) -> "ImageOptions":
        """Of values by the full names of keys, which an older config may lack."""
        keys = {f"INPUT.{field.name.upper()}": field for field in fields(cls)}
        return cls(*(values.get(key, field.default) for key, field in keys.items()))


DEFAULT_OPTIONS = ImageOptions()
