"""Where a score stands on the common scale does not depend on anything but the score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from diml.explain.canvas import Canvas
from diml.explain.scale_figure import draw_scale, draw_scale_key, lanes_of, scale_height

Overlapping = Callable[[Figure], list[tuple[str, str]]]


def summary_of(score: float, *, calibrated: bool = True, ranked_by: float | None = None) -> dict[str, Any]:
    itself = {"value": 2.0, "kind": "itself", "label": "an image with itself"}
    if not calibrated:
        scale: dict[str, Any] = {"low": 0.0, "high": 2.0, "marks": [itself], "bands": []}
        return {"score": score, "ranked_by": ranked_by, "threshold": None, "scale": scale}
    marks = [
        {"value": 1.22, "kind": "different", "label": "different classes, typically"},
        {"value": 1.5, "kind": "same", "label": "the same class, typically"},
        itself,
    ]
    bands = [{"kind": "different", "low": 1.0, "high": 1.42}, {"kind": "same", "low": 1.25, "high": 1.8}]
    threshold = {"score": 1.47, "false_accept_rate": 0.01, "above": score >= 1.47}
    scale = {"low": 0.9, "high": 2.0, "marks": marks, "bands": bands}
    return {"score": score, "ranked_by": ranked_by, "threshold": threshold, "scale": scale}


def drawn(summary: Mapping[str, Any], width: float = 600, size: float = 9.0) -> Canvas:
    canvas = Canvas(width, scale_height(summary, size) + 20)
    draw_scale(canvas, summary, 10, 10, width - 20, size)
    return canvas


def line_at(canvas: Canvas) -> float:
    [line] = canvas.figure.findobj(lambda artist: artist.get_gid() == "scale-line")
    return float(line.get_xdata()[0])


def test_equal_steps_of_the_score_are_equal_steps_on_the_scale() -> None:
    places = [line_at(drawn(summary_of(score))) for score in (1.1, 1.4, 1.7)]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])
    assert places[0] < places[1]


def test_scores_beyond_the_ends_are_drawn_at_them() -> None:
    assert line_at(drawn(summary_of(5.0))) == pytest.approx(line_at(drawn(summary_of(2.0))))
    assert line_at(drawn(summary_of(-1.0))) == pytest.approx(line_at(drawn(summary_of(0.9))))


def test_the_score_that_ranks_is_marked() -> None:
    assert line_at(drawn(summary_of(1.6, ranked_by=1.4))) == pytest.approx(line_at(drawn(summary_of(1.4))))
    texts = [text.get_text() for text in drawn(summary_of(1.6, ranked_by=1.4)).figure.findobj(Text)]
    assert "this pair 1.400" in texts


def test_landmarks_and_threshold_have_a_lane_each() -> None:
    names = [name for name, _, _, _ in lanes_of(summary_of(1.3))]
    assert names == [
        "different classes, typically",
        "the same class, typically",
        "an image with itself",
        "threshold at 1 % false accepts",
    ]
    assert [name for name, _, _, _ in lanes_of(summary_of(1.3, calibrated=False))] == ["an image with itself"]


@pytest.mark.parametrize("score", [-3.0, 0.9, 1.3, 2.0, 7.0])
@pytest.mark.parametrize("width", [220, 600, 1200])
@pytest.mark.parametrize("calibrated", [True, False])
def test_no_text_covers_another(score: float, width: float, calibrated: bool, overlapping_texts: Overlapping) -> None:
    assert overlapping_texts(drawn(summary_of(score, calibrated=calibrated), width).figure) == []


def test_a_key_names_what_fits(overlapping_texts: Overlapping) -> None:
    for width, expected in ((900, 4), (260, 1)):
        canvas = Canvas(width, 30)
        draw_scale_key(canvas, summary_of(1.3), 10, 15, width - 10, 9)
        assert len([text for text in canvas.figure.findobj(Text) if text.get_text()]) == expected
        assert overlapping_texts(canvas.figure) == []
