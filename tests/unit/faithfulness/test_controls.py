"""Controls keep the spatial structure of credit and move it elsewhere."""

import numpy as np
import pytest

from diml.faithfulness.controls import derangement, mirrored, rolled, rotated

SQUARE = np.arange(9, dtype=np.float64)
WIDE = np.arange(6, dtype=np.float64)


def test_a_shift_is_never_zero_and_keeps_neighbours_on_the_torus():
    seen = set()
    for seed in range(100):
        moved = rolled(SQUARE, (3, 3), np.random.default_rng(seed)).reshape(3, 3)
        down, right = (int(at[0]) for at in np.nonzero(moved == 0))
        assert (moved == np.roll(SQUARE.reshape(3, 3), (down, right), axis=(0, 1))).all()
        seen.add((down, right))
    assert seen == {(down, right) for down in range(3) for right in range(3)} - {(0, 0)}
    again = [rolled(WIDE, (2, 3), np.random.default_rng(5)).tolist() for _ in range(2)]
    assert again[0] == again[1]
    assert rolled(np.ones(1), (1, 1), np.random.default_rng(0)).tolist() == [1.0]


def test_mirror_and_rotation():
    generator = np.random.default_rng(0)
    assert mirrored(WIDE, (2, 3), generator).tolist() == [2, 1, 0, 5, 4, 3]
    assert rotated(SQUARE, (3, 3), generator).reshape(3, 3).tolist() == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]
    assert rotated(WIDE, (2, 3), generator).tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_derangement_moves_everything(count):
    for seed in range(20):
        moved = derangement(count, np.random.default_rng(seed))
        assert sorted(moved.tolist()) == list(range(count))
        assert (moved != np.arange(count)).all()
    assert derangement(1, np.random.default_rng(0)).tolist() == [0]
