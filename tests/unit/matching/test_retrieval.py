"""`Ranking` refuses what is no beginning of a permutation; `rank` and `reranked` on worked examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diml.matching import Ranking, Regions, native, nearest, retrieval
from diml.matching.retrieval import NOTHING, rank

NOBODY = torch.tensor([NOTHING])


def ranking(*order: int, gallery: int = 4) -> Ranking:
    return Ranking(torch.tensor([order]), gallery)


@pytest.mark.parametrize("order", [(2, 0, 3, 1), (2, 0), (), (1, 0, NOTHING), (NOTHING, NOTHING)])
def test_a_beginning_of_a_permutation_is_accepted(order):
    made = Ranking(torch.tensor([order], dtype=torch.int64), 4)
    assert made.depth == len(order)


@pytest.mark.parametrize(
    ("order", "need"),
    [
        ((0, 4), "order: need rows 0..3 of the gallery, got 0..4"),
        ((0, -2), "order: need rows 0..3 of the gallery, got -2..0"),
        ((1, 3, 1), "order: need every gallery row once; the ranking of query 0"),
        ((0, NOTHING, 1), "order: need no row after the end; the ranking of query 0"),
        ((NOTHING, 0), "order: need no row after the end; the ranking of query 0"),
    ],
)
def test_anything_else_is_refused(order, need):
    with pytest.raises(ValueError, match=need):
        ranking(*order)


def test_the_query_that_is_wrong_is_named():
    with pytest.raises(ValueError, match="every gallery row once; the ranking of query 2"):
        Ranking(torch.tensor([[0, 1], [1, 0], [1, 1]]), 2)


@pytest.mark.parametrize("order", [torch.tensor([0, 1]), torch.tensor([[0.0, 1.0]]), torch.zeros(1, 1, 1).long()])
def test_only_a_table_of_whole_numbers_is_an_order(order):
    with pytest.raises(ValueError, match=r"order: need int64 \(Q, M\), got"):
        Ranking(order, 2)


@pytest.mark.parametrize(
    ("depth", "excluded", "expected"),
    [
        (5, NOTHING, [1, 3, 0, 2, 4]),
        (2, NOTHING, [1, 3]),
        (1, NOTHING, [1]),
        (3, NOTHING, [1, 3, 0]),  # 0 and 2 tie for the last place
        (9, NOTHING, [1, 3, 0, 2, 4]),
        (0, NOTHING, []),
        (5, 1, [3, 0, 2, 4, NOTHING]),
        (4, 1, [3, 0, 2, 4]),
        (2, 0, [1, 3]),
        (3, 0, [1, 3, 2]),
        (9, 4, [1, 3, 0, 2, NOTHING]),
    ],
)
def test_best_first_ties_in_gallery_order_itself_left_out(depth, excluded, expected):
    scores = torch.tensor([[0.5, 0.9, 0.5, 0.9, -0.3]])
    assert rank(scores, depth, torch.tensor([excluded])).order.tolist() == [expected]


def test_each_query_leaves_out_its_own_row():
    found = rank(torch.ones(3, 3), 3, torch.tensor([1, NOTHING, 0]))
    assert found.order.tolist() == [[0, 2, NOTHING], [0, 1, 2], [1, 2, NOTHING]]
    assert found.gallery_size == 3


def test_rows_without_a_chance_come_before_the_end():
    assert rank(torch.tensor([[1.0, -torch.inf]]), 2, torch.tensor([0])).order.tolist() == [[1, NOTHING]]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], [2, 0, 3, 1]),
        ([5.0], [2, 0, 3, 1]),
        ([1.0, 2.0], [0, 2, 3, 1]),
        ([1.0, 1.0, 1.0], [0, 2, 3, 1]),
        ([1.0, 1.0, 1.0, 1.0], [0, 1, 2, 3]),
        ([0.0, 1.0, 2.0, 3.0], [1, 3, 0, 2]),
    ],
)
def test_the_prefix_is_sorted_anew_and_the_rest_stays(scores, expected):
    assert ranking(2, 0, 3, 1).reranked(torch.tensor([scores])).order.tolist() == [expected]


def test_a_place_without_an_image_stays_last_whatever_its_score():
    found = ranking(1, 0, NOTHING).reranked(torch.tensor([[1.0, 2.0, 9.0]]))
    assert found.order.tolist() == [[0, 1, NOTHING]]


def test_reranking_changes_neither_the_ranking_nor_the_scores_it_is_given():
    plain, scores = ranking(2, 0, NOTHING), torch.tensor([[1.0, 2.0, 3.0]])
    plain.reranked(scores)
    assert plain.order.tolist() == [[2, 0, NOTHING]]
    assert scores.tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize("shape", [(1, 5), (2, 2), (2,), (1, 1, 1)])
def test_scores_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"scores: need shape \(1, K <= 4\), got"):
        ranking(2, 0, 3, 1).reranked(torch.zeros(shape))


# ----------------------------------------------------------------------------------------------------- nearest


def unit(count: int, seed: int) -> torch.Tensor:
    vectors = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_nearest_is_the_full_sort_by_cosine_without_the_excluded_row(compiled, size, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "_KERNEL", None)
        monkeypatch.setattr(native, "_REASON", "turned off by a test")
    monkeypatch.setattr(retrieval, "QUERIES_AT_ONCE", {True: size, False: size})
    query, gallery, exclude = unit(7, 0), unit(20, 1), torch.tensor([3, NOTHING, 0, 19, NOTHING, 3, 5])
    found = nearest(query, gallery, 6, exclude=exclude)
    cosine = query.double() @ gallery.double().T
    for row, own in enumerate(exclude.tolist()):
        order = [image for image in cosine[row].argsort(descending=True).tolist() if image != own]
        assert found.order[row].tolist() == order[:6]


def test_nearest_takes_regions_and_gives_all_there_are():
    dense = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(0))
    regions = Regions.normalized(dense, dense.mean(dim=1))
    assert nearest(regions, regions.quantized(), 9).order.equal(nearest(regions.pooled, regions.pooled, 9).order)
    assert nearest(regions, regions, 9).depth == 5
    assert nearest(regions[:0], regions, 3).order.shape == (0, 3)
    assert nearest(regions, regions, 5, exclude=torch.arange(5)).order[:, -1].tolist() == [NOTHING] * 5


@pytest.mark.parametrize(
    ("query", "gallery", "depth", "need"),
    [(unit(2, 0), unit(3, 1)[:, :4], 1, "need pooled vectors"), (unit(2, 0), unit(3, 1), -1, "depth: need 0 or more")],
)
def test_nearest_refuses_what_does_not_fit(query, gallery, depth, need):
    with pytest.raises(ValueError, match=need):
        nearest(query, gallery, depth)


class TestExclude:
    vectors = torch.eye(4)

    @pytest.mark.parametrize(
        "given", [[0, 1, -1, 3], np.array([0, 1, -1, 3]), torch.tensor([0, 1, -1, 3], dtype=torch.int32)]
    )
    def test_lists_arrays_and_tensors_mean_the_same(self, given):
        found = nearest(self.vectors, self.vectors, 4, exclude=given)
        assert (
            found.order.tolist()
            == nearest(self.vectors, self.vectors, 4, exclude=torch.tensor([0, 1, -1, 3])).order.tolist()
        )
        assert found.order[2].tolist()[0] == 2

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ([0, 1], r"need 4 whole numbers, one a query, got \(2,\)"),
            ([0.0] * 4, "whole numbers"),
            ([True] * 4, "whole numbers"),
            ([0, 1, 2, 4], "need gallery rows 0 to 3, or -1, got 0 to 4"),
            ([-2, 1, 2, 3], "got -2 to 3"),
        ],
    )
    def test_what_is_no_row_is_refused(self, given, message):
        with pytest.raises(ValueError, match=message):
            nearest(self.vectors, self.vectors, 4, exclude=given)
