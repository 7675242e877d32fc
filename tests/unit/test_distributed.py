"""One process; several are in tests/end_to_end/test_distributed.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diml.distributed import ProcessGroup, process_group

ALONE = ProcessGroup()


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 112])
def test_shares_are_contiguous_and_even(size, count):
    shares = ProcessGroup(0, size).shares(count)
    assert [i for share in shares for i in range(count)[share]] == list(range(count))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_one_process_returns_its_arguments():
    rows = torch.randn(3, 2, requires_grad=True)
    assert ALONE.gather(rows) is rows
    assert ALONE.gather_objects({"a": 1}) == [{"a": 1}]
    assert ALONE.any(True, False) == (True, False)
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), 3.0)
    ALONE.add_gradients([weight])
    ALONE.average_gradients([weight])
    assert weight.grad.tolist() == [3, 3]
    with ALONE.first_goes_ahead():
        ALONE.wait()


def test_alone_without_torchrun(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group("cpu") as processes:
        assert (processes.rank, processes.size, processes.is_first, processes.device.type) == (0, 1, True, "cpu")


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_a_missing_device_is_named(device):
    with pytest.raises(ValueError, match=f"device: '{device}' is not available"), process_group(device):
        pass


@pytest.mark.parametrize("size", [1, 3])
def test_strides_cover_everything_once(size):
    taken = [i for rank in range(size) for i in ProcessGroup(rank, size).strided(8)]
    assert sorted(taken) == list(range(8))
