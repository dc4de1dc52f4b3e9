"""A label image: 0 is background, every other number one instance."""

import io
import os
from typing import TYPE_CHECKING

import cv2
import numpy as np

from isda.files import write_bytes
from isda.prediction.results.outlines import masks_of

if TYPE_CHECKING:
    from isda.prediction.prediction import Prediction

__all__ = ["label_image", "write"]

_LARGEST = np.iinfo(np.uint16).max  # that a PNG holds


def label_image(prediction: "Prediction") -> np.ndarray:
    """``(H, W)`` uint16, or uint32 for more than 65,535 instances.

    Instance i of the prediction has the number i + 1. Where masks overlap, the one with the higher
    score wins; what is wholly below others is not in the image, and its number is left out.
    """
    dtype = np.uint16 if len(prediction) <= _LARGEST else np.uint32
    labels = np.zeros(prediction.image_size, dtype)
    order = prediction.scores.argsort(descending=True, stable=True).tolist()
    ranks = {index: rank for rank, index in enumerate(order)}
    best = np.full(prediction.image_size, len(order), np.int32)
    for index, mask in enumerate(masks_of(prediction)):
        wins = mask & (best > ranks[index])
        labels[wins], best[wins] = index + 1, ranks[index]
    return labels


def write(prediction: "Prediction", path: str | os.PathLike, _) -> None:
    """As TIFF or, by the suffix ``.png``, as PNG.

    Raises:
        OSError: it cannot be written, or a PNG is to hold more than 65,535 instances.
    """
    labels = label_image(prediction)
    if os.fspath(path).lower().endswith(".png"):
        if labels.dtype != np.uint16:
            raise OSError(
                f"cannot write {path}: a PNG holds numbers up to {_LARGEST}, and there are "
                f"{len(prediction)} instances: use .tif"
            )
        _, encoded = cv2.imencode(".png", labels)
        write_bytes(path, encoded)
        return
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, labels, compression="zlib")
    write_bytes(path, file.getbuffer())
