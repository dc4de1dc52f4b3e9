"""Fitting of a dictionary to annotation files, and its measurement on others."""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from isda.data.errors import DatasetError
from isda.mask_dictionary.incremental import IncrementalFit
from isda.mask_dictionary.moments import MaskMoments, symmetric_copies
from isda.mask_dictionary.partial_sums import Origin, PartialSums
from isda.mask_dictionary.reconstruction import Reconstruction, joined, reconstruct_chunk
from isda.mask_dictionary.target_masks import AnnotationFile, Chunk, crop_chunk, map_chunks
from isda.modeling.mask_dictionary import DictionaryError, MaskDictionary

__all__ = ["fit_dictionary", "fit_to_moments", "measure", "sum_masks"]

logger = logging.getLogger(__name__)

# Pixels up to which the matrix of all products is accumulated (S = 64: 134 MB).
_MOST_EXACT_PIXELS = 4096


def _ignore(number: int) -> None:
    """Nobody watches."""


def sum_masks(
    files: Sequence[AnnotationFile],
    side: int,
    *,
    shard: int = 0,
    num_shards: int = 1,
    workers: int = 1,
    advance: Callable[[int], None] = _ignore,
) -> PartialSums:
    """Moments of the target masks of one of ``num_shards`` parts of every file.

    Args:
        side: S.
        workers: processes.
        advance: is told the number of annotations whenever some are done.

    Raises:
        DatasetError: a segmentation is of another size than its image.
        DictionaryError: S is too large for moments.
    """
    if side * side > _MOST_EXACT_PIXELS:
        raise DictionaryError(
            f"masks of {side}×{side} are too large for sums that can be merged: fit them on one "
            "machine, without --shard"
        )
    moments, left_out, origins = MaskMoments.zeros(side), Counter(), []
    for file in files:
        function = functools.partial(_moments_of_chunk, side=side)
        for part, reasons in map_chunks(function, file.chunks(shard, num_shards), workers, advance):
            moments += part
            left_out += reasons
        if shard == 0:
            left_out += file.crowds()
        origins.append(Origin(file.name, file.sha256, shard, num_shards))
    return PartialSums(moments, origins, left_out)


def _moments_of_chunk(chunk: Chunk, side: int) -> tuple[MaskMoments, Counter]:
    targets = crop_chunk(chunk, side)
    return MaskMoments.of(targets.masks), targets.left_out


def fit_to_moments(sums: PartialSums, dim: int, symmetry: str) -> MaskDictionary:
    """The dictionary of all masks that were summed, and of their copies.

    Args:
        dim: d.
        symmetry: see :data:`isda.mask_dictionary.moments.SYMMETRIES`.

    Raises:
        DatasetError: there are fewer than two masks.
    """
    _check_masks(sums.moments.count, sums.sources, sums.left_out)
    dictionary = sums.moments.symmetrised(symmetry).dictionary(dim)
    dictionary.sources = sums.sources
    return dictionary


def _check_masks(count: int, names: Sequence[str], left_out: Counter) -> None:
    if count < 2:
        reasons = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
        raise DatasetError(
            f"{', '.join(names)}: {count} usable masks, which no dictionary can be fitted to "
            f"(left out: {reasons or 'none'}): name files with more"
        )


def fit_dictionary(
    files: Sequence[AnnotationFile],
    side: int,
    dim: int,
    *,
    symmetry: str = "none",
    workers: int = 1,
    advance: Callable[[int], None] = _ignore,
) -> tuple[MaskDictionary, Counter]:
    """A dictionary of all target masks of some files; exact, or incremental where S is large.

    Returns:
        The dictionary, and how many annotations were left out, by reason.

    Raises:
        DatasetError: there are fewer than two masks, or a file is there twice.
        DictionaryError: more components than pixels.
    """
    if side * side <= _MOST_EXACT_PIXELS:
        sums = PartialSums.merged([sum_masks(files, side, workers=workers, advance=advance)])
        return fit_to_moments(sums, dim, symmetry), sums.left_out
    fit, left_out = IncrementalFit(side, dim), Counter()
    copies = symmetric_copies(symmetry)
    waiting: list[np.ndarray] = []
    for file in files:
        left_out += file.crowds()
        function = functools.partial(crop_chunk, side=side)
        for targets in map_chunks(function, file.chunks(), workers, advance):
            left_out += targets.left_out
            waiting += [copy(targets.masks) for copy in copies]
            if sum(map(len, waiting)) >= fit.batch_size:
                fit.add(np.concatenate(waiting))
                waiting.clear()
    if waiting:
        fit.add(np.concatenate(waiting))
    sources = {file.name: file.sha256 for file in files}
    _check_masks(fit.count // len(copies), sources, left_out)
    dictionary = fit.dictionary()
    dictionary.sources = sources
    return dictionary, left_out


def measure(
    dictionary: MaskDictionary,
    file: AnnotationFile,
    dims: Sequence[int],
    *,
    workers: int = 1,
    advance: Callable[[int], None] = _ignore,
) -> Reconstruction:
    """Reconstruct all masks of a file with the first d components, for each d of ``dims``.

    Raises:
        DatasetError: the file has no usable mask.
        DictionaryError: there are fewer components than a d.
    """
    function = functools.partial(reconstruct_chunk, dictionary=dictionary, dims=dims)
    result = joined(map_chunks(function, file.chunks(), workers, advance))
    result.left_out += file.crowds()
    if not len(result.ious):
        _check_masks(0, [file.name], result.left_out)
    return result
