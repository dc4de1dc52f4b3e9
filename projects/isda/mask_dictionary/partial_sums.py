"""Sums over parts of annotation files, which several machines work out and one adds up."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from isda.mask_dictionary.moments import MaskMoments
from isda.modeling.mask_dictionary import DictionaryError, pairs_of, read_archive, write_archive

__all__ = ["Origin", "PartialSums"]


class Origin(NamedTuple):
    """Which annotations were counted: number ``shard`` (from 0) of ``num_shards`` of a file."""

    name: str
    sha256: str
    shard: int
    num_shards: int


@dataclass
class PartialSums:
    """Moments of the masks of some annotations."""

    moments: MaskMoments
    origins: list[Origin]
    left_out: Counter = field(default_factory=Counter)  # reason: how many annotations

    def save(self, path: str | os.PathLike) -> None:
        """Write one ``.npz`` without pickles."""
        write_archive(
            path,
            count=self.moments.count,
            sums=self.moments.sums,
            products=self.moments.products,
            origins=np.array(self.origins, dtype=str).reshape(-1, len(Origin._fields)),
            reasons=np.array([*self.left_out], dtype=str),
            left_out=np.array([*self.left_out.values()], dtype=np.int64),
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "PartialSums":
        """
        Raises:
            DictionaryError: the file cannot be read, or holds no sums.
        """
        content = read_archive(path)
        if "products" not in content:
            raise DictionaryError(
                f"{path}: holds no partial sums: name what isda mask-dictionary fit --shard "
                "has written"
            )
        moments = MaskMoments(int(content["count"]), content["sums"], content["products"])
        origins = [Origin(n, sha, int(i), int(of)) for n, sha, i, of in content["origins"].tolist()]
        return cls(moments, origins, Counter(pairs_of(content, "reasons", "left_out", int)))

    @classmethod
    def merged(cls, parts: Sequence["PartialSums"]) -> "PartialSums":
        """The sum of parts: in any order, and however files were split, the same.

        Raises:
            DictionaryError: some annotations would count twice or not at all, or S differs.
        """
        sides = sorted({part.moments.side for part in parts})
        if len(sides) != 1:
            listed = " and ".join(f"{side}×{side}" for side in sides)
            raise DictionaryError(f"the parts have masks of {listed}: fit them with one --side")
        origins = sorted(origin for part in parts for origin in part.origins)
        _check_complete(origins)
        return cls(
            sum((part.moments for part in parts), MaskMoments.zeros(sides[0])),
            origins,
            sum((part.left_out for part in parts), Counter()),
        )

    @property
    def sources(self) -> dict[str, str]:
        """Name and SHA-256 of the annotation files."""
        return {origin.name: origin.sha256 for origin in self.origins}


def _check_complete(origins: Sequence[Origin]) -> None:
    by_file = defaultdict(list)
    for origin in origins:
        by_file[origin.sha256].append(origin)
    for same in by_file.values():
        name, _, _, number = same[0]
        splits = sorted({origin.num_shards for origin in same})
        if len(splits) > 1:
            raise DictionaryError(
                f"{name} was split into {splits[0]} shards and into {splits[1]}: some masks would "
                "count twice; fit its parts with one number"
            )
        counts = Counter(origin.shard for origin in same)
        twice = [f"{shard + 1}/{number}" for shard, times in counts.items() if times > 1]
        if twice:
            raise DictionaryError(
                f"{name}: shard {twice[0]} is there more than once: name every part and every "
                "annotation file once"
            )
        missing = [f"{shard + 1}/{number}" for shard in range(number) if shard not in counts]
        if missing:
            raise DictionaryError(
                f"{name}: {len(missing)} of {number} shards are missing, first {missing[0]}: "
                "name all parts"
            )
