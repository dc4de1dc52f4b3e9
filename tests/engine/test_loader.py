import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from toys import toy_config

from isda.engine.loader import ResumableSampler, SeededDataset, build_sampler
from isda.engine.random_state import random_state, set_random_state


def take(sampler, count):
    return list(itertools.islice(iter(sampler), count))


def test_positions_count_and_indices_are_detectron2s():
    sampler = ResumableSampler(TrainingSampler(7, seed=3))
    positions, indices = zip(*take(sampler, 20), strict=True)
    assert positions == tuple(range(20))
    assert list(indices) == list(itertools.islice(TrainingSampler(7, seed=3), 20))


def test_processes_share_the_stream(monkeypatch):
    whole = take(ResumableSampler(TrainingSampler(7, seed=3)), 12)
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts += take(ResumableSampler(TrainingSampler(7, seed=3)), 4)
    assert sorted(parts) == whole


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("start", [0, 4, 12])
def test_from_any_position_on(grouped, start):
    groups = [0, 1, 1, 0, 1] if grouped else None
    sampler = ResumableSampler(TrainingSampler(5, seed=3), 4, groups)
    straight = take(sampler, 40)
    sampler.start = start
    assert take(sampler, 40 - start) == straight[start:]


def test_groups_are_detectron2s_batches():
    widths = [10, 30, 30, 10, 30, 10, 30]
    groups = [int(width > 20) for width in widths]
    stream = itertools.islice(TrainingSampler(7, seed=5), 200)
    records = ({"width": widths[index], "height": 20, "index": index} for index in stream)
    expected = [[r["index"] for r in batch] for batch in AspectRatioGroupedDataset(records, 4)]
    found = take(ResumableSampler(TrainingSampler(7, seed=5), 4, groups), 4 * len(expected))
    assert [index for _, index in found] == [index for batch in expected for index in batch]


def draws(record):
    return {**record, "drawn": (random.random(), np.random.rand(), torch.rand(1).item())}


def test_random_numbers_depend_on_the_position_and_leave_no_trace():
    dataset = SeededDataset([{"index": i} for i in range(3)], draws, seed=1)
    before = random_state()
    first, again, other = dataset[5, 0], dataset[5, 0], dataset[6, 0]
    assert random_state() == before
    assert first == again
    assert not set(first["drawn"]) & set(other["drawn"])
    assert SeededDataset([{"index": 0}], draws, seed=2)[5, 0]["drawn"] != first["drawn"]


def test_rejected_records_are_replaced_by_the_next():
    def reject_odd(record):
        return None if record["index"] % 2 else record

    records = [{"index": i} for i in range(4)]
    dataset = SeededDataset(records, reject_odd, seed=1)
    assert [dataset[0, i]["index"] for i in range(4)] == [0, 2, 2, 0]
    with pytest.raises(ValueError, match="rejected every record"):
        SeededDataset(records, lambda record: None, seed=1)[0, 0]


def test_random_state_comes_back():
    state = random_state()
    first = (random.random(), np.random.rand(), torch.rand(1).item())
    set_random_state(state)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == first


@pytest.mark.parametrize("name", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_samplers_are_functions_of_the_seed(name):
    dicts = [{"annotations": [{"category_id": i % 2}]} for i in range(9)]
    overrides = ("DATALOADER.SAMPLER_TRAIN", name, "DATALOADER.REPEAT_THRESHOLD", 0.9)
    cfg = toy_config("", *overrides)
    assert take(build_sampler(cfg, dicts), 30) == take(build_sampler(cfg, dicts), 30)
    other = toy_config("", *overrides, "SEED", 8)
    assert take(build_sampler(cfg, dicts), 30) != take(build_sampler(other, dicts), 30)


def test_unknown_sampler():
    cfg = toy_config("", "DATALOADER.SAMPLER_TRAIN", "WeightedTrainingSampler")
    with pytest.raises(ValueError, match="SAMPLER_TRAIN must be .*, got .Weighted"):
        build_sampler(cfg, [{}])
