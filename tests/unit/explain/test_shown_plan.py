"""The exact plan in place of the one that ranks: optimal, labelled, and with the same ranking score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from diml.explain import Explanation
from diml.explain.explanation import match_pair
from diml.explain.shown_plan import shown_plan
from drawn_pair import drawn_pair
from unit.explain.random_matches import make_match


def best_structural(found: Explanation) -> float:
    """The largest sum of mass x cosine, by linear programming."""
    cosine = found.cosine[0].double().numpy()
    rows, columns = cosine.shape
    sums = [np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))]
    wanted = np.concatenate([found.weight_q[0].double().numpy(), found.weight_g[0].double().numpy()])
    wanted[rows:] *= wanted[:rows].sum() / wanted[rows:].sum()
    solved = linprog(-cosine.ravel(), A_eq=np.concatenate(sums), b_eq=wanted, method="highs")
    return float(-solved.fun)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([0.0, 0.02, 0.2]))
def test_it_is_optimal_and_the_ranking_score_stays(rows: int, columns: int, epsilon: float) -> None:
    match = make_match((rows, 2), (2, columns), pairs=2, signed=True, epsilon=epsilon)
    for pair in (0, 1, -1):
        shown = shown_plan(match, pair)
        assert len(shown) == 1
        assert float(shown.structural) == pytest.approx(best_structural(shown), abs=1e-5)
        assert shown.ranked_by() == pytest.approx(float(match.score[pair]), abs=1e-6)
        assert float(shown.structural) >= float(match.structural[pair]) - 1e-4
        assert shown.ledger().structural == pytest.approx(float(shown.structural), abs=1e-6)
        assert int((shown.plan > 0).sum()) <= 2 * rows + 2 * columns - 1
        assert (shown.plan_shown, shown.plan_kind) == ("exact", "exact")


def test_reduced_costs_say_how_much_more_alike_regions_would_have_to_be() -> None:
    shown = shown_plan(make_match((3, 3), (3, 3)))
    assert shown.potential_q is not None
    assert shown.potential_g is not None
    reduced = 1 - shown.cosine[0].double() - shown.potential_q[0][:, None] - shown.potential_g[0][None]
    assert float(reduced.min()) >= -1e-6
    assert float(reduced[shown.plan[0] > 1e-9].abs().max()) <= 1e-6
    unused = divmod(int(reduced.masked_fill(shown.plan[0] > 0, -1).argmax()), 9)
    cosine = shown.cosine.clone()
    cosine[0][unused] += float(reduced[unused]) + 0.01  # a little more than its reduced cost: now it is matched
    changed = make_match((3, 3), (3, 3))
    changed = Explanation(**{**vars(changed), "cosine": cosine})
    assert float(shown_plan(changed).plan[0][unused]) > 0


def test_it_is_shown_once_and_the_plan_that_ranks_comes_back() -> None:
    found = Explanation(**vars(make_match((3, 3), (2, 4), epsilon=0.1)))
    shown = shown_plan(found)
    assert shown_plan(shown) is not found
    assert torch.equal(shown_plan(shown).plan, shown.plan)
    assert shown_plan(shown).ranked_by() == shown.ranked_by() == pytest.approx(float(found.score))
    back = shown_plan(shown, plan="scored")
    assert back.scored is None
    assert torch.allclose(back.plan, found.plan, atol=1e-6)
    assert back.plan_shown == "entropic, epsilon 0.1"
    assert torch.equal(shown_plan(found, plan="scored").plan, found.plan)


def test_an_exact_matcher_shows_the_plan_that_ranks() -> None:
    match = make_match((3, 3), (2, 4), epsilon=0)
    for plan in ("exact", "scored"):
        shown = shown_plan(match, plan=plan)
        assert shown.scored is None
        assert shown.plan_shown == "exact"
        assert shown.note() == ""
        assert torch.equal(shown.plan, match.plan)


def test_what_is_not_transported_is_that_of_the_exact_plan() -> None:
    match = make_match((3, 3), (2, 4), share=0.7)
    shown = shown_plan(match)
    assert shown.unmatched_q is not None
    assert shown.unmatched_g is not None
    assert float(shown.plan.sum()) == pytest.approx(0.7, abs=1e-5)
    assert torch.allclose(shown.unmatched_q, shown.weight_q - shown.plan.sum(dim=2), atol=1e-6)
    assert float(shown.unmatched_g.sum()) == pytest.approx(0.3, abs=1e-5)


def test_how_far_the_plan_that_ranks_has_converged_is_kept() -> None:
    match = make_match((3, 3), (3, 3), max_iterations=1, tolerance=1e-9)
    shown = shown_plan(match)
    assert not bool(shown.converged[0])
    assert int(shown.iterations[0]) == 1
    assert any("Not converged" in warning for warning in shown.summary().warnings)


def test_images_names_and_notes(embedder: object) -> None:
    found = match_pair(*drawn_pair(96), embedder=embedder)  # type: ignore[arg-type]
    shown = shown_plan(found)
    assert (shown.images, shown.names) == (found.images, ("query", "gallery"))
    assert f"sum to {float(shown.score):.3f}" in shown.note()
    assert f"ranked by {float(found.score):.3f}, from the entropic plan (epsilon 0.05)" in shown.note()
    assert found.note() == ""
    with pytest.raises(ValueError, match="plan: need 'exact' or 'scored', got 'sharp'"):
        shown_plan(found, plan="sharp")  # type: ignore[arg-type]
    with pytest.raises(IndexError, match=r"pair: need -1\.\.0, got 1"):
        shown_plan(found, 1)
