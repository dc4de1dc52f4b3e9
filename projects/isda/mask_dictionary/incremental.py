"""Principal components of masks that are too large for the matrix of all products."""

import numpy as np

from isda.mask_dictionary.moments import dictionary_from_spectrum
from isda.modeling.mask_dictionary import DictionaryError, MaskDictionary

__all__ = ["IncrementalFit"]


class IncrementalFit:
    """Principal components from one batch of masks after the other.

    The singular value decomposition so far is stacked upon the next batch and decomposed anew
    (Ross et al., Incremental Learning for Robust Visual Tracking, IJCV 2008). Twice as many
    directions as asked for are kept until the end: with no more than those, variances of the last
    ones are too small by a tenth, and one of them is lost.
    """

    def __init__(self, side: int, dim: int):
        """
        Args:
            side: S.
            dim: d, of the dictionary in the end.

        Raises:
            DictionaryError: more components than pixels.
        """
        pixels = side * side
        if not 0 < dim <= pixels:
            raise DictionaryError(
                f"{side}×{side} masks have from 1 to {pixels} components, asked for are {dim}"
            )
        self.dim = dim
        self.count = 0  # n
        self._kept = min(2 * dim, pixels)
        self._mean = np.zeros(pixels)
        self._directions = np.zeros((0, pixels))
        self._singular_values = np.zeros(0)

    @property
    def batch_size(self) -> int:
        """Masks that a batch should have at least."""
        return 8 * self.dim

    def add(self, masks: np.ndarray) -> None:
        """
        Args:
            masks: ``(m, S, S)`` or ``(m, S*S)`` bool.
        """
        if not len(masks):
            return
        batch = masks.reshape(len(masks), -1).astype(np.float64)
        before, after = self.count, self.count + len(batch)
        mean = batch.mean(axis=0)
        correction = np.sqrt(before * len(batch) / after) * (self._mean - mean)
        stack = np.concatenate(
            [self._singular_values[:, None] * self._directions, batch - mean, correction[None]]
        )
        _, self._singular_values, self._directions = np.linalg.svd(stack, full_matrices=False)
        self._singular_values = self._singular_values[: self._kept]
        self._directions = self._directions[: self._kept]
        self._mean = (before * self._mean + batch.sum(axis=0)) / after
        self.count = after

    def dictionary(self) -> MaskDictionary:
        """What :meth:`MaskMoments.dictionary` gives, but for what was cut off on the way.

        Raises:
            DictionaryError: there were fewer than two masks.
        """
        if self.count < 2:
            raise DictionaryError(
                f"a dictionary cannot be fitted to {self.count} masks: name annotation files with "
                "more"
            )
        components, values = self._completed()
        # Zeros and ones are their own squares.
        scatter = self.count * (self._mean - self._mean**2).sum()
        return dictionary_from_spectrum(
            components,
            values**2 / (self.count - 1),
            total=float(scatter / (self.count - 1)),
            mean=self._mean,
            count=self.count,
        )

    def _completed(self) -> tuple[np.ndarray, np.ndarray]:
        """d directions and singular values; few masks leave some that are arbitrary, and zero."""
        lacking = self.dim - len(self._directions)
        if lacking <= 0:
            return self._directions[: self.dim], self._singular_values[: self.dim]
        units = np.eye(len(self._mean))[:, : self.dim]
        basis, _ = np.linalg.qr(np.concatenate([self._directions.T, units], axis=1))
        directions = np.concatenate([self._directions, basis.T[len(self._directions) : self.dim]])
        return directions, np.concatenate([self._singular_values, np.zeros(lacking)])
