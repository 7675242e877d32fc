"""Where lines end and where their values are."""

import itertools

import numpy as np
import pytest
import torch

from diml.explain.flows import colour_of, drawn_flows, spread
from diml.matching import Ledger


def brute_force(wanted: np.ndarray, gap: float, places: np.ndarray) -> float:
    """The least squared distance that any admissible set of places on a fine lattice has."""
    best = np.inf
    for chosen in itertools.product(places, repeat=len(wanted)):
        if all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(chosen)):
            best = min(best, float(((np.array(chosen) - wanted) ** 2).sum()))
    return best


def test_values_are_spread_as_near_to_their_lines_as_can_be() -> None:
    generator = np.random.default_rng(3)
    for _ in range(20):
        wanted = np.sort(generator.uniform(0, 10, 3))
        places = spread(wanted, 2.0, 0.0, 10.0)
        assert (np.diff(places) >= 2 - 1e-9).all()
        lattice = np.arange(0, 10.01, 0.5)
        assert ((places - wanted) ** 2).sum() <= brute_force(wanted, 2.0, lattice) + 1e-9


def test_spreading_keeps_the_order_of_the_lines() -> None:
    places = spread(np.array([5.0, 1.0, 5.0, 4.9]), 1.0, 0.0, 10.0)
    assert places.argsort().tolist() == [1, 3, 0, 2]


def test_values_move_closer_where_they_do_not_fit_and_stay_inside() -> None:
    places = spread(np.full(11, 5.0), 3.0, 0.0, 10.0)
    assert places.min() == pytest.approx(0)
    assert places.max() == pytest.approx(10)
    assert np.diff(places) == pytest.approx(np.ones(10))


def test_single_values_stay_within_the_ends() -> None:
    assert spread(np.array([-3.0]), 2.0, 0.0, 10.0) == pytest.approx([0.0])
    assert spread(np.array([30.0]), 2.0, 0.0, 10.0) == pytest.approx([10.0])


def test_only_what_adds_to_the_score_is_drawn() -> None:
    ledger = Ledger(torch.full((2, 2), 0.25), torch.tensor([[0.8, -0.5], [0.0, 0.1]]), 0.0)
    assert [(flow.region_q, flow.region_g) for flow in drawn_flows(ledger, 4)] == [(0, 0), (1, 1)]


@pytest.mark.parametrize("top", [-1, 21])
def test_a_number_of_lines_out_of_range_is_refused(top: int) -> None:
    with pytest.raises(ValueError, match=f"top: need 0 to 20 lines, got {top}"):
        drawn_flows(Ledger(torch.ones(1, 1), torch.ones(1, 1), 1.0), top)


def test_neighbouring_ranks_have_distinct_colours() -> None:
    for first in range(20):
        assert len({colour_of(rank) for rank in range(first, first + 8)}) == 8


def test_chosen_flows_are_sorted_and_may_subtract() -> None:
    ledger = Ledger(torch.full((2, 2), 0.25), torch.tensor([[0.8, -0.5], [0.0, 0.1]]), 0.0)
    flows = drawn_flows(ledger, 4, [(0, 1), (1, 1), (0, 1)])
    assert [(flow.region_q, flow.region_g) for flow in flows] == [(1, 1), (0, 1)]
    assert [flow.contribution for flow in flows] == pytest.approx([0.025, -0.125])


@pytest.mark.parametrize("pair", [(2, 0), (0, -1)])
def test_a_chosen_pair_of_regions_that_is_missing_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"flows: need pairs of regions \(0\.\.1, 0\.\.1\), got"):
        drawn_flows(Ledger(torch.ones(2, 2), torch.ones(2, 2), 1.0), 4, [pair])
