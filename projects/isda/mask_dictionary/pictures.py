"""A dictionary to look at: its mean, its components, and masks beside what it makes of them."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from isda.modeling.mask_dictionary import MaskDictionary
from isda.modeling.mask_embedding import MaskEmbedding
from isda.visualization import add_title, contact_sheet

__all__ = ["draw_dictionary"]

_SIDE = 96  # pixels of a drawn mask at least


def draw_dictionary(
    dictionary: MaskDictionary, masks: np.ndarray, dims: Sequence[int], num_components: int = 16
) -> np.ndarray:
    """Two contact sheets, one below the other.

    Args:
        masks: ``(n, S, S)`` bool.
        dims: for each d, a column of masks decoded from the first d components.

    Returns:
        ``(H, W, 3)`` uint8, RGB. Components are red where positive and blue where negative.
    """
    columns = len(dims) + 1
    upper = contact_sheet(_basis(dictionary, num_components), columns=2 * columns)
    lower = contact_sheet(_pairs(dictionary, masks, dims), columns=2 * columns)
    width = max(upper.shape[1], lower.shape[1])
    sheets = [
        np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255)
        for s in (upper, lower)
    ]
    return np.vstack(sheets)


def _basis(dictionary: MaskDictionary, num_components: int) -> list[np.ndarray]:
    mean = torch.from_numpy(dictionary.mean).sigmoid().numpy()
    pictures = [add_title(_gray(mean.reshape(dictionary.side, -1)), "mean")]
    for index, component in enumerate(dictionary.components[:num_components]):
        picture = _signed(component.reshape(dictionary.side, -1))
        pictures.append(add_title(picture, f"component {index + 1}"))
    return pictures


def _pairs(dictionary: MaskDictionary, masks: np.ndarray, dims: Sequence[int]) -> list[np.ndarray]:
    """Row after row, in two masks each: the original, then decoded with each d."""
    decoded = []
    for dim in dims:
        embedding = MaskEmbedding.of(dictionary.first(dim))
        with torch.no_grad():
            decoded.append(embedding.decode(embedding.encode(torch.from_numpy(masks))).numpy())
    pictures = []
    for index, mask in enumerate(masks):
        pictures.append(add_title(_gray(mask), "original"))
        for dim, masks_of_dim in zip(dims, decoded):
            found = masks_of_dim[index]
            iou = (mask & (found >= 0.5)).sum() / (mask | (found >= 0.5)).sum()
            pictures.append(add_title(_gray(found), f"d={dim}, IoU {iou:.2f}"))
    return pictures


def _gray(values: np.ndarray) -> np.ndarray:
    """[0, 1] from black to white."""
    return _enlarged(np.repeat((255 * values.astype(np.float64)).astype(np.uint8)[..., None], 3, 2))


def _signed(values: np.ndarray) -> np.ndarray:
    """White at zero, red above and blue below, as strong as the largest magnitude."""
    share = values / np.abs(values).max()
    red, blue = 1 - np.clip(-share, 0, 1), 1 - np.clip(share, 0, 1)
    return _enlarged((255 * np.stack([red, np.minimum(red, blue), blue], axis=-1)).astype(np.uint8))


def _enlarged(image: np.ndarray) -> np.ndarray:
    factor = -(-_SIDE // len(image))
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
