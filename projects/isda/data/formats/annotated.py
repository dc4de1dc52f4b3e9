"""What every format is read into, and what could not be read."""

import base64
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image, ImageOps

from isda.data.errors import DatasetError, ImageError
from isda.data.images import check_image_size, first_plane
from isda.data.masks import UnusableSegmentationError, compressed_rle, parse_segmentation

__all__ = [
    "IMAGE_SUFFIXES",
    "AnnotatedImage",
    "Embedded",
    "Instance",
    "Report",
    "UnusableShapeError",
    "encode",
    "image_files",
    "merge",
    "read_json",
    "read_size",
]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})


class UnusableShapeError(ValueError):
    """One shape that no instance can be made of; its text is the reason, to be counted."""


@dataclass
class Instance:
    """One object: the name of its class, and a polygon or RLE as COCO writes it."""

    label: str
    segmentation: list[list[float]] | dict


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


@dataclass
class Report:
    """What was left out, and what stands in the way of a conversion."""

    skipped: list[tuple[str, str]] = field(default_factory=list)  # (shape, reason)
    refused: list[str] = field(default_factory=list)  # a sentence per file that cannot be used
    notes: list[str] = field(default_factory=list)

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
    """The content of a JSON file; a byte order mark, as Windows writes it, does not matter.

    Raises:
        DatasetError: it is not JSON, or not text.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}): "
            "is the file whole? Save or export it again"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: not a text file in UTF-8 (byte {error.start}): save it as plain JSON"
        ) from error


def image_files(folder: Path) -> list[Path]:
    """All images below a folder, sorted; hidden ones, as macOS leaves them, are not among them."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


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


def merge(parts: list[list[list[float]] | dict], size: tuple[int, int]) -> list | dict:
    """One COCO segmentation of the parts of an instance: polygons if all are, else RLE.

    Args:
        parts: each a list of polygons, or an RLE of the image's size.
        size: (height, width) of the image.

    Raises:
        UnusableShapeError: a part is malformed, of zero area, or outside the image.
    """
    for part in parts:
        try:
            parse_segmentation(part, size)
        except UnusableSegmentationError as error:
            raise UnusableShapeError(str(error)) from error
        if mask_util.area(compressed_rle(part, size)) == 0:  # between the centres of pixels
            raise UnusableShapeError("of zero area")
    if all(isinstance(part, list) for part in parts):
        return [polygon for part in parts for polygon in part]
    rle = mask_util.merge([compressed_rle(part, size) for part in parts])
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
