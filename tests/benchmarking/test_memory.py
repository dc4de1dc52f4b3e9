import pytest
import torch

from isda.benchmarking import memory

CPU = torch.device("cpu")


@pytest.mark.skipif(
    not memory.memory_is_measurable(CPU), reason="this system does not tell a process's memory"
)
def test_a_peak_is_seen_after_it_is_over():
    def much():
        assert torch.ones(2**24).sum() == 2**24  # 64 MB, gone afterwards

    assert 60 * 2**20 < memory.peak_beyond(much, CPU) < 90 * 2**20
    assert memory.peak_beyond(lambda: torch.ones(2**10), CPU) < 10 * 2**20


def test_what_cannot_be_told_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_RESET", tmp_path / "nothing")
    calls = []
    assert memory.peak_beyond(lambda: calls.append(1), CPU) is None
    assert calls == [1]
