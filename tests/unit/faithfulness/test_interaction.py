"""Matched regions in the order of the ledger, unmatched ones of the same number, and their interaction."""

import numpy as np
import pytest
import torch

from diml.faithfulness.interaction import JointCurve, ScoredPairs, joint_orders
from diml.faithfulness.ledgers import LEDGERS, Attribution, one_to_one, parts_changed


def pairs_of(found: Attribution) -> list[tuple[list[int], list[int]]]:
    return [(q.tolist(), g.tolist()) for q, g in found.matched]


def test_pairs_are_the_largest_contributions_and_use_each_region_once():
    contributions = torch.tensor([[0.9, 0.8, 0.0], [0.7, 0.1, 0.2]])
    assert [(int(q[0]), int(g[0])) for q, g in one_to_one(contributions)] == [(0, 0), (1, 2)]
    assert [(int(q[0]), int(g[0])) for q, g in one_to_one(torch.zeros(2, 2))] == [(0, 0), (1, 1)]


def test_both_ledgers_of_cells_are_read(random_match):
    found = random_match((2, 2), (3, 3), 2)
    cells = LEDGERS["credit"].read(found, 1)
    ledger = found.ledger(1)
    assert cells.credit == pytest.approx(ledger.total_q.numpy())
    first = ledger.top(1)[0]
    assert pairs_of(cells)[0] == ([first.region_q], [first.region_g])
    assert len(cells.matched) == 4
    with pytest.raises(ValueError, match="whole: need pooled_parts"):
        LEDGERS["whole"].read(found, 1)


def test_orders_of_cells():
    matched = [(np.array([q]), np.array([g])) for q, g in ((2, 0), (0, 3), (1, 1), (3, 2))]
    made = joint_orders(
        Attribution(np.zeros(4), matched), np.array([3, 1, 0, 2]), ((2, 2), (2, 2)), 3, np.random.default_rng(0)
    )
    assert made.sizes == [(0, 0), (1, 1), (3, 3), (4, 4)]
    order_q, order_g = made.orders["matched"]
    assert (order_q.tolist(), order_g.tolist()) == ([2, 0, 1, 3], [0, 3, 1, 2])
    for name in ("permuted", "shifted"):
        same_q, other_g = made.orders[name]
        assert same_q.tolist() == order_q.tolist()
        assert sorted(other_g.tolist()) == [0, 1, 2, 3]
        assert (other_g != order_g).all()
    moved = {((b // 2 - a // 2) % 2, (b - a) % 2) for a, b in zip(order_g, made.orders["shifted"][1], strict=True)}
    assert len(moved) == 1  # one shift for all partners
    assert [side.tolist() for side in made.orders["same place"]] == [[2, 0, 1, 3]] * 2
    assert made.orders["random"][0].tolist() == [3, 1, 0, 2]
    assert sorted(made.orders["random"][1].tolist()) == [0, 1, 2, 3]


def test_each_step_changes_a_whole_part_and_controls_as_many_regions():
    """A ledger of parts: 4 regions against 2, then 2 against 4; 3 regions of each side are in no part."""
    matched = [(np.array([0, 1, 2, 3]), np.array([8, 7])), (np.array([5, 6]), np.array([0, 1, 2, 3]))]
    made = joint_orders(Attribution(np.zeros(9), matched), np.arange(9), ((3, 3), (3, 3)), 6, np.random.default_rng(1))
    assert made.sizes == [(0, 0), (4, 2), (6, 6)]
    assert made.orders["matched"][0].tolist() == [0, 1, 2, 3, 5, 6]
    assert made.orders["permuted"][1].tolist() == [0, 1, 2, 3, 8, 7]  # the other part's regions, cut to the same size
    assert len(set(made.orders["shifted"][1].tolist())) == 6
    assert made.orders["same place"][1].tolist() == [0, 1, 2, 3, 5, 6, 4, 7, 8]
    changed = parts_changed(matched, 9)
    assert [regions.tolist() for regions in changed[:3]] == [[], [0, 1, 2, 3], [0, 1, 2, 3, 5, 6]]
    assert sorted(changed[3].tolist()) == list(range(9))
    assert len(parts_changed([(np.arange(4), np.arange(2))], 4)) == 2


def test_the_ledger_of_parts_is_read_largest_first(random_match):
    found = random_match((3, 3), (3, 3), 2)
    parts = found.ledger(1).parts()
    read = LEDGERS["parts"].read(found, 1)
    assert pairs_of(read) == [(list(row.regions_q), list(row.regions_g)) for row in parts.rows]
    assert read.credit == pytest.approx(found.ledger(1).total_q.numpy())


def test_the_interaction_of_a_sum_over_pairs_of_regions_is_what_both_changed_sets_share():
    contributions = np.random.default_rng(3).random((4, 4))
    present = [np.arange(4) >= count for count in range(5)]  # rows: images with the first regions deleted
    pairs = ScoredPairs()
    curve = JointCurve.request(list(range(5)), list(range(5)), pairs)
    again = JointCurve.request(list(range(5)), list(range(5)), pairs)
    assert again.both == curve.both
    rows_q, rows_g = pairs.sides
    assert len(set(zip(rows_q, rows_g, strict=True))) == len(rows_q) == 13
    scores = np.array([present[q] @ contributions @ present[g] for q, g in zip(rows_q, rows_g, strict=True)])
    assert curve.score(scores)[[0, 4]] == pytest.approx([contributions.sum(), 0])
    expected = [contributions[:count, :count].sum() for count in range(5)]
    assert curve.interaction(scores) == pytest.approx(expected)
