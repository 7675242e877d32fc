"""Groups of the nodes of a graph, and how they are improved."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diml.matching.regrouping import Grouping, grid_neighbours, pieces
from diml.matching.spectral import _divided, spectral_groups


def graph(size, seed=0):
    """Random symmetric affinity without loops."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.rand(size, size, generator=generator, dtype=torch.float64)
    return (made + made.T).fill_diagonal_(0)


def association(affinity, groups):
    """The objective by its definition, node by node."""
    total = 0.0
    for group in set(groups):
        inside = sum(
            float(affinity[i, j])
            for i in range(len(groups))
            for j in range(len(groups))
            if groups[i] == groups[j] == group
        )
        size = sum(float(affinity[i].sum()) for i in range(len(groups)) if groups[i] == group)
        total += inside / size
    return total


def two_grids(rows=3, columns=4):
    regions = list(range(rows * columns))
    near = grid_neighbours((rows, columns), regions)
    return near + [[len(regions) + other for other in found] for found in near]


def grouped(seed, count=4, near=None):
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(count, (24,), generator=generator).tolist()
    return Grouping(graph(24, seed), two_grids() if near is None else near, 12, groups)


def pieces_of(made, side):
    nodes = range(12, 24) if side else range(12)
    return [
        len(pieces([node for node in nodes if made.groups[node] == group], made.near)) for group in range(made.count)
    ]


@given(st.integers(0, 1000))
def test_the_objective_is_kept_up_to_date(seed):
    made = grouped(seed)
    assert made.association == pytest.approx(association(graph(24, seed), made.groups))
    made.connect([1.0] * 24)
    assert made.association == pytest.approx(association(graph(24, seed), made.groups))
    made.refine()
    assert made.association == pytest.approx(association(graph(24, seed), made.groups))
    made.reach(graph(24, seed)[:12, 12:], 1e9)
    assert made.association == pytest.approx(association(graph(24, seed), made.groups))


@given(st.integers(0, 1000))
def test_refining_improves_and_tears_nothing(seed):
    made = grouped(seed)
    made.connect([1.0] * 24)
    before, count = made.association, made.count
    made.refine()
    assert made.association >= before - 1e-12
    assert made.count == count
    assert pieces_of(made, 0) == pieces_of(made, 1) == [1] * count


@given(st.integers(0, 1000))
def test_no_single_move_is_left_that_improves_and_tears_nothing(seed):
    made = grouped(seed, count=3)
    made.connect([1.0] * 24)
    made.refine()
    for node in range(24):
        for group in {made.groups[other] for other in made.near[node]} - {made.groups[node]}:
            moved = [*made.groups[:node], group, *made.groups[node + 1 :]]
            other = Grouping(graph(24, seed), made.near, 12, moved)
            whole = other.count == made.count and pieces_of(other, 0) == pieces_of(other, 1) == [1] * made.count
            assert not whole or other.association <= made.association + 2e-9


@given(st.integers(0, 1000), st.floats(0, 1))
def test_reaching_stops_at_its_target_or_where_no_move_helps(seed, share):
    made = grouped(seed)
    values = graph(24, seed + 1)[:12, 12:]
    before, target = made.inside(values), share * float(values.sum())
    made.reach(values, target)
    after = made.inside(values)
    assert after >= before - 1e-12
    if before >= target:
        assert after == before
    sides = [{made.groups[node] for node in side} for side in (range(12), range(12, 24))]
    assert sides[0] == sides[1] == set(range(made.count))


def test_a_heavy_piece_stays_and_others_join_their_surroundings():
    near = [*grid_neighbours((1, 5), range(5)), [6], [5]]
    affinity = torch.zeros(7, 7, dtype=torch.float64)
    for i, j in ((0, 5), (1, 5), (4, 5), (2, 6), (3, 6)):
        affinity[i, j] = affinity[j, i] = 1
    made = Grouping(affinity, near, 5, [0, 0, 1, 1, 0, 0, 1])
    made.connect([1.0] * 7)
    assert made.groups == [0, 0, 1, 1, 1, 0, 1]
    made = Grouping(affinity, near, 5, [0, 0, 1, 1, 0, 0, 1])
    made.connect([1.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0])
    assert made.groups == [1, 1, 1, 1, 0, 0, 1]


def test_groups_of_one_image_join_that_with_most_affinity():
    affinity = torch.zeros(5, 5, dtype=torch.float64)
    for i, j, value in ((0, 3, 1.0), (1, 4, 1.0), (2, 4, 0.5), (2, 3, 0.25)):
        affinity[i, j] = affinity[j, i] = value
    made = Grouping(affinity, [None] * 5, 3, [0, 1, 2, 0, 1])
    assert made.groups == [0, 1, 1, 0, 1]
    assert Grouping(affinity, [None] * 5, 3, [0, 0, 0, 1, 1]).groups == [0] * 5


def test_pieces_by_the_four_neighbours():
    near = grid_neighbours((3, 3), range(9))
    assert pieces([0, 4, 8, 5], near) == [[0], [4, 5, 8]]
    assert pieces([], near) == []
    assert grid_neighbours((3, 3), [0, 1, 4])[1] == [2, 0]


# ------------------------------------------------------------------------------------------------------------- spectral


@given(st.integers(0, 1000), st.integers(1, 5))
def test_signs_and_rotations_of_the_embedding_do_not_matter(seed, count):
    generator = torch.Generator().manual_seed(seed)
    embedded = torch.nn.functional.normalize(torch.randn(20, count, generator=generator, dtype=torch.float64), dim=1)
    weight = torch.rand(20, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(count, count, generator=generator, dtype=torch.float64))[0]
    assert torch.equal(_divided(embedded, weight), _divided(embedded @ turn, weight))


def test_components_of_a_graph_are_found():
    affinity = torch.block_diag(*(graph(size, size) for size in (3, 5, 4)))
    ((groups, gap),) = spectral_groups(affinity, [3])
    assert gap == max(found.gap for found in spectral_groups(affinity, [1, 2, 3, 4, 5]))
    assert [len(set(groups[i:j])) for i, j in ((0, 3), (3, 8), (8, 12))] == [1, 1, 1]
    assert len(set(groups)) == 3


@pytest.mark.parametrize("affinity", [torch.zeros(3, 3, dtype=torch.float64), graph(1)])
def test_nodes_without_affinity(affinity):
    for found in spectral_groups(affinity, [1, 2, 9]):
        assert len(found.groups) == len(affinity)
        assert found.gap >= 0
