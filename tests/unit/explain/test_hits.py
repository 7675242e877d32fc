"""A query with its hits: a row each, verdicts in words, values from the ledgers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from diml.explain import Explanation, Hit, drawn_pair, hits_figure
from diml.matching import Match

MakeMatch = Callable[..., Match]
Overlapping = Callable[[Figure], list[tuple[str, str]]]


@pytest.fixture
def hits(random_match: MakeMatch) -> list[Hit]:
    many = random_match((4, 4), (4, 4), pairs=3)
    matches = [Explanation.of(many, drawn_pair(48), ("query.jpg", f"hit{n}.jpg"), pair=n) for n in range(3)]
    return [
        Hit(matches[0], correct=True, note="Golden-Delicious"),
        Hit(matches[1], correct=False, rank=7, note="a class with a very long name " * 4),
        Hit(matches[2]),
    ]


def test_right_and_wrong_are_told_in_words_and_colour(hits: list[Hit]) -> None:
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


def test_values_of_each_row_are_its_ledgers(hits: list[Hit]) -> None:
    figure = hits_figure(hits, top=2)
    texts = figure.findobj(Text)
    for rank in range(2):
        shown = [text.get_text() for text in texts if text.get_gid() == f"contribution-{rank}"]
        expected = [hit.match.ledger().top(2)[rank].contribution for hit in hits]
        assert [float(value) for value in shown] == pytest.approx(expected, abs=0.0005)
    for hit in hits:
        assert f"score {float(hit.match.score):.3f}" in [text.get_text() for text in texts]


@pytest.mark.parametrize("top", [0, 4, 8])
def test_no_text_covers_another(hits: list[Hit], top: int, overlapping_texts: Overlapping) -> None:
    figure = hits_figure(hits, title="/a/long/title/" * 20, top=top)
    assert figure.get_size_inches()[0] * figure.dpi == pytest.approx(1200)
    assert overlapping_texts(figure) == []


def test_a_row_that_did_not_converge_says_so(random_match: MakeMatch, overlapping_texts: Overlapping) -> None:
    unfinished = random_match((4, 4), (4, 4), max_iterations=1, tolerance=1e-9)
    figure = hits_figure([Hit(Explanation.of(unfinished, drawn_pair(48), ("a", "b")))], top=8)
    assert "not converged" in [text.get_text() for text in figure.findobj(Text)]
    assert overlapping_texts(figure) == []


def test_no_hits_and_too_many_lines_are_refused(hits: list[Hit]) -> None:
    with pytest.raises(ValueError, match="hits: need at least one"):
        hits_figure([])
    with pytest.raises(ValueError, match="top: need 0 to 8 lines a hit, got 9"):
        hits_figure(hits, top=9)
