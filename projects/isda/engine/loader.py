"""Training data whose order and augmentation are functions of the seed and the position.

Detectron2's loader forgets where it was: its sampler starts anew, its workers' generators depend
on their history, and its aspect ratio buckets are filled in the loader. Here the position in the
stream decides everything, so that a resumed training reads exactly what the interrupted one would
have read, whatever the number of workers.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler

from isda.engine.random_state import preserved_random_state, seed_cpu
from isda.errors import ConfigError

__all__ = [
    "ResumableSampler",
    "SeededDataset",
    "build_sampler",
    "build_train_loader",
    "training_dicts",
]

logger = logging.getLogger(__name__)


class ResumableSampler(Sampler):
    """Pairs (position in the stream, index), from any position on, batches of one orientation.

    Args:
        sampler: an endless sampler of indices of this process, the same at every iteration.
        batch_size: images per batch of this process; used with ``groups`` only.
        groups: a group number per index. Each run of ``batch_size`` pairs is of one group.
    """

    def __init__(
        self, sampler: Iterable[int], batch_size: int = 1, groups: Sequence[int] | None = None
    ):
        self.sampler = sampler
        self.batch_size = batch_size
        self.groups = groups
        self.start = 0  # pairs of this process to pass over
        self.rank, self.world_size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        stream = (
            (position * self.world_size + self.rank, index)
            for position, index in enumerate(self.sampler)
        )
        if self.groups is not None:
            stream = self._grouped(stream)
        return itertools.islice(stream, self.start, None)

    def _grouped(self, stream: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        buckets: dict[int, list[tuple[int, int]]] = {}
        for position, index in stream:
            bucket = buckets.setdefault(self.groups[index], [])
            bucket.append((position, index))
            if len(bucket) == self.batch_size:
                yield from bucket
                bucket.clear()


class SeededDataset(Dataset):
    """Maps (position, index) to a training example, with random numbers seeded by the position."""

    def __init__(self, dicts: list[dict], mapper: Callable[[dict], dict | None], seed: int):
        """
        Args:
            mapper: may return None for a record without use; the next one takes its place.
        """
        self.records = DatasetFromList(dicts, copy=False)
        self.mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        position, index = key
        with preserved_random_state():
            seed_cpu(self.seed, position)
            for offset in range(len(self)):
                example = self.mapper(self.records[(index + offset) % len(self)])
                if example is not None:
                    return example
        raise ValueError("the data set mapper rejected every record of the training data")


def training_dicts(cfg: CfgNode) -> list[dict]:
    """The records of ``DATASETS.TRAIN``, filtered as the config says; an epoch is one pass."""
    return get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )


def build_train_loader(cfg: CfgNode, dicts: list[dict], mapper: Callable) -> Iterable[list[dict]]:
    """Endless batches of this process, one for each forward and backward pass.

    ``loader.dataset.sampler`` is a ``ResumableSampler``; set its ``start`` before iterating.
    """
    images_per_pass = cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATION
    groups = None
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING and all("width" in record for record in dicts):
        groups = [int(record["width"] > record["height"]) for record in dicts]
    sampler = ResumableSampler(
        build_sampler(cfg, dicts), images_per_pass // comm.get_world_size(), groups
    )
    return build_detection_train_loader(
        SeededDataset(dicts, mapper, cfg.SEED),
        mapper=None,  # SeededDataset maps already
        sampler=sampler,
        total_batch_size=images_per_pass,
        aspect_ratio_grouping=False,  # the sampler groups already
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        seed=cfg.SEED,
    )


def build_sampler(cfg: CfgNode, dicts: list[dict]) -> Sampler:
    """Detectron2's sampler ``DATALOADER.SAMPLER_TRAIN``, seeded by ``SEED``."""
    name, seed = cfg.DATALOADER.SAMPLER_TRAIN, cfg.SEED
    if name == "TrainingSampler":
        return TrainingSampler(len(dicts), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dicts, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return RepeatFactorTrainingSampler(torch.as_tensor(factors), seed=seed)
    raise ConfigError(
        "DATALOADER.SAMPLER_TRAIN must be TrainingSampler or RepeatFactorTrainingSampler, "
        f"got {name!r}"
    )
