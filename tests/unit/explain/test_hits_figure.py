"""The figure of a query with its hits: a row each, verdicts in words, values of the ledgers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from diml.explain import Explanation
from diml.explain.formatting import TIMES
from diml.explain.hits_figure import DrawnHit, hits_figure
from diml.matching import Match
from drawn_pair import drawn_pair

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
    figure = hits_figure(hits, top=2, view="regions", plan="scored")
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
    hit = DrawnHit(Explanation.of(random_match(grid, grid), drawn_pair(48)))
    for width in (3.3, None):
        assert overlapping_texts(hits_figure([hit], top=8, view="regions", width=width)) == []


def test_parts_and_probability_are_those_of_the_summary(hits: list[DrawnHit]) -> None:
    figure = hits_figure(hits, top=2)
    for rank, hit in ((1, hits[0]), (7, hits[1]), (3, hits[2])):
        summary = hit.match.summary()
        assert text_of(figure, f"headline-{rank}") == summary.headline
        for row in summary.parts[:2]:
            assert text_of(figure, f"share-{rank}-{row.part}") == f"{100 * (row.share or 0):.0f} %"
        rest = summary.score - sum(row.value for row in summary.parts[:2])
        assert text_of(figure, f"share-{rank}-rest") == f"{100 * rest / summary.score:.0f} %"


def test_hits_are_placed_on_one_scale(hits: list[DrawnHit]) -> None:
    figure = hits_figure(hits)
    lines = [figure.findobj(lambda a, r=rank: a.get_gid() == f"scale-{r}-line")[0] for rank in (1, 7, 3)]
    places = [float(line.get_xdata()[0]) for line in lines]
    scores = [float(hit.match.score) for hit in hits]
    slopes = np.diff(places) / np.diff(scores)
    assert slopes[0] == pytest.approx(slopes[1])
    assert slopes[0] > 0


def text_of(figure: Figure, gid: str) -> str:
    [text] = figure.findobj(lambda artist: artist.get_gid() == gid)
    return str(text.get_text())


@pytest.mark.parametrize("view", ["parts", "regions"])
@pytest.mark.parametrize(("top", "width"), [(0, None), (4, 3.3), (8, None), (8, 6.9)])
def test_no_text_covers_another(
    hits: list[DrawnHit], top: int, width: float | None, view: Any, overlapping_texts: Overlapping
) -> None:
    figure = hits_figure(hits, title="/a/long/title/" * 20, top=top, width=width, view=view)
    assert figure.get_figwidth() == pytest.approx(width or 12)
    assert overlapping_texts(figure) == []


def test_a_row_that_did_not_converge_is_labelled_so(random_match: MakeMatch, overlapping_texts: Overlapping) -> None:
    stopped = random_match((4, 4), (4, 4), max_iterations=1, tolerance=1e-9)
    figure = hits_figure([DrawnHit(Explanation.of(stopped, drawn_pair(48), ("a", "b")))], top=8, plan="scored")
    assert "not converged" in [text.get_text() for text in figure.findobj(Text)]
    assert overlapping_texts(figure) == []


def test_no_hits_and_too_many_lines_are_refused(hits: list[DrawnHit]) -> None:
    with pytest.raises(ValueError, match="hits: need at least one"):
        hits_figure([])
    with pytest.raises(ValueError, match="top: need 0 to 8 parts or lines a hit, got 9"):
        hits_figure(hits, top=9)


@pytest.mark.parametrize("weight", [0, 0.125, 4, float("inf")])
def test_the_weight_of_the_structural_score_is_shown(
    weight: float, random_match: MakeMatch, overlapping_texts: Overlapping
) -> None:
    many = random_match((4, 4), (4, 4), pairs=2, structural_weight=weight)
    matches = [Explanation.of(many, drawn_pair(48), ("q", f"hit{n}"), pair=n) for n in range(2)]
    figure = hits_figure([DrawnHit(match) for match in matches], plan="scored")
    texts = [text.get_text() for text in figure.findobj(Text)]
    for match in matches:
        ledger = match.ledger()
        assert f"score {ledger.score:.3f}" in texts
        factor = "" if weight == float("inf") else f"{weight:g} {TIMES} "
        assert f"{factor}structural {ledger.structural:.3f}" in texts
    assert overlapping_texts(figure) == []


def test_hits_without_images_are_drawn_too(random_match: MakeMatch) -> None:
    hits_figure([DrawnHit(Explanation(**vars(random_match((2, 2), (3, 3)))))])
