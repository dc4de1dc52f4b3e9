"""Annotated images, which every format is read into, and what could not be read."""

import base64
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image, ImageOps

from isda.data.errors import ImageError
from isda.data.images import check_image_size, first_plane
from isda.data.json_files import load_json
from isda.data.masks import UnusableSegmentationError, usable_rle

__all__ = [
    "AnnotatedImage",
    "Embedded",
    "Instance",
    "Report",
    "UnusableShapeError",
    "encode",
    "merge",
    "placed",
    "read_json",
    "read_size",
]


class UnusableShapeError(ValueError):
    """One shape that no instance can be made of; its text is the reason, to be counted."""


@dataclass
class Instance:
    """One object: the name of its class, and a polygon or RLE as COCO writes it."""

    label: str
    segmentation: list[list[float]] | dict
    is_crowd: bool = False  # a group by COCO's rules; of other formats none is


@dataclass(frozen=True)
class Embedded:
    """An image inside a labelme file, in the place of one on disk."""

    json_file: Path

    def read_bytes(self) -> bytes:
        """The image file as labelme has read it.

        Raises:
            ImageError: what the file holds is not base64.
        """
        try:
            data = json.loads(self.json_file.read_text(encoding="utf-8"))["imageData"]
            return base64.b64decode(data, validate=True)
        except (TypeError, ValueError) as error:
            raise ImageError(
                f"{self.json_file}: its imageData is not an image in base64 ({error}): save the "
                "file again in labelme, or put the image beside it"
            ) from error


@dataclass
class AnnotatedImage:
    """An image with its instances."""

    name: str  # below the image folder that will be written, with / between folders
    source: Path | Embedded
    size: tuple[int, int]  # (height, width)
    instances: list[Instance]
    split: str = ""  # "train", "val" or "test", where the format has such parts


@dataclass
class Report:
    """What was left out, and what stands in the way of a conversion."""

    skipped: list[tuple[str, str]] = field(default_factory=list)  # (shape, reason)
    refused: list[str] = field(default_factory=list)  # a sentence per file that cannot be used
    notes: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)  # in the order that the format gives them

    def skip(self, shape: str, reason: str) -> None:
        """Notes one shape that becomes no instance."""
        self.skipped.append((shape, reason))

    def refuse(self, sentence: object) -> None:
        """Notes a file, or a pair of image and annotation, that cannot be used."""
        self.refused.append(str(sentence))

    def reasons(self) -> Counter[str]:
        """How many shapes were left out, by reason."""
        return Counter(reason for _, reason in self.skipped)


def read_json(path: Path) -> object:
    """The content of a JSON file; raises as :func:`isda.data.json_files.load_json`."""
    return load_json(path)[0]


def read_size(
    source: Path | Embedded, height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """(height, width) of an image as training reads it, which decodes it and so finds damage.

    Args:
        source: of the image.
        height, width: as the annotations state them, if they do.

    Raises:
        ImageError: the image cannot be read, or has another size than stated.
    """
    if isinstance(source, Embedded):
        size = _decode(source).shape[:2]
        if (height or size[0], width or size[1]) != size:
            raise ImageError(
                f"{source.json_file}: its imageData has {size[1]}x{size[0]} pixels (width x "
                f"height), but imageWidth and imageHeight are {width} and {height}: correct them"
            )
        return size
    pixels = first_plane(str(source))  # all are of one size; which is meant, training is told
    stated = {"height": height, "width": width}
    record = {"file_name": str(source)} | {k: v for k, v in stated.items() if v is not None}
    check_image_size(record, pixels)
    return pixels.shape[:2]


def _decode(source: Embedded) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(source.read_bytes())) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except ImageError:
        raise
    except Exception as error:  # on damaged files Pillow's decoders raise all kinds of errors
        raise ImageError(
            f"{source.json_file}: its imageData cannot be decoded as an image ({error}): save the "
            "file again in labelme, or put the image beside it"
        ) from error


def encode(mask: np.ndarray) -> dict:
    """Compressed RLE, as JSON takes it, of an ``(H, W)`` mask."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def placed(bitmap: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """``size`` bool with a bitmap in it, as far as it lies inside.

    Args:
        bitmap: ``(h, w)`` bool.
        corner: (x, y) of its first pixel; may be outside.
        size: (height, width).
    """
    whole = np.zeros(size, dtype=bool)
    (left, top), (height, width) = corner, bitmap.shape
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + height, size[0]), min(left + width, size[1])
    if y1 > y0 and x1 > x0:
        whole[y0:y1, x0:x1] = bitmap[y0 - top : y1 - top, x0 - left : x1 - left]
    return whole


def merge(parts: list[list[list[float]] | dict], size: tuple[int, int]) -> list | dict:
    """One COCO segmentation of the parts of an instance: polygons if all are, else RLE.

    Args:
        parts: each a list of polygons, or an RLE of the image's size.
        size: (height, width) of the image.

    Raises:
        UnusableShapeError: a part is malformed, of zero area, or outside the image.
    """
    rles = []
    for part in parts:
        try:
            rles.append(usable_rle(part, size))
        except UnusableSegmentationError as error:
            raise UnusableShapeError(str(error)) from error
    if all(isinstance(part, list) for part in parts):
        return [polygon for part in parts for polygon in part]
    rle = mask_util.merge(rles)
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
