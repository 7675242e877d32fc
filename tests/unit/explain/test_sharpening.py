"""The sharpened plan: same rows, same order, its own sum, and a limit."""

import json

import pytest
import torch
from matplotlib.text import Text

from diml.explain import drawn_pair, explanation_page
from diml.explain.explanation import Explanation, describe_match, match_pair
from diml.explain.formatting import TIMES
from diml.explain.sharpening import sharpened


def test_rows_keep_their_mass_and_their_order(random_match):
    found = random_match((3, 3), (2, 4), 4)
    made = sharpened(found, 7)
    assert torch.allclose(made.plan.sum(2), found.plan.sum(2), atol=1e-6)
    assert torch.equal(made.plan.argsort(dim=2, stable=True), found.plan.argsort(dim=2, stable=True))
    assert (made.plan.amax(2) >= found.plan.amax(2) - 1e-7).all()
    assert torch.equal(made.cosine, found.cosine)


def test_its_ledger_sums_to_its_own_structural_score(random_match):
    made = sharpened(random_match((3, 3), (3, 3), 2), 5)
    for pair in range(2):
        assert made.ledger(pair).structural == pytest.approx(float(made.structural[pair]), abs=1e-6)


def test_factor_1_is_the_plan_itself_and_a_large_one_the_strongest_match(random_match):
    found = random_match((2, 3), (3, 3))
    assert torch.allclose(sharpened(found, 1).plan, found.plan, atol=1e-7)
    limit = sharpened(found, 1e6).plan[0]
    assert torch.equal((limit > 0).sum(dim=1), torch.ones(6, dtype=torch.int64))
    assert torch.equal(limit.argmax(1), found.plan[0].argmax(1))


def test_rows_without_mass_stay_empty_and_nothing_is_nan(random_match):
    found = random_match((2, 2), (2, 2))
    found.plan[0, 1] = 0
    made = sharpened(found, 50)
    assert made.plan[0, 1].tolist() == [0, 0, 0, 0]
    assert torch.isfinite(made.plan).all()


@pytest.mark.parametrize("factor", [0.5, 0, float("inf"), float("nan")])
def test_other_factors_are_refused(random_match, factor):
    with pytest.raises(ValueError, match="sharpen: need a finite number of at least 1"):
        sharpened(random_match((2, 2), (2, 2)), factor)


def test_a_pair_with_images_keeps_and_states_its_score(embedder):
    found = match_pair(*drawn_pair(), embedder=embedder)
    assert found.note() == describe_match(found)["note"] == ""
    made = sharpened(found, 10)
    assert made.scored.tolist() == found.structural.tolist()
    assert torch.equal(sharpened(made, 2).scored, made.scored)
    assert f"score {float(found.score):.3f} = pooled" in made.note()
    assert f"sum to {float(made.structural):.3f}" in made.note()
    told = made.to_dict()
    assert told["note"] == made.note()
    assert sum(map(sum, told["plan"])) == pytest.approx(1)
    assert json.dumps(made.note(), ensure_ascii=True) in explanation_page(made)
    assert made.note().split(":")[0] in " ".join(text.get_text() for text in made.draw().findobj(Text))
    assert sharpened(found, 1).scored is None


def test_the_note_of_each_of_several_pairs_has_the_weight(random_match, overlapping_texts):
    found = Explanation(**vars(random_match((3, 3), (3, 3), 2, structural_weight=4)))
    made = sharpened(found, 10)
    for pair in range(2):
        assert f"score {float(found.score[pair]):.3f} = pooled" in made.note(pair)
        assert f"+ 4 {TIMES} structural {float(found.structural[pair]):.3f}" in made.note(pair)
    one = Explanation.of(made, pair=1)
    assert one.note() == made.note(1)
    assert overlapping_texts(one.draw()) == []


def test_a_note_and_a_warning_both_fit(random_match, overlapping_texts):
    found = Explanation(**vars(random_match((4, 4), (4, 4), max_iterations=1, tolerance=1e-9, structural_weight=0.125)))
    figure = sharpened(found, 10.5).draw(images=drawn_pair(64))
    texts = " ".join(text.get_text() for text in figure.findobj(Text))
    assert "Not converged" in texts
    assert "Sharpened plan (factor 10.5)" in texts
    assert overlapping_texts(figure) == []
