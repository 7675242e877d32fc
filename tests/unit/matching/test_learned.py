"""The learned matcher: laws of its votes, agreement of its ways to score, saving, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diml.matching import LearnedMatcher, Matcher, Regions
from diml.matching.learned import MOST_PARAMETERS, VoteScorer


def some_regions(count: int, regions: int = 9, dim: int = 8, seed: int = 0) -> Regions:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(count, regions, dim, generator=generator) + 0.5
    return Regions.normalized(dense, dense.mean(dim=1))


def some_matcher(dim: int = 8, seed: int = 0, mapped: int | None = None) -> LearnedMatcher:
    generator = torch.Generator().manual_seed(seed)
    scorer = VoteScorer(dim, mapped)
    with torch.no_grad():
        for part in scorer.parameters():
            part.add_(0.3 * torch.randn(part.shape, generator=generator))
    return LearnedMatcher.of(scorer)


def naive_score(matcher: LearnedMatcher, query: Regions, gallery: Regions) -> float:
    """The definition, region by region, in float64."""
    scorer = matcher.scorer
    assert scorer is not None
    with torch.no_grad():
        sides = [scorer(side.dense[0], side.pooled[0]) for side in (query, gallery)]
    temperature, total = float(scorer.temperature), 0.0
    for one, other in (sides, sides[::-1]):
        masses = [max(float(region.double() @ other.pooled.double()), 0) + 1e-6 for region in one.dense]
        for mass, region, height in zip(masses, one.dense, one.dustbin.tolist(), strict=True):
            cosines = [float(region.double() @ its.double()) for its in other.dense]
            heights = torch.tensor([*cosines, height], dtype=torch.float64)
            shares = (heights / temperature).softmax(dim=0)
            total += 0.5 * mass / sum(masses) * float((shares[:-1] * heights[:-1]).sum())
    return float(query.pooled[0].double() @ gallery.pooled[0].double()) + matcher.structural_weight * total


def test_scores_equal_the_definition():
    matcher, regions = some_matcher(), some_regions(3)
    for pair in ((0, 1), (2, 0)):
        one, other = regions[pair[0]], regions[pair[1]]
        assert float(matcher.match(one, other).score) == pytest.approx(naive_score(matcher, one, other), abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), regions=st.integers(1, 12), mapped=st.integers(1, 8))
def test_votes_are_a_ledger_with_an_unmatched_line(seed, regions, mapped):
    matcher = some_matcher(seed=seed, mapped=mapped)
    found = matcher.match(some_regions(1, regions, seed=seed), some_regions(2, 5, seed=seed + 1))
    for pair in range(2):
        ledger = found.ledger(pair)
        assert ledger.score == pytest.approx(float(found.score[pair]), abs=1e-6)
        assert ledger.structural == pytest.approx(float(ledger.contributions.sum()), abs=1e-6)
        assert float(ledger.plan.sum()) + ledger.unmatched == pytest.approx(1, abs=1e-6)
        assert (ledger.plan >= 0).all()
        assert -1e-6 <= ledger.unmatched <= 1 + 1e-6
        assert (ledger.unmatched_q <= found.weight_q[pair] + 1e-6).all()
        line = ledger.to_dict()["unmatched"]
        assert line["contribution"] == 0
        assert line["mass"] == pytest.approx(ledger.unmatched)
    assert "unmatched" in found.ledger(0)._repr_html_()


def test_exchanging_the_sides_transposes_the_plan():
    matcher, regions = some_matcher(), some_regions(2)
    there, back = matcher.match(regions[0], regions[1]), matcher.match(regions[1], regions[0])
    torch.testing.assert_close(there.plan, back.plan.mT)
    torch.testing.assert_close(there.score, back.score)
    assert matcher.symmetric


def test_permuting_regions_permutes_the_plan():
    matcher, regions = some_matcher(), some_regions(2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    moved = Regions(regions.dense[:1, order], regions.pooled[:1])
    expected = matcher.match(regions[0], regions[1])
    found = matcher.match(moved, regions[1])
    torch.testing.assert_close(found.plan, expected.plan[:, order])
    torch.testing.assert_close(found.score, expected.score)


@pytest.mark.parametrize("weights", ["cross_correlation", "uniform"])
def test_all_ways_to_score_agree(weights):
    matcher, regions = replace(some_matcher(), weights=weights), some_regions(7)
    rows = torch.arange(7).repeat(7, 1)
    expected = torch.stack([matcher.match(regions[i], regions).score for i in range(7)])
    torch.testing.assert_close(matcher.score(regions, regions, rows), expected, atol=2e-6, rtol=0)
    unique = matcher.score_unique_pairs(regions, torch.arange(7), rows)
    torch.testing.assert_close(unique.scores, expected, atol=2e-6, rtol=0)
    assert unique.unconverged == 0
    ranking = matcher.rerank(regions, regions, rows)
    torch.testing.assert_close(ranking.scores, expected.sort(dim=1, descending=True).values, atol=2e-6, rtol=0)
    shorter = matcher.score_unique_pairs(regions, torch.arange(2), torch.tensor([[1, -1], [-1, -1]]))
    assert shorter.scores.isinf().tolist() == [[False, True], [True, True]]
    assert matcher.score(regions, regions, torch.empty(7, 0, dtype=torch.int64)).shape == (7, 0)


def test_storage_changes_scores_little():
    matcher, regions = some_matcher(), some_regions(4)
    rows = torch.arange(4).repeat(4, 1)
    exact = matcher.score(regions, regions, rows)
    for stored, tolerance in ((regions.quantized(torch.int16), 1e-3), (regions.to(torch.float16), 2e-2)):
        assert (matcher.score(regions, stored, rows) - exact).abs().max() < tolerance * matcher.structural_weight


def test_copies_score_the_same_and_blank_regions_are_no_obstacle():
    matcher, regions = some_matcher(), some_regions(3)
    copies = Regions.cat([regions, regions[1]])
    scores = matcher.score_unique_pairs(copies, torch.tensor([0]), torch.tensor([[1, 3]])).scores
    assert scores[0, 0] == scores[0, 1]
    blank = Regions(torch.zeros(1, 9, 8), torch.zeros(1, 8))
    assert torch.isfinite(matcher.match(blank, regions).score).all()


def test_gradients_reach_regions_and_scorer():
    scorer = VoteScorer(8)
    matcher = LearnedMatcher.of(scorer)
    scorer.requires_grad_(True)
    with torch.no_grad():
        scorer.reader[2].weight.fill_(0.1)
    regions = some_regions(2)
    dense = regions.dense.clone().requires_grad_(True)
    matcher.match(Regions(dense[:1], regions.pooled[:1]), regions[1]).score.sum().backward()
    assert dense.grad is not None
    assert dense.grad.abs().sum() > 0
    used = [name for name, part in scorer.named_parameters() if part.grad is not None and part.grad.abs().sum() > 0]
    assert set(used) == {name for name, _ in scorer.named_parameters()} - {"log_weight"}


def test_without_dustbins_and_heat_it_is_maxsim():
    scorer = VoteScorer(8)
    with torch.no_grad():
        scorer.height.fill_(-5)
        scorer.log_temperature.fill_(-10)
    matcher, regions = LearnedMatcher.of(scorer), some_regions(4)
    maxsim = Matcher(matching="maxsim", structural_weight=matcher.structural_weight)
    rows = torch.arange(4).repeat(4, 1)
    assert (matcher.score(regions, regions, rows) - maxsim.score(regions, regions, rows)).abs().max() < 0.15


def test_settings_survive_plain_values_and_the_network_is_checked():
    matcher = some_matcher()
    back = Matcher.from_dict(matcher.to_dict())
    assert (back, hash(back)) == (matcher, hash(matcher))
    assert back.scorer is None
    with pytest.raises(ValueError, match=r"learned scorer .* is not here; open the embedder"):
        back.match(some_regions(1), some_regions(1))
    assert back.with_scorer(matcher.scorer).scorer is matcher.scorer
    with pytest.raises(ValueError, match="need the weights"):
        back.with_scorer(VoteScorer(8))
    with pytest.raises(ValueError, match="is for regions of 8 channels, got 6"):
        matcher.match(some_regions(1, dim=6), some_regions(1, dim=6))
    with pytest.raises(ValueError, match=r"unknown epsilon; `diml train-matcher` trains one|unknown epsilon"):
        Matcher.from_dict(matcher.to_dict() | {"epsilon": 0.1})
    with pytest.raises(ValueError, match="scorer_id"):
        Matcher.from_dict({"matching": "votes"})


def test_other_settings_leave_the_scorer_out():
    matcher = some_matcher()
    assert matcher.changed(structural_weight=2.0).scorer is matcher.scorer
    assert matcher.changed(epsilon=0.02) == Matcher(epsilon=0.02)
    assert Matcher(epsilon=0.02).changed(share=0.5) == Matcher(epsilon=0.02, share=0.5)
    for wrong in ({"share": 0.5}, {"weights": "rollout"}, {"matching": "maxsim"}, {"structural_weight": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(matcher, **wrong)


def test_a_scorer_is_small():
    assert VoteScorer(400).parameters_used <= MOST_PARAMETERS
    with pytest.raises(ValueError, match="at most 200,000 parameters"):
        VoteScorer(1280)
    with pytest.raises(ValueError, match="need at least 1"):
        VoteScorer(8, 0)
    with pytest.raises(ValueError, match="not the weights of a scorer"):
        VoteScorer.of_state({"map.weight": torch.zeros(2, 2)})
