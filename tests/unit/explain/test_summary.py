"""What is said of a pair: rows that sum to the score, shares, probability, background, scale, sentences, warnings."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diml.calibration.calibrator import Calibrator, fit_calibrator
from diml.explain import Explanation
from diml.explain.formatting import signed
from diml.explain.places import placed
from diml.explain.shown_plan import shown_plan
from diml.explain.summary import BackgroundShares, Summary, Term, Unmatched, UnmatchedSides, summarise
from diml.explain.wording import ALIKE, headline_of, likely, mean_cosine, sentence_of
from diml.matching import Matcher, Regions
from unit.calibration.conftest import made_up_images

FIELDS = (
    "headline sentence score ranked_by plan whole undivided parts between overall pooled unmatched background "
    "probability threshold scale warnings hints"
)


def explanation(
    grid_q: tuple[int, int] = (3, 4),
    grid_g: tuple[int, int] = (4, 3),
    *,
    shares: bool = True,
    seed: int = 0,
    **given: Any,
) -> Explanation:
    """One pair of random regions with its exact plan; `given` are settings of the matcher or fields of Explanation."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for rows, columns in (grid_q, grid_g):
        cells = torch.rand(1, rows * columns, 16, generator=generator, dtype=torch.float64)
        parts = cells / cells.shape[1] if shares else None
        sides.append(Regions.normalized(cells, cells.mean(dim=1), (rows, columns), shares=parts))
    fields = {field.name for field in dataclasses.fields(Matcher)}
    matcher = Matcher(**{name: value for name, value in given.items() if name in fields})
    found = Explanation(**vars(matcher.match(*sides)))
    others = {name: value for name, value in given.items() if name not in fields}
    return shown_plan(dataclasses.replace(found, **others))


@pytest.fixture(scope="module")
def calibrator() -> Calibrator:
    return fit_calibrator(made_up_images(5000, 0), fingerprint="f" * 64, matcher=Matcher(), kind="product")


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.booleans(),
    st.sampled_from([0.0, 0.5, 1.0, 4.0, math.inf]),
    st.sampled_from([1.0, 0.6]),
    st.integers(0, 5),
)
def test_the_rows_sum_to_the_score_and_their_shares_to_one(
    grid_q: tuple[int, int], grid_g: tuple[int, int], shares: bool, weight: float, share: float, seed: int
) -> None:
    found = explanation(grid_q, grid_g, shares=shares, structural_weight=weight, share=share, seed=seed)
    summary = summarise(found)
    rows = [*summary.parts, summary.between, *([] if summary.pooled is None else [summary.pooled])]
    assert sum(row.value for row in rows) == pytest.approx(summary.score, abs=1e-9)
    assert summary.score == pytest.approx(float(found.score), abs=1e-6)
    if summary.between.share is not None:
        assert sum(row.share or 0.0 for row in rows) == pytest.approx(1)
    assert summary.whole == (summary.pooled is None) == (shares or math.isinf(weight))
    assert bool(summary.undivided) != summary.whole
    assert (summary.unmatched is None) == (share == 1)
    values = [row.value for row in summary.parts]
    assert values == sorted(values, reverse=True)
    assert [row.part for row in summary.parts] == list(range(1, len(values) + 1))


def test_it_is_plain_json_of_the_documented_fields(calibrator: Calibrator) -> None:
    inside = np.linspace(0, 1, 12)
    found = explanation(calibrator=calibrator, foregrounds=(inside, inside), share=0.8)
    told = json.loads(json.dumps(summarise(found).to_dict(), allow_nan=False))
    assert list(told) == FIELDS.split()
    part = "part value share mass cosine regions_q regions_g connected_q connected_g place_q place_g"
    assert list(told["parts"][0]) == part.split()
    assert list(told["between"]) == ["value", "share"]
    assert list(told["unmatched"]) == ["query", "gallery"]
    assert list(told["unmatched"]["query"]) == ["mass", "regions"]
    assert list(told["background"]) == ["object", "mixed", "background"]
    assert list(told["threshold"]) == ["score", "false_accept_rate", "above"]
    assert list(told["scale"]) == ["low", "high", "marks", "bands"]
    assert list(told["scale"]["marks"][0]) == ["value", "kind", "label"]
    assert list(told["scale"]["bands"][0]) == ["kind", "low", "high"]
    assert isinstance(told["parts"][0]["regions_q"], list)
    assert isinstance(told["warnings"], list)
    assert told["plan"] == "exact"


def test_probability_threshold_and_scale_are_of_the_score_that_ranks(calibrator: Calibrator) -> None:
    found = explanation(calibrator=calibrator, epsilon=0.3)
    summary = summarise(found)
    assert summary.ranked_by == found.ranked_by() != pytest.approx(summary.score, abs=5e-4)
    assert summary.ranking == summary.ranked_by
    assert summary.probability == calibrator.probability(found.ranked_by())
    assert summary.headline == f"{likely(summary.probability)} likely the same product"
    assert summary.threshold is not None
    assert summary.threshold.score == calibrator.threshold(summary.threshold.false_accept_rate)
    assert summary.threshold.above == (summary.ranking >= summary.threshold.score)
    assert any(f"{100 * calibrator.prior:.0f} % show the same product" in hint for hint in summary.hints)
    scales = [summarise(explanation(calibrator=calibrator, seed=seed)).scale for seed in (1, 2)]
    assert scales[0] == scales[1] == summary.scale
    named = summarise(dataclasses.replace(found, kind="tin"))
    assert named.headline.endswith("likely the same tin")


def test_a_probability_that_is_known_better_is_taken(calibrator: Calibrator) -> None:
    assert summarise(explanation(calibrator=calibrator, probability=0.123)).headline == "12 % likely the same product"
    assert summarise(explanation(probability=0.5)).headline == "50 % likely the same class"


def test_without_a_calibration_the_similarity_is_named_and_how_to_calibrate() -> None:
    summary = summarise(explanation())
    assert summary.headline == f"Similarity {summary.ranking:.2f}"
    assert summary.probability is summary.threshold is None
    assert any("diml calibrate" in hint for hint in summary.hints)
    assert str(summary) == f"{summary.headline}. {summary.sentence}"


@pytest.mark.parametrize(("chance", "text"), [(0.9951, "more than 99 %"), (0.99, "99 %"), (0.004, "less than 1 %")])
def test_no_probability_is_certain(chance: float, text: str) -> None:
    assert likely(chance) == text


@pytest.mark.parametrize("shares", [True, False])
def test_shares_of_the_background_are_those_of_a_plain_loop(shares: bool) -> None:
    random = np.random.default_rng(0)
    query, gallery = random.random(12), random.random(12)
    found = explanation(foregrounds=(query, gallery), shares=shares, structural_weight=2)
    ledger, kinds = found.ledger(), dict.fromkeys(("object", "mixed", "background"), 0.0)
    for q in range(12):
        for g in range(12):
            term = float(ledger.whole[q, g]) if shares else 2 * float(ledger.contributions[q, g])
            kinds["object"] += term * query[q] * gallery[g]
            kinds["background"] += term * (1 - query[q]) * (1 - gallery[g])
            kinds["mixed"] += term * (query[q] * (1 - gallery[g]) + (1 - query[q]) * gallery[g])
    told = summarise(found).to_dict()
    assert told["background"] == pytest.approx({name: value / ledger.score for name, value in kinds.items()})
    rest = 0.0 if shares else told["pooled"]["share"]
    assert sum(told["background"].values()) + rest == pytest.approx(1)


def test_a_background_that_carries_much_is_warned_of() -> None:
    some, none = np.full(12, 0.3), np.zeros(12)
    assert any("of the similarity comes from the backgrounds" in text for text in told_of(some).warnings)
    assert "100 % of the similarity comes from the backgrounds of both images." in told_of(none).warnings
    assert not any("background" in text for text in told_of(np.ones(12)).warnings)
    assert summarise(explanation(foregrounds=(none, None))).background is None


def told_of(inside: np.ndarray) -> Summary:
    return summarise(explanation(foregrounds=(inside, inside)))


def test_what_is_not_transported_is_told_with_its_regions() -> None:
    found = explanation(share=0.6)
    summary = summarise(found)
    assert summary.unmatched is not None
    assert found.unmatched_q is not None
    assert summary.unmatched.query.mass == pytest.approx(0.4, abs=1e-6)
    weights, left = found.weight_q[0].tolist(), found.unmatched_q[0].tolist()
    assert summary.unmatched.query.regions == tuple(r for r in range(12) if left[r] > 0.5 * weights[r])
    assert summary.sentence.endswith("40 % of either image has no counterpart.")


def test_no_shares_of_a_score_close_to_zero() -> None:
    found = explanation()
    assert found.pooled_parts is not None
    score = found.ledger().score
    for wanted in (0.2, 0.0, -0.4):  # at 0.2 the terms cancel each other
        off = wanted - score
        low = dataclasses.replace(found, pooled=found.pooled + off, pooled_parts=found.pooled_parts + off / 144)
        summary = summarise(dataclasses.replace(low, foregrounds=(np.ones(12), np.ones(12))))
        assert summary.score == pytest.approx(wanted, abs=1e-6)
        assert all(row.share is None for row in (*summary.parts, summary.between))
        assert summary.background is None
        assert f"similarity of {signed(summary.ranking, 2)}" in summary.sentence
        assert "%" not in summary.sentence
        assert any("only values are given" in text for text in summary.warnings)


def test_a_model_that_separates_nothing_is_warned_of(calibrator: Calibrator) -> None:
    blind = dataclasses.replace(calibrator, auc=0.52, auc_interval=(0.49, 0.55))
    assert summarise(explanation(calibrator=blind)).warnings[0].startswith("This model hardly tells one product")
    assert not any("hardly" in text for text in summarise(explanation(calibrator=calibrator)).warnings)


def test_regions_that_all_look_alike_are_warned_of() -> None:
    found = explanation()
    weighted = sum(
        float(found.weight_q[0, q] * found.weight_g[0, g] * found.cosine[0, q, g]) for q in range(12) for g in range(12)
    )
    assert mean_cosine(found) == pytest.approx(weighted)
    for cosine in (0.73, 0.71):
        alike = dataclasses.replace(found, cosine=found.cosine - weighted + cosine)
        told = [text for text in summarise(alike).warnings if text.startswith("All regions look much alike")]
        assert [f"mean cosine {cosine}" in text for text in told] == ([True] if cosine > ALIKE else [])


def test_parts_in_pieces_are_named() -> None:
    summary = summarise(explanation((6, 6), (6, 6)))
    apart = [row.part for row in summary.parts if not row.connected_q]
    told = " ".join(summary.warnings)
    assert ("in the query" in told) == bool(apart)
    for part in apart:
        assert re.search(rf"arts? [\d, and]*\b{part}\b[a-z ]*in the query", told)


def test_as_many_parts_as_are_asked_for() -> None:
    found = explanation((5, 5), (5, 5))
    assert len(summarise(found, parts=2).parts) == 2
    assert len(summarise(found, parts=1).parts) == 1
    assert summarise(found, parts=found.ledger().parts(2)) == summarise(found, parts=2)
    with pytest.raises(ValueError, match="at least 1"):
        summarise(found, parts=0)
    with pytest.raises(IndexError, match="pair: need"):
        summarise(found, 1)


@pytest.fixture(scope="module")
def base() -> Summary:
    return summarise(explanation((4, 4), (4, 4)))


def with_rows(base: Summary, *shares: float, between: float = 0.0, **changes: Any) -> Summary:
    """The summary with parts of these shares."""
    row = dataclasses.replace(base.parts[0], place_q="centre", place_g="top left")
    parts = tuple(dataclasses.replace(row, part=i, value=share, share=share) for i, share in enumerate(shares, 1))
    return dataclasses.replace(base, parts=parts, between=Term(between, between), unmatched=None, **changes)


def test_sentences_are_grammatical(base: Summary) -> None:
    joins = "the centre of the query with the top left of the gallery image"
    assert sentence_of(with_rows(base, 0.842)) == f"One part carries 84 % of the similarity; it joins {joins}."
    two = with_rows(base, 0.5, 0.34)
    assert sentence_of(two) == f"Two parts carry 84 % of the similarity; the largest (50 %) joins {joins}."
    rest = with_rows(base, 0.31, 0.2, 0.1, between=0.39, overall=False)
    assert sentence_of(rest).endswith(f"joins {joins}; another 39 % comes from regions of different parts.")
    whole = dataclasses.replace(rest, overall=True)
    assert sentence_of(whole).endswith(f"joins {joins}; another 39 % is the overall look.")
    more = with_rows(base, 0.6, 0.45, between=-0.05)
    assert sentence_of(more).endswith(f"joins {joins}; regions of different parts take away 5 %.")
    pooled = with_rows(base, 0.3, 0.2, pooled=Term(0.5, 0.5))
    assert sentence_of(pooled).endswith("50 % compares the images as a whole and is not divided among parts.")
    assert sentence_of(with_rows(base)) == "No part of the query resembles a part of the gallery image."
    left = UnmatchedSides(Unmatched(0.18, ()), Unmatched(0.0, ()))
    one_side = dataclasses.replace(two, unmatched=left)
    assert sentence_of(one_side).endswith("; 18 % of the query has no counterpart.")
    both = dataclasses.replace(two, unmatched=UnmatchedSides(Unmatched(0.18, ()), Unmatched(0.3, ())))
    assert sentence_of(both).endswith("; 18 % of the query and 30 % of the gallery image have no counterpart.")


def test_the_sentence_is_computed_from_the_numbers() -> None:
    summary = summarise(explanation((5, 5), (5, 5), seed=3))
    carried = sum(row.share or 0 for row in summary.parts)
    largest = summary.parts[0]
    assert f"carry {100 * carried:.0f} % of the similarity" in summary.sentence
    assert f"({100 * (largest.share or 0):.0f} %)" in summary.sentence
    assert placed(largest.place_q, len(largest.regions_q), "query") in summary.sentence


def test_headlines(base: Summary) -> None:
    assert headline_of(dataclasses.replace(base, probability=0.91, ranked_by=1.3)) == "91 % likely the same class"
    assert headline_of(dataclasses.replace(base, probability=None, ranked_by=1.306)) == "Similarity 1.31"


def test_background_shares_sum(base: Summary) -> None:
    shares = BackgroundShares(0.2, 0.3, 0.5)
    assert sum(dataclasses.replace(base, background=shares).to_dict()["background"].values()) == pytest.approx(1)
