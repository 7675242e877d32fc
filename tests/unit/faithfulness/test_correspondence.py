"""Accuracies of plans with known answers, and a ceiling that no plan exceeds."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from diml.faithfulness.correspondence import (
    accuracy_of_rows,
    baseline_plans,
    ceiling,
    overlap_plan,
    plan_accuracies,
    plan_accuracy,
)
from diml.faithfulness.warps import WARPS, Truth, Warp, true_cells, window
from diml.matching import Regions, match


def truth_of(kind: str, grid: tuple[int, int] = (4, 4), seed: int = 0) -> Truth:
    return true_cells(WARPS[kind](np.random.default_rng(seed)), grid, grid)


def one_hot(truth: Truth) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(truth.cell), truth.grid[0] * truth.grid[1]).double()


@pytest.mark.parametrize("kind", WARPS)
def test_a_plan_that_knows_the_truth_lands_all_of_it(kind):
    truth = truth_of(kind)
    found = plan_accuracy(one_hot(truth), torch.rand(16, generator=torch.Generator().manual_seed(0)), truth)
    assert found is not None
    assert found.to_list() == pytest.approx([1, 1, 1, 1])


def test_the_uniform_plan_is_at_chance():
    truth = truth_of("flip")
    found = plan_accuracy(torch.full((16, 16), 3.0), torch.ones(16), truth)
    assert found is not None
    assert found.mass == found.strongest == found.regions == pytest.approx(1 / 16)
    assert found.near == pytest.approx(truth.near.sum() / 16**2)


def test_regions_count_by_their_mass_and_each_once():
    found = accuracy_of_rows(
        torch.tensor([[4.0, 1.0], [0.0, 2.0]]),
        torch.tensor([3.0, 1.0]),
        torch.tensor([0, 0]),
        torch.tensor([[True, False], [True, True]]),
    )
    assert found is not None
    assert found.mass == pytest.approx(0.75 * 0.8)
    assert found.near == pytest.approx(0.75 * 0.8 + 0.25)
    assert found.strongest == pytest.approx(0.75)
    assert found.regions == pytest.approx(0.5)


def test_without_a_counterpart_or_without_mass_there_is_no_accuracy():
    apart = true_cells(Warp(window(0, 0, 0.4), window(0.5, 0.5, 0.4)), (2, 2), (2, 2))
    assert plan_accuracy(torch.ones(4, 4), torch.ones(4), apart) is None
    assert plan_accuracy(torch.ones(4, 4), torch.zeros(4), truth_of("identity", (2, 2))) is None
    assert ceiling(torch.ones(4) / 4, torch.ones(4) / 4, apart) == 0


def test_a_region_with_mass_and_an_empty_row_lands_nowhere():
    found = plan_accuracy(torch.zeros(4, 4), torch.ones(4), truth_of("identity", (2, 2)))
    assert found is not None
    assert (found.mass, found.near) == (0, 0)


@given(seed=st.integers(0, 2**31), kind=st.sampled_from(sorted(WARPS)))
def test_the_ceiling_is_the_best_that_a_linear_programme_finds(seed, kind):
    generator = np.random.default_rng(seed)
    truth = truth_of(kind, (3, 3), seed)
    weight_q, weight_g = (generator.dirichlet(np.full(9, 0.7)) for _ in range(2))
    gain = np.zeros((9, 9))
    gain[np.flatnonzero(truth.inside), truth.cell[truth.inside]] = 1
    rows, columns = np.kron(np.eye(9), np.ones(9)), np.kron(np.ones(9), np.eye(9))
    best = linprog(-gain.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([weight_q, weight_g]))
    expected = -best.fun / weight_q[truth.inside].sum()
    assert ceiling(torch.from_numpy(weight_q), torch.from_numpy(weight_g), truth) == pytest.approx(expected, abs=1e-7)


@given(seed=st.integers(0, 2**31))
def test_permuted_cells_are_found_by_the_plan_and_by_argmax_and_no_plan_passes_the_ceiling(seed):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(9, generator=generator)
    dense = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0][None, :9]
    query = Regions.normalized(dense, dense.mean(1), (3, 3))
    gallery = Regions(query.dense[:, order], query.pooled, (3, 3))
    cell = torch.argsort(order).numpy()
    truth = Truth(cell, np.ones(9, dtype=bool), np.full((9, 2), 0.5), (3, 3))
    found = plan_accuracies(match(query, gallery, epsilon=0.01), match(query, gallery, epsilon=0), [truth])
    assert found["plan"][0] == pytest.approx([1, 1, 1, 1], abs=1e-4)
    assert found["exact"][0] == pytest.approx([1, 1, 1, 1], abs=1e-6)
    assert found["argmax"][0] == pytest.approx([1, 1, 1, 1])
    assert found["plan"][0, 0] <= found["ceiling"][0, 0] + 1e-6


@given(seed=st.integers(0, 2**31), kind=st.sampled_from(sorted(WARPS)))
def test_no_plan_with_these_weights_passes_the_ceiling(seed, kind):
    generator = torch.Generator().manual_seed(seed)
    query, gallery = (
        Regions.normalized(
            torch.rand(1, 9, 5, generator=generator) - 0.4, torch.rand(1, 5, generator=generator), (3, 3)
        )
        for _ in range(2)
    )
    exact = match(query, gallery, epsilon=0)
    found = plan_accuracies(match(query, gallery), exact, [truth_of(kind, (3, 3), seed)])
    for method in ("plan", "exact"):
        if method in found:
            assert found[method][0, 0] <= found["ceiling"][0, 0] + 1e-5


def test_the_plan_by_overlap_divides_between_neighbours_and_sums_to_one():
    assert torch.equal(overlap_plan(truth_of("identity")), torch.eye(16, dtype=torch.float64))
    half = true_cells(Warp(window(0, 0, 0.5), window(0.125, 0, 0.5)), (2, 2), (2, 2))  # half a cell to the left
    assert overlap_plan(half)[1].tolist() == pytest.approx([0.5, 0.5, 0, 0])
    assert overlap_plan(truth_of("homography")).sum(dim=1).tolist() == pytest.approx([1.0] * 16)


def test_rivals_of_sides_that_differ_have_no_same_place():
    assert set(baseline_plans(torch.rand(4, 9))) == {"argmax", "uniform"}
    assert set(baseline_plans(torch.rand(4, 4))) == {"argmax", "identity", "uniform"}
