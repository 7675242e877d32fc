"""Random streams and determinism: all randomness of a step follows from the seed and the number of the step."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch


def reseed(*numbers: int) -> None:
    """Restart the global random streams of torch, numpy and Python at a state that depends on these numbers only."""
    state = np.random.SeedSequence(numbers).generate_state(2, np.uint64)
    torch.manual_seed(int(state[0] >> np.uint64(1)))
    np.random.seed(int(state[1] & np.uint64(0xFFFFFFFF)))  # noqa: NPY002  # pytorch-metric-learning draws from it
    random.seed(int(state[1]))


def random_states() -> dict[str, Any]:
    """The states of the global random streams of torch, numpy and Python."""
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002  # pytorch-metric-learning draws from it
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restore what `random_states` returned; the states of GPUs only if their number is the same."""
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    random.setstate(states["python"])
    if torch.cuda.is_available() and len(states.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


@contextlib.contextmanager
def separate_random_streams(seed: int) -> Iterator[None]:
    """Start the global random streams from `seed` within the block, and restore their states afterwards."""
    before = random_states()
    reseed(seed)
    try:
        yield
    finally:
        set_random_states(before)


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Use deterministic algorithms within the block on the CPU; on GPUs they are too slow and stay off."""
    settings: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        settings.fill_uninitialized_memory,
    )
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        settings.fill_uninitialized_memory = False  # slow, and of no use: no result depends on such memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = before[2]
