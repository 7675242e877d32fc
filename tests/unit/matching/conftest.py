"""The kernel, by each of its instruction sets, and without it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from diml.matching import native
from kernel_twin import kernel_off


@pytest.fixture
def without_kernel() -> Iterator[None]:
    """The kernel is missing."""
    with kernel_off():
        yield


@pytest.fixture(params=native.info()["usable"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of the kernel that this machine has."""
    before = native.info()["dispatch"]
    native._KERNEL.choose(request.param)
    yield request.param
    native._KERNEL.choose(before)
