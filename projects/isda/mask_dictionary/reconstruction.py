"""Reconstruction error: how well masks survive encoding and decoding."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from isda.mask_dictionary.target_masks import Chunk, crop_chunk
from isda.modeling.mask_dictionary import MaskDictionary
from isda.modeling.mask_embedding import MaskEmbedding

__all__ = ["SIZES", "Reconstruction", "joined", "reconstruct", "reconstruct_chunk"]

# COCO's bounds of area, in pixels of the image.
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, float("inf"))}

_THRESHOLD = 0.5


@dataclass
class Reconstruction:
    """Masks beside what a dictionary makes of them, of each d that was tried.

    ``+`` joins those of two sets of masks.
    """

    dims: tuple[int, ...]  # the tried d
    ious: np.ndarray  # (n, len(dims)) foreground IoU of each mask
    areas: np.ndarray  # (n,) pixels of the whole instances
    # (len(dims), 4) pixels of all masks: intersection and union, of foreground and background.
    pooled: np.ndarray
    left_out: Counter = field(default_factory=Counter)  # reason: how many annotations

    def __add__(self, other: "Reconstruction") -> "Reconstruction":
        return Reconstruction(
            self.dims,
            np.concatenate([self.ious, other.ious]),
            np.concatenate([self.areas, other.areas]),
            self.pooled + other.pooled,
            self.left_out + other.left_out,
        )

    def summary(self) -> list[dict[str, float]]:
        """Per d: ``mean``, ``median``, ``5th percentile``, the means by size, and ``pooled``.

        A size without a mask is NaN. ``pooled`` is the authors' metric: IoU of foreground and of
        background over all pixels of the set, averaged.
        """
        rows = []
        for column, pooled in zip(self.ious.T, self.pooled):
            row = {
                "mean": column.mean(),
                "median": np.median(column),
                "5th percentile": np.percentile(column, 5),
            }
            for name, (lowest, highest) in SIZES.items():
                of_size = column[(self.areas >= lowest) & (self.areas < highest)]
                row[name] = of_size.mean() if len(of_size) else np.nan
            row["pooled"] = (pooled[0] / pooled[1] + pooled[2] / max(pooled[3], 1)) / 2
            rows.append({name: float(value) for name, value in row.items()})
        return rows


@torch.no_grad()
def reconstruct(
    dictionary: MaskDictionary, masks: np.ndarray, dim: int | None = None
) -> np.ndarray:
    """Encode, decode with the first ``dim`` components, and cut at a half.

    Args:
        masks: ``(n, S, S)`` bool.

    Returns:
        ``(n, S, S)`` bool.
    """
    embedding = MaskEmbedding.of(dictionary.first(dim or dictionary.dim))
    decoded = embedding.decode(embedding.encode(torch.from_numpy(masks)))
    return (decoded >= _THRESHOLD).numpy()


def reconstruct_chunk(
    chunk: Chunk, dictionary: MaskDictionary, dims: Sequence[int]
) -> Reconstruction:
    """Crop the masks of some annotations, and reconstruct them with each d of ``dims``."""
    targets = crop_chunk(chunk, dictionary.side)
    ious, pooled = [], []
    for dim in dims:
        found = reconstruct(dictionary, targets.masks, dim)
        counts = _overlaps(found, targets.masks)  # (n, 4)
        ious.append(counts[:, 0] / counts[:, 1])
        pooled.append(counts.sum(axis=0))
    return Reconstruction(
        tuple(dims), np.stack(ious, axis=1), targets.areas, np.stack(pooled), targets.left_out
    )


def _overlaps(found: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """``(n, 4)`` pixels: intersection and union, of foreground and of background."""
    sets = [found & masks, found | masks, ~(found | masks), ~(found & masks)]
    return np.stack([s.sum(axis=(1, 2)) for s in sets], axis=1)


def joined(parts: Iterable[Reconstruction]) -> Reconstruction:
    """All parts as one; there is at least one."""
    parts = iter(parts)
    return sum(parts, next(parts))
