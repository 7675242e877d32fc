"""Controls keep the spatial structure of what a ledger changes and are elsewhere."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diml.faithfulness.controls import MOVES, controls_of, derangement, grown, mirrored, rotated, shifted

SIDES = st.integers(1, 6)


def placed(move: np.ndarray, grid: tuple[int, int]) -> list[list[int]]:
    """Which region is where after a move."""
    return np.argsort(move).reshape(grid).tolist()


def test_a_shift_is_never_zero_and_keeps_neighbours_on_the_torus():
    seen = set()
    for seed in range(100):
        move = shifted((3, 3), np.random.default_rng(seed))
        down, right = divmod(int(move[0]), 3)
        assert placed(move, (3, 3)) == np.roll(np.arange(9).reshape(3, 3), (down, right), axis=(0, 1)).tolist()
        seen.add((down, right))
    assert seen == {(down, right) for down in range(3) for right in range(3)} - {(0, 0)}
    again = [shifted((2, 3), np.random.default_rng(5)).tolist() for _ in range(2)]
    assert again[0] == again[1]
    assert shifted((1, 1), np.random.default_rng(0)).tolist() == [0]


def test_mirror_and_rotation():
    generator = np.random.default_rng(0)
    assert mirrored((2, 3), generator).tolist() == [2, 1, 0, 5, 4, 3]
    assert placed(rotated((3, 3), generator), (3, 3)) == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]
    assert rotated((2, 3), generator).tolist() == [5, 4, 3, 2, 1, 0]


@given(rows=SIDES, columns=SIDES, seed=st.integers(0, 2**31))
def test_a_grown_order_has_all_regions_and_its_beginnings_are_connected(rows, columns, seed):
    order = grown((rows, columns), np.random.default_rng(seed)).tolist()
    assert sorted(order) == list(range(rows * columns))
    for place in range(1, len(order)):
        row, column = divmod(order[place], columns)
        steps = [abs(row - at // columns) + abs(column - at % columns) for at in order[:place]]
        assert min(steps) == 1


@given(rows=SIDES, columns=SIDES, seed=st.integers(0, 2**31))
def test_controls_change_as_many_regions_at_each_step_from_none_to_all(rows, columns, seed):
    generator = np.random.default_rng(seed)
    count = rows * columns
    order = generator.permutation(count)
    ends = [0, *sorted({int(end) for end in generator.integers(1, count + 1, 3)} | {count})]
    changed = [order[:end] for end in ends]
    made = controls_of(changed, (rows, columns), generator)
    assert set(made) == {*MOVES, "connected", "reversed"}
    for name, sets in made.items():
        nested = [set(regions.tolist()) for regions in sets]
        assert all(before < after for before, after in itertools.pairwise(nested)), name
        assert (len(nested[0]), len(nested[-1])) == (0, count)
        if name != "reversed":
            assert [len(regions) for regions in sets] == ends
    for step, regions in enumerate(made["reversed"]):
        assert set(regions.tolist()) == set(range(count)) - set(changed[-1 - step].tolist())


@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_derangement_moves_everything(count):
    for seed in range(20):
        moved = derangement(count, np.random.default_rng(seed))
        assert sorted(moved.tolist()) == list(range(count))
        assert (moved != np.arange(count)).all()
    assert derangement(1, np.random.default_rng(0)).tolist() == [0]
