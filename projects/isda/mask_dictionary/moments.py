"""Exact moments of binary masks, and the dictionary that follows from them."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from isda.mask_dictionary import SYMMETRIES
from isda.modeling.mask_dictionary import AMPLITUDE, DictionaryError, MaskDictionary

__all__ = [
    "NOISE_VARIANCE",
    "SYMMETRIES",
    "MaskMoments",
    "dictionary_from_spectrum",
    "symmetric_copies",
]

logger = logging.getLogger(__name__)

# Variance of the authors' random logits about AMPLITUDE: what the noise adds to every variance of
# their fit, and what keeps whitening finite where masks do not vary.
NOISE_VARIANCE = 0.3312

_EXACT_IN_FLOAT32 = 1 << 24

Transform = Callable[[np.ndarray], np.ndarray]


def symmetric_copies(symmetry: str) -> list[Transform]:
    """What maps ``(..., S, S)`` to its copies, itself first."""
    transforms: list[Transform] = [lambda masks: masks]
    if symmetry not in SYMMETRIES:
        raise ValueError(f"the symmetry must be one of {', '.join(SYMMETRIES)}, got {symmetry!r}")
    if symmetry == "none":
        return transforms
    transforms.append(lambda masks: masks[..., ::-1])
    if symmetry == "all":
        transforms += [lambda masks, t=t: t(masks)[..., ::-1, :] for t in transforms]
        transforms += [lambda masks, t=t: t(masks).swapaxes(-1, -2) for t in transforms]
    return transforms


@dataclass
class MaskMoments:
    """Sums over n binary masks of D pixels, in integers: exact, and in any order the same."""

    count: int  # n
    sums: np.ndarray  # (D,) int64, of masks
    products: np.ndarray  # (D, D) int64, of mask maskᵀ

    @classmethod
    def zeros(cls, side: int) -> "MaskMoments":
        pixels = side * side
        return cls(0, np.zeros(pixels, np.int64), np.zeros((pixels, pixels), np.int64))

    @classmethod
    def of(cls, masks: np.ndarray) -> "MaskMoments":
        """
        Args:
            masks: ``(n, S, S)`` bool, fewer than 2²⁴.
        """
        assert len(masks) < _EXACT_IN_FLOAT32, len(masks)
        flat = torch.from_numpy(masks).flatten(1).to(torch.float32)
        products = (flat.T @ flat).to(torch.int64).numpy()
        return cls(len(masks), products.diagonal().copy(), products)

    def __add__(self, other: "MaskMoments") -> "MaskMoments":
        return MaskMoments(
            self.count + other.count, self.sums + other.sums, self.products + other.products
        )

    @property
    def side(self) -> int:
        return math.isqrt(len(self.sums))

    def symmetrised(self, symmetry: str) -> "MaskMoments":
        """The moments of all masks and their copies, without drawing these."""
        pixels = np.arange(len(self.sums)).reshape(self.side, self.side)
        orders = [copy(pixels).flatten() for copy in symmetric_copies(symmetry)]
        return MaskMoments(
            self.count * len(orders),
            sum(self.sums[order] for order in orders),
            sum(self.products[np.ix_(order, order)] for order in orders),
        )

    def dictionary(self, dim: int) -> MaskDictionary:
        """Principal components of the masks as logits (ISTR, arXiv 2105.00637, section 3.2).

        Raises:
            DictionaryError: there are fewer than two masks, or fewer pixels than components.
        """
        _check_count(self.count, dim, self.side)
        sums = self.sums.astype(np.float64)
        scatter = self.products - np.outer(sums, sums / self.count)
        covariance = (scatter + scatter.T) / (2 * (self.count - 1))
        variances, vectors = np.linalg.eigh(covariance)
        return dictionary_from_spectrum(
            vectors.T[::-1][:dim],
            variances[::-1][:dim],
            total=float(np.trace(covariance)),
            mean=sums / self.count,
            count=self.count,
        )


def _check_count(count: int, dim: int, side: int) -> None:
    if count < 2:
        raise DictionaryError(
            f"a dictionary cannot be fitted to {count} masks: name annotation files with more"
        )
    if not 0 < dim <= side * side:
        raise DictionaryError(
            f"{side}×{side} masks have from 1 to {side * side} components, asked for are {dim}"
        )


def dictionary_from_spectrum(
    components: np.ndarray, variances: np.ndarray, *, total: float, mean: np.ndarray, count: int
) -> MaskDictionary:
    """Scale principal components of binary masks to those of logits ±a.

    Args:
        components: ``(d, D)`` orthonormal rows.
        variances: ``(d,)`` of binary masks along them, falling.
        total: variance of binary masks over all D directions.
        mean: ``(D,)`` of binary masks.
        count: masks, copies included.
    """
    variances = np.clip(variances, 0, None)
    # Below this, float64 cannot tell a variance from zero.
    rank = int((variances > 1e-10 * max(total, 1e-300)).sum())
    if rank < len(components):
        logger.warning(
            f"{count} masks vary in {rank} directions only, asked for are {len(components)} "
            "components: the others say nothing; fit to more masks"
        )
    # The largest entry is positive. Of symmetric masks, several are the largest: take the first.
    magnitudes = np.abs(components)
    largest = magnitudes >= magnitudes.max(axis=1, keepdims=True) * (1 - 1e-6)
    leading = np.take_along_axis(components, largest.argmax(axis=1)[:, None], axis=1)
    return MaskDictionary(
        components=(components * np.sign(leading)).astype(np.float32),
        mean=(AMPLITUDE * (2 * mean - 1)).astype(np.float32),
        explained_variance=(4 * AMPLITUDE**2 * variances + NOISE_VARIANCE).astype(np.float32),
        explained_variance_ratio=(variances / max(total, 1e-300)).astype(np.float32),
        num_masks=count,
    )
