"""Laws of rankings and of whole evaluations: for every K a permutation, ties in gallery order, nobody finds itself.

Scores take few values here, so that ties are the rule. Regions are made of vectors with halves for entries: their
cosines are exact, however they are summed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diml.matching import Ranking, Regions
from diml.matching.retrieval import NOTHING, rank
from laws.strategies import seeds
from scores import evaluated

#: Settings for problems full of zeros and equal costs: smooth, so that they are quickly solved.
SMOOTH = {"epsilon": 1.0, "resamples": 2}


@dataclass(frozen=True)
class Scored:
    """Scores of Q queries with G gallery images, who is left out, and the full sort, written out."""

    scores: torch.Tensor
    excluded: torch.Tensor

    @property
    def sorted_in_full(self) -> list[list[int]]:
        rows = []
        for scores, itself in zip(self.scores.tolist(), self.excluded.tolist(), strict=True):
            others = [row for row in range(len(scores)) if row != itself]
            rows.append(sorted(others, key=lambda row, s=scores: (-s[row], row)) + [NOTHING] * (itself != NOTHING))
        return rows

    def ranking(self, depth: int) -> Ranking:
        return rank(self.scores.clone(), depth, self.excluded)


@st.composite
def scored(draw, values=(1, 2, 3, 30)) -> Scored:
    queries, gallery = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(seeds))
    levels = draw(st.sampled_from(values))
    scores = torch.randint(-levels, levels + 1, (queries, gallery), generator=generator) / levels
    excluded = torch.randint(NOTHING, gallery, (queries,), generator=generator)
    return Scored(scores, excluded)


@st.composite
def halves(draw, images: int) -> Regions:
    """Images whose region and pooled vectors have entries of +-1/2: few different ones, so duplicates abound."""
    generator = torch.Generator().manual_seed(draw(seeds))
    kinds = torch.randint(2, (draw(st.integers(1, 6)), 4, 4), generator=generator) - 0.5
    chosen = kinds[torch.randint(len(kinds), (images,), generator=generator)]
    return Regions(chosen[:, :3].clone(), chosen[:, 3].clone())


@st.composite
def evaluations(draw, images=9):
    """(regions, labels, queries, gallery), the sides disjoint, overlapping or the same."""
    subsets = st.lists(st.integers(0, images - 1), min_size=1, unique=True)
    classes = st.sampled_from([-3, -2, 0, 1, 2])  # -1 is junk
    labels = np.array(draw(st.lists(classes, min_size=images, max_size=images)))
    return draw(halves(images)), labels, draw(subsets), draw(subsets)


# ----------------------------------------------------------------------------------------------- rankings


@given(scored(), st.integers(0, 45))
def test_to_any_depth_the_ranking_is_the_full_stable_sort(case, depth):
    assert case.ranking(depth).order.tolist() == [row[:depth] for row in case.sorted_in_full]


@given(scored(), st.integers(0, 40), seeds)
def test_each_prefix_reranked_is_a_permutation_sorted_by_the_new_scores(case, k, seed):
    plain = case.ranking(40)
    k = min(k, plain.depth)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(3, (len(plain.order), k), generator=generator).float()
    found = plain.reranked(scores)
    for before, after, new in zip(plain.order.tolist(), found.order.tolist(), scores.tolist(), strict=True):
        images = [row for row in before[:k] if row != NOTHING]
        score_of = dict(zip(before[:k], new, strict=True))
        expected = sorted(images, key=lambda row, s=score_of: (-s[row], row))
        assert after == expected + [NOTHING] * (k - len(images)) + before[k:]


@given(scored(), st.integers(0, 40))
def test_reranking_by_the_scores_that_ranked_changes_nothing(case, k):
    plain = case.ranking(40)
    again = case.scores.gather(1, plain.order[:, :k].clamp_min(0))
    assert plain.reranked(again).order.equal(plain.order)


@given(scored())
def test_reranking_one_place_changes_nothing(case):
    plain = case.ranking(5)
    assert plain.reranked(torch.rand(len(plain.order), 1)).order.equal(plain.order)


# -------------------------------------------------------------------------------------------- evaluations


@given(evaluations(), st.lists(st.integers(0, 12), min_size=1, max_size=4))
def test_for_every_k_the_hits_are_a_permutation_of_the_gallery_without_the_query(case, rerank_at):
    regions, labels, queries, gallery = case
    report = evaluated(
        regions, labels, queries=queries, gallery=gallery, rerank_at=(*rerank_at, 12), without_relevant="miss", **SMOOTH
    )
    assert report.queries.tolist() == queries
    for k in (*rerank_at, 12):
        for query, hits in zip(queries, report.hits[k].tolist(), strict=True):
            others = set(gallery) - {query}
            assert sorted(hits[: len(others)]) == sorted(others)
            assert hits[len(others) :] == [NOTHING] * (len(gallery) - len(others))


@given(evaluations())
def test_the_plain_ranking_is_by_cosine_then_by_place_in_the_gallery(case):
    regions, labels, queries, gallery = case
    report = evaluated(
        regions, labels, queries=queries, gallery=gallery, rerank_at=(0, 9), without_relevant="miss", **SMOOTH
    )
    cosine = (regions.pooled @ regions.pooled.T).tolist()
    for query, hits in zip(queries, report.hits[0].tolist(), strict=True):
        others = [image for image in gallery if image != query]
        expected = sorted(others, key=lambda image, c=cosine[query]: (-c[image], gallery.index(image)))
        assert hits[: len(others)] == expected


@given(halves(9), st.integers(1, 9))
def test_images_alike_stand_in_gallery_order_after_reranking(regions, k):
    report, pooled = evaluated(regions, [0] * 9, rerank_at=(k,), **SMOOTH), regions.pooled
    for hits in report.hits[k].tolist():
        for first, second in pairwise(hits[: min(k, 8)]):
            alike = regions.dense[first].equal(regions.dense[second]) and pooled[first].equal(pooled[second])
            assert first < second or not alike


@given(halves(9), st.integers(1, 12))
def test_reranking_by_the_pooled_score_leaves_the_ranking_as_it_was(regions, k):
    report = evaluated(regions, [0] * 9, rerank_at=(0, k, 9), structural_weight=0, **SMOOTH)
    assert (report.hits[k] == report.hits[0]).all()


@pytest.mark.parametrize("count", [5, 7, 9, 50])
def test_copies_of_one_image_stand_in_gallery_order_by_the_pooled_score(count):
    generator = torch.Generator().manual_seed(count)
    dense = torch.randn(2, 16, 128, generator=generator)
    two = Regions.normalized(dense, dense.mean(dim=1))
    regions = two[[0] + [1] * count]
    report = evaluated(regions, [0] * (count + 1), queries=[0], rerank_at=(0, count), structural_weight=0, **SMOOTH)
    for hits in report.hits.values():
        assert hits[0, : min(8, count)].tolist() == list(range(1, min(8, count) + 1))


@given(seeds, st.permutations(range(12)))
def test_shuffling_the_images_shuffles_the_results(seed, order):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(12, 4, 8, generator=generator, dtype=torch.float64)
    regions = Regions.normalized(dense, dense.mean(dim=1))
    labels = np.arange(12) % 4
    straight, shuffled = (
        evaluated(regions[rows], labels[rows], rerank_at=(0, 5, 20), **SMOOTH) for rows in (range(12), order)
    )
    for k in (0, 5, 20):
        for metric, values in shuffled.per_query[k].items():
            np.testing.assert_array_equal(values, straight.per_query[k][metric][list(order)])
        back = np.append(order, NOTHING)  # image of each shuffled row; -1 stays
        np.testing.assert_array_equal(back[shuffled.hits[k]], straight.hits[k][list(order)])
