"""The figure of a query with its hits: a row each, verdicts in words, values of the ledgers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from diml.explain import Explanation, drawn_pair
from diml.explain.drawn_hits import DrawnHit, hits_figure
from diml.explain.formatting import TIMES
from diml.matching import Match

MakeMatch = Callable[..., Match]
Overlapping = Callable[[Figure], list[tuple[str, str]]]


@pytest.fixture
def hits(random_match: MakeMatch) -> list[DrawnHit]:
    many = random_match((4, 4), (4, 4), pairs=3)
    matches = [Explanation.of(many, drawn_pair(48), ("query.jpg", f"hit{n}.jpg"), pair=n) for n in range(3)]
    return [
        DrawnHit(matches[0], correct=True, note="Golden-Delicious"),
        DrawnHit(matches[1], correct=False, rank=7, note="a class with a very long name " * 4),
        DrawnHit(matches[2]),
    ]


def test_right_and_wrong_are_marked_in_words_and_colour(hits: list[DrawnHit]) -> None:
    figure = hits_figure(hits)
    verdicts = {
        text.get_gid(): (text.get_text(), text.get_bbox_patch().get_facecolor())
        for text in figure.findobj(Text)
        if (text.get_gid() or "").startswith("verdict-")
    }
    assert set(verdicts) == {"verdict-1", "verdict-7"}
    assert verdicts["verdict-1"][0] == "✓ right"
    assert verdicts["verdict-7"][0] == "✗ wrong"
    assert verdicts["verdict-1"][1] != verdicts["verdict-7"][1]


def test_values_of_each_row_are_its_ledgers(hits: list[DrawnHit]) -> None:
    figure = hits_figure(hits, top=2)
    texts = figure.findobj(Text)
    for rank in range(2):
        shown = [text.get_text() for text in texts if text.get_gid() == f"contribution-{rank}"]
        expected = [hit.match.ledger().top(2)[rank].contribution for hit in hits]
        assert [float(value) for value in shown] == pytest.approx(expected, abs=0.0005)
    for hit in hits:
        assert f"score {float(hit.match.score):.3f}" in [text.get_text() for text in texts]


@pytest.mark.parametrize("grid", [(7, 7), (14, 14)])
def test_small_contributions_fit(
    grid: tuple[int, int], random_match: MakeMatch, overlapping_texts: Overlapping
) -> None:
    figure = hits_figure([DrawnHit(Explanation.of(random_match(grid, grid), drawn_pair(48)))], top=8)
    assert overlapping_texts(figure) == []


@pytest.mark.parametrize("top", [0, 4, 8])
def test_no_text_covers_another(hits: list[DrawnHit], top: int, overlapping_texts: Overlapping) -> None:
    figure = hits_figure(hits, title="/a/long/title/" * 20, top=top)
    assert figure.get_size_inches()[0] * figure.dpi == pytest.approx(1200)
    assert overlapping_texts(figure) == []


def test_a_row_that_did_not_converge_is_labelled_so(random_match: MakeMatch, overlapping_texts: Overlapping) -> None:
    stopped = random_match((4, 4), (4, 4), max_iterations=1, tolerance=1e-9)
    figure = hits_figure([DrawnHit(Explanation.of(stopped, drawn_pair(48), ("a", "b")))], top=8)
    assert "not converged" in [text.get_text() for text in figure.findobj(Text)]
    assert overlapping_texts(figure) == []


def test_no_hits_and_too_many_lines_are_refused(hits: list[DrawnHit]) -> None:
    with pytest.raises(ValueError, match="hits: need at least one"):
        hits_figure([])
    with pytest.raises(ValueError, match="top: need 0 to 8 lines a hit, got 9"):
        hits_figure(hits, top=9)


@pytest.mark.parametrize("weight", [0, 0.125, 4, float("inf")])
def test_the_weight_of_the_structural_score_is_shown(
    weight: float, random_match: MakeMatch, overlapping_texts: Overlapping
) -> None:
    many = random_match((4, 4), (4, 4), pairs=2, structural_weight=weight)
    matches = [Explanation.of(many, drawn_pair(48), ("q", f"hit{n}"), pair=n) for n in range(2)]
    figure = hits_figure([DrawnHit(match) for match in matches])
    texts = [text.get_text() for text in figure.findobj(Text)]
    for match in matches:
        ledger = match.ledger()
        assert f"score {ledger.score:.3f}" in texts
        factor = "" if weight == float("inf") else f"{weight:g} {TIMES} "
        assert f"{factor}structural {ledger.structural:.3f}" in texts
    bars = figure.findobj(Rectangle)
    widths = {
        name: [bar.get_width() for bar in bars if bar.get_gid() == f"bar-{name}"] for name in ("pooled", "structural")
    }
    counted = [1.0 if weight == float("inf") else weight * float(match.structural) for match in matches]
    if weight == float("inf"):
        assert widths["pooled"] == []
    else:
        parts = [float(match.pooled) for match in matches]
        assert [b / a for a, b in zip(widths["pooled"], widths["structural"], strict=True)] == pytest.approx(
            [b / a for a, b in zip(parts, counted, strict=True)]
        )
    assert overlapping_texts(figure) == []


def test_hits_without_images_are_drawn_too(random_match: MakeMatch) -> None:
    hits_figure([DrawnHit(Explanation(**vars(random_match((2, 2), (3, 3)))))])
