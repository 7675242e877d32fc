from __future__ import annotations

import random

import numpy as np
import torch

from diml.training.randomness import (
    deterministic,
    random_states,
    reseed,
    separate_random_streams,
    set_random_states,
)


def test_random_streams_continue_where_they_were():
    before = random_states()
    first = [torch.rand(1).item(), np.random.rand(), random.random()]  # noqa: NPY002
    set_random_states(before)
    assert [torch.rand(1).item(), np.random.rand(), random.random()] == first  # noqa: NPY002


def test_random_streams_are_restored():
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    wanted = [torch.rand(1).item(), np.random.rand(), random.random()]  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    with separate_random_streams(0):
        torch.rand(100)
        np.random.rand(100)  # noqa: NPY002
        random.random()
    assert [torch.rand(1).item(), np.random.rand(), random.random()] == wanted  # noqa: NPY002


def test_streams_differ_by_step_and_process():
    drawn = []
    for numbers in [(0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 0, 2)]:
        reseed(*numbers)
        drawn.append(torch.rand(1).item())
    assert len(set(drawn)) == 5


def test_deterministic_restores_the_settings_of_torch():
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    with deterministic(torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled()
    after = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    assert after == before
