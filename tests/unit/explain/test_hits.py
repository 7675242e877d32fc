"""Ranked hits of a query, why they differ, and how re-ranking changed their order."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diml.calibration.calibrator import fit_calibrator
from diml.explain import Explanation, rank_hits
from diml.explain.explanation import match_pair, match_query
from diml.explain.hits import describe_hits
from diml.matching import Match, Matcher
from drawn_pair import drawn_pair
from unit.calibration.conftest import made_up_images

MakeMatch = Callable[..., Match]


def matches_with(found: Match, pooled: list[float], names: str = "abcdef") -> list[Explanation]:
    """The pairs of one query, their pooled cosines replaced."""
    parts = {**vars(found), "pooled": torch.tensor(pooled)}
    many = Match(**parts)
    return [Explanation.of(many, drawn_pair(32), ("q", names[pair]), pair) for pair in range(len(many))]


@pytest.fixture
def found(random_match: MakeMatch) -> Match:
    return random_match((2, 3), (3, 3), pairs=4)


def test_hits_are_in_the_order_of_their_scores(found: Match) -> None:
    pooled = [0.1, 0.9, 0.5, 0.4]
    hits = rank_hits(matches_with(found, pooled))
    scores = [pooled[pair] + float(found.structural[pair]) for pair in range(4)]
    order = sorted(range(4), key=lambda pair: -scores[pair])
    assert [match.names[1] for match in hits.matches] == ["abcd"[pair] for pair in order]
    before = sorted(range(4), key=lambda pair: -pooled[pair])
    assert hits.pooled_rank == tuple(before.index(pair) + 1 for pair in order)


def test_a_hit_with_more_structure_is_moved_up(found: Match) -> None:
    best = int(found.structural.argmax())
    pooled = [0.5, 0.5, 0.5, 0.5]
    pooled[best] = 0.5 - 1e-4  # last by pooled cosine, first by score
    hits = rank_hits(matches_with(found, pooled))
    assert hits.matches[0].names[1] == "abcd"[best]
    assert (hits.pooled_rank[0], hits.moved(0)) == (4, 3)
    assert sum(hits.moved(place) for place in range(4)) == 0
    assert float(hits.lift[0].sum()) > 0


def test_lifts_are_differences_from_the_mean_and_sum_to_them(found: Match) -> None:
    hits = rank_hits(matches_with(found, [0.4, 0.3, 0.2, 0.1]))
    structural = [match.ledger().structural for match in hits.matches]
    mean = sum(structural) / 4
    assert hits.lift.sum(dim=1).tolist() == pytest.approx([value - mean for value in structural])
    assert hits.lift.sum(dim=0).tolist() == pytest.approx([0] * 6, abs=1e-12)
    for region in range(6):
        naive = [
            sum(float(m.plan[0, region, g]) * float(m.cosine[0, region, g]) for g in range(9)) for m in hits.matches
        ]
        assert hits.lift[:, region].tolist() == pytest.approx([value - sum(naive) / 4 for value in naive])


def test_equal_scores_keep_their_order(found: Match) -> None:
    one = matches_with(found, [0.4, 0.3, 0.2, 0.1])[0]
    twins = [Explanation(**{**vars(one), "names": ("q", name)}) for name in "zay"]
    assert [match.names[1] for match in rank_hits(twins).matches] == ["z", "a", "y"]
    assert rank_hits(twins).pooled_rank == (1, 2, 3)


def test_the_description_sums_exactly(found: Match) -> None:
    hits = rank_hits(matches_with(found, [0.4, 0.3, 0.2, 0.1]))
    told: dict[str, Any] = json.loads(json.dumps(describe_hits(hits, top=3, settings={"model": "mine"})))
    assert told["query"] == "q"
    assert told["settings"] == {"model": "mine"}
    assert told["matcher"] == found.matcher.to_dict()
    assert [hit["rank"] for hit in told["hits"]] == [1, 2, 3, 4]
    assert all(len(hit["top"]) == 3 and len(hit["lift"]) == 6 for hit in told["hits"])
    assert [(c["above"], c["below"]) for c in told["contrasts"]] == [(1, 2), (1, 3), (2, 3), (1, 4), (3, 4)]
    for contrast in told["contrasts"]:
        above, below = (told["hits"][contrast[side] - 1] for side in ("above", "below"))
        assert contrast["score"] == pytest.approx(above["score"] - below["score"], abs=1e-12)
        assert contrast["pooled"] + sum(contrast["regions"]) == pytest.approx(contrast["score"], abs=1e-12)
        totals = zip(above["total_q"], below["total_q"], strict=True)
        assert contrast["regions"] == pytest.approx([one - other for one, other in totals])


def test_matches_of_different_queries_are_refused(found: Match, random_match: MakeMatch) -> None:
    with pytest.raises(ValueError, match="matches: need at least one, got none"):
        rank_hits([])
    one = matches_with(found, [0.4, 0.3, 0.2, 0.1])[0]
    stranger = Explanation(**{**vars(one), "names": ("other", "b")})
    with pytest.raises(ValueError, match="matches: need matches of one query, got q and other"):
        rank_hits([one, stranger])


def test_one_query_against_many_is_as_pair_by_pair(tmp_path: Path, embedder: Any) -> None:
    a, b = drawn_pair(96)
    together = match_query(a, [b, a, b.rotate(90)], embedder=embedder, matcher=Matcher(epsilon=0.1))
    for match, other in zip(together, (b, a, b.rotate(90)), strict=True):
        alone = match_pair(a, other, embedder=embedder, matcher=Matcher(epsilon=0.1))
        assert float(match.score) == pytest.approx(float(alone.score), abs=1e-5)
        assert match.images is not None
        assert alone.images is not None
        assert match.images[1].tobytes() == alone.images[1].tobytes()
    assert [match.names for match in together] == [("query", f"gallery {place}") for place in (0, 1, 2)]
    with pytest.raises(ValueError, match="gallery: need at least one image, got none"):
        match_query(a, [], embedder=embedder)


def test_the_figure_says_why_hits_are_below_the_first(found: Match) -> None:
    hits = rank_hits(matches_with(found, [0.9, 0.5, 0.3, 0.1]))
    texts = [text.get_text() for text in hits.draw().axes[0].texts]
    for place in (1, 2, 3):
        contrast = hits.contrast(0, place)
        names = ", ".join("ABC"[region % 3] + str(region // 3 + 1) for region in contrast.top(3))
        assert f"{contrast.score:.3f} below hit 1, mainly by {names}" in texts


def test_weighted_scores_rank_and_contrasts_sum_with_the_weight(random_match: MakeMatch) -> None:
    found = random_match((2, 3), (3, 3), pairs=4, structural_weight=4)
    hits = rank_hits(matches_with(found, [0.9, 0.5, 0.3, 0.1]))
    scores = [match.pooled.item() + 4 * match.structural.item() for match in hits.matches]
    assert scores == sorted(scores, reverse=True)
    told = json.loads(json.dumps(describe_hits(hits)))
    for hit, score in zip(told["hits"], scores, strict=True):
        assert hit["score"] == pytest.approx(score)
        assert hit["structural_weight"] == 4
    for contrast in told["contrasts"]:
        total = contrast["pooled"] + 4 * sum(contrast["regions"])
        assert contrast["score"] == pytest.approx(total, abs=1e-12)
        assert contrast["structural_weight"] == 4
    assert hits.draw().axes[0].texts


def test_hits_have_one_pair_each_and_a_short_repr(found: Match) -> None:
    with pytest.raises(ValueError, match="matches: need one pair each, got 4"):
        rank_hits([Explanation(**vars(found))])
    hits = rank_hits(matches_with(found, [0.9, 0.5, 0.3, 0.1]))
    best, worst = (hits.matches[place].ledger().score for place in (0, -1))
    assert repr(hits) == f"RankedHits(q: 4 hits, scores {best:.3f} to {worst:.3f})"
    table = hits._repr_html_()
    assert table.count("<tr>") == 5
    assert f"<td>{best:.3f}</td>" in table


def test_hits_of_a_list_as_calibrated_have_the_probability_of_hits(found: Match) -> None:
    calibrator = fit_calibrator(made_up_images(2000, 0), fingerprint="f" * 64, matcher=found.matcher)
    matches = [dataclasses.replace(match, calibrator=calibrator) for match in matches_with(found, [0.4, 0.3, 0.2, 0.1])]
    alone = rank_hits(matches)
    assert [match.probability for match in alone.matches] == [None] * 4
    scores = [match.ranked_by() for match in alone.matches]
    assert [match.probability_of() for match in alone.matches] == [calibrator.probability(score) for score in scores]
    listed = dataclasses.replace(calibrator, depth=4)
    known = [dataclasses.replace(match, calibrator=listed) for match in matches]
    known[0] = dataclasses.replace(known[0], probability=0.123)  # known from a search
    hits = rank_hits(known)
    chances = listed.hit_probability(np.array(scores)).tolist()
    wanted = [0.123 if match.names[1] == "a" else chance for match, chance in zip(hits.matches, chances, strict=True)]
    assert [match.probability for match in hits.matches] == pytest.approx(wanted)
    told = describe_hits(hits)
    assert [hit["summary"]["probability"] for hit in told["hits"]] == pytest.approx(wanted)
    assert hits.table()[0][1] == "likely"
    assert "12 %" in [row[1] for row in hits.table()[1:]]
    assert "<th>likely</th>" in hits._repr_html_()


def test_hits_are_described_by_the_plan_that_ranks_with_a_summary_of_the_exact_one(found: Match) -> None:
    hits = rank_hits(matches_with(found, [0.4, 0.3, 0.2, 0.1]))
    for hit, match in zip(describe_hits(hits)["hits"], hits.matches, strict=True):
        assert hit["plan_shown"] == "entropic, epsilon 0.05"
        assert hit["score"] == pytest.approx(float(match.score))
        assert hit["summary"] == match.summary().to_dict()
        assert hit["summary"]["plan"] == "exact"
