"""The compiled kernel against its twin in torch: images to compare, ways to turn the kernel off, and laws of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
import torch

from diml.matching import Matcher, Regions, native
from diml.objectives import pack_regions

needs_kernel: Final = pytest.mark.skipif(not native.info()["available"], reason=native.info()["reason"])


def images(count: int, regions: int = 16, dim: int = 24, seed: int = 0, dtype: torch.dtype = torch.float32) -> Regions:
    """Random images around a shared direction."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(count, regions, dim, generator=generator) + 0.7 * torch.randn(1, 1, dim, generator=generator)
    return Regions.normalized(dense, dense.mean(dim=1)).to(dtype)


@contextmanager
def kernel_off() -> Iterator[None]:
    """The kernel is missing meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_KERNEL", None)
        patch.setattr(native, "_REASON", "turned off by a test")
        yield


def by_twin(call: Callable[[], Any]) -> Any:
    """What a call returns without the kernel."""
    with kernel_off():
        return call()


def kernel_or_twin(request: pytest.FixtureRequest) -> Iterator[str]:
    """Body of a fixture with the parameters "kernel" and "twin": both ways of computing a plan."""
    if request.param == "twin":
        with kernel_off():
            yield request.param
        return
    if not native.info()["available"]:
        pytest.skip(native.info()["reason"])
    yield request.param


def assert_scores_stand_alone(matcher: Matcher) -> None:
    """A score depends neither on the candidates that are scored with it nor on the number of threads."""
    query, gallery = images(3), images(50, seed=1)
    rows, before = torch.arange(50).expand(3, 50), torch.get_num_threads()
    together = matcher.score(query, gallery, rows)
    try:
        torch.set_num_threads(3)
        assert torch.equal(matcher.score(query, gallery, rows), together)
    finally:
        torch.set_num_threads(before)
    for column in (0, 17, 49):
        assert torch.equal(matcher.score(query, gallery, rows[:, column : column + 1])[:, 0], together[:, column])


def assert_trains_as_torch(distance: Any) -> None:
    """Values and gradients of a structural distance of 9 regions are those that torch computes, and all converge."""
    results = []
    for patched in (False, True):
        sides = [pack_regions(images(5, 9, seed=seed)).detach().requires_grad_() for seed in (0, 1)]
        with pytest.MonkeyPatch.context() as patch:
            if patched:
                patch.setattr(native, "suits", lambda *tensors: False)
            values = distance(*sides)
        (values * torch.linspace(-1, 2, 25).view(5, 5)).sum().backward()
        results.append([values.detach(), *(side.grad for side in sides)])
        assert distance.unconverged_pairs == 0
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=2e-5)
