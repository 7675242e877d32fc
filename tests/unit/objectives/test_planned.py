"""Structural distances by the kernel, values and gradients, against the torch twin in `distances` and float64."""

from __future__ import annotations

import pytest
import torch

from diml.matching import Matcher, Regions, native
from diml.objectives import StructuralDistance, StructuralSimilarity, pack_regions

KINDS = pytest.mark.parametrize("kind", [StructuralSimilarity, StructuralDistance])
WEIGHTS = pytest.mark.parametrize("weights", ["cross_correlation", "uniform"])
STRUCTURAL_WEIGHTS = pytest.mark.parametrize("structural_weight", [0.0, 0.3, 1.0, 4.0, float("inf")])

pytestmark = pytest.mark.skipif(not native.info()["available"], reason="the compiled kernel is missing")


def _packed(images, regions=16, dim=24, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(1, regions, dim, generator=generator)  # so that weights are rarely zero
    dense = (torch.randn(images, regions, dim, generator=generator) + 0.7 * shared).to(dtype)
    return pack_regions(Regions.normalized(dense, dense.mean(dim=1))).requires_grad_()


def _run(distance, method, *sides):
    """Values of a method and the gradients of the sides, each value multiplied by a number of its own.

    Distances of an image from itself are left out: where they are 0, the root of rounding errors remains.
    """
    leaves = [side.detach().clone().requires_grad_() for side in dict.fromkeys(sides)]
    again = dict(zip(dict.fromkeys(sides), leaves, strict=True))
    values = getattr(distance, method)(*(again[side] for side in sides))
    weights = torch.linspace(-1, 2, values.numel(), dtype=values.dtype).view(values.shape)
    if isinstance(distance, StructuralDistance) and len(leaves) == 1:
        values = values * (1 - torch.eye(len(values), dtype=values.dtype)) if values.ndim == 2 else values * 0
    (values * weights).sum().backward()
    return [values.detach(), *(leaf.grad for leaf in leaves)]


def _twin(distance, method, *sides):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "suits", lambda *tensors: False)
        return _run(distance, method, *sides)


@KINDS
@WEIGHTS
@pytest.mark.parametrize("images", [1, 2, 15, 16, 33])
def test_a_batch_with_itself_is_that_of_the_twin(kind, weights, images):
    distance, packed = kind(16, Matcher(weights=weights)), _packed(images)
    for ours, twin in zip(*(run(distance, "_matrix", packed, packed) for run in (_run, _twin)), strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-4, atol=2e-5)


@KINDS
@STRUCTURAL_WEIGHTS
def test_every_structural_weight_is_that_of_the_twin(kind, structural_weight):
    distance, packed = kind(16, Matcher(structural_weight=structural_weight)), _packed(9)
    given = {"_matrix": (packed, packed), "pairwise_distance": (packed, _packed(9, seed=1))}
    for method, sides in given.items():
        for ours, twin in zip(*(run(distance, method, *sides) for run in (_run, _twin)), strict=True):
            torch.testing.assert_close(ours, twin, rtol=1e-4, atol=2e-5)


@KINDS
@WEIGHTS
def test_two_sides_are_those_of_the_twin(kind, weights):
    distance, sides = kind(16, Matcher(weights=weights)), (_packed(9), _packed(4, seed=1))
    for method in ("_matrix", "pairwise_distance"):
        given = sides if method == "_matrix" else (sides[0], _packed(9, seed=1))
        for ours, twin in zip(*(run(distance, method, *given) for run in (_run, _twin)), strict=True):
            torch.testing.assert_close(ours, twin, rtol=1e-4, atol=2e-5)


@KINDS
def test_fine_grids_are_those_of_the_twin(kind):
    distance, sides = kind(49, Matcher()), (_packed(3, 49), _packed(3, 49, seed=1))
    for method, given in (("_matrix", (sides[0], sides[0])), ("pairwise_distance", sides)):
        for ours, twin in zip(*(run(distance, method, *given) for run in (_run, _twin)), strict=True):
            torch.testing.assert_close(ours, twin, rtol=1e-4, atol=2e-5)


@KINDS
def test_a_region_map_on_one_side_is_that_of_the_twin(kind):
    proxies = torch.randn(3, 16 * 24, generator=torch.Generator().manual_seed(2), requires_grad=True)
    for ours, twin in zip(*(run(kind(16), "_matrix", _packed(8), proxies) for run in (_run, _twin)), strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-4, atol=2e-5)


@KINDS
@pytest.mark.parametrize("method", ["_matrix", "pairwise_distance"])
def test_float32_is_near_float64(kind, method):
    distance = kind(16, Matcher(tolerance=1e-6))
    exact = [_packed(20, dtype=torch.float64), _packed(20, seed=1, dtype=torch.float64)]
    for given in ([exact[0], exact[0]], exact) if method == "_matrix" else (exact,):
        rounded = [side.float() for side in dict.fromkeys(given)]
        found = _run(distance, method, *(rounded if len(rounded) == 2 else rounded * 2))
        for ours, reference in zip(found, _run(distance, method, *given), strict=True):
            error = (ours - reference).norm() / reference.norm()
            assert error < 1e-5


@KINDS
def test_one_pair_of_an_image_with_itself_counts_on_both_sides(kind):
    packed = _packed(3)
    pairs = torch.tensor([[0, 2, 1], [1, 2, 0]])  # (0, 1) twice, in either order
    matrices = []
    for few in (False, True):
        leaf, distance = packed.detach().clone().requires_grad_(), kind(16)
        matrix = distance._chosen(leaf, pairs) if few else distance(leaf)
        (matrix[pairs[0], pairs[1]] * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
        matrices.append((matrix.detach().nan_to_num(), leaf.grad))
    (every, expected), (few, gradient) = matrices
    known = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.bool)
    torch.testing.assert_close(few, every * known, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def fresh_memory_is_nan():
    torch.use_deterministic_algorithms(True)  # which fills memory that was not written with NaN
    yield
    torch.use_deterministic_algorithms(False)


@KINDS
def test_unwritten_memory_is_not_read(kind, fresh_memory_is_nan):
    assert torch.empty(3).isnan().all()
    packed = _packed(32)
    blank = packed.detach().clone()
    blank[0], blank[1, :24] = 0, 0
    for sides in ((packed, packed), (packed, _packed(3, seed=1)), (blank, blank)):
        assert all(tensor.isfinite().all() for tensor in _run(kind(16), "_matrix", *sides))
    assert all(tensor.isfinite().all() for tensor in _run(kind(16), "pairwise_distance", packed, blank))


@KINDS
def test_a_second_backward_pass_gives_the_same(kind):
    leaf = _packed(9).detach().requires_grad_()
    value = kind(16)(leaf).square().sum()
    first, second = (torch.autograd.grad(value, leaf, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@KINDS
@pytest.mark.parametrize("method", ["_matrix", "pairwise_distance"])
def test_autocast_does_not_reach_the_backward_pass(kind, method):
    packed = _packed(9)
    expected = _run(kind(16), method, packed, packed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = _run(kind(16), method, packed, packed)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_nothing_to_compare():
    empty = _packed(3)[:0]
    for kind in (StructuralSimilarity, StructuralDistance):
        assert kind(16)(empty, _packed(2)).shape == (0, 2)
        assert kind(16)(empty).shape == (0, 0)
        assert kind(16).pairwise_distance(empty, empty).shape == (0,)
