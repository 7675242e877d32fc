"""The figure for everybody shows what the summary says, and nothing covers anything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from diml.explain import Explanation
from diml.explain.canvas import PARTS_PALETTE, UNMATCHED
from diml.explain.panels import Side
from diml.explain.parts_figure import draw_parts
from drawn_pair import drawn_pair

Overlapping = Callable[[Figure], list[tuple[str, str]]]
Grid = tuple[int, int]

LONG = "/data/" + "very_long_folder_name/" * 8 + "an image with $ and 中 in its name.jpg"
WARNING = "45 % of the similarity comes from the backgrounds of both images, " * 3
PLACES = ("centre", "scattered regions", "bottom right", "whole image", "upper half", "top left")


def sides_of_grids(
    q: Grid | None, g: Grid | None, images: Sequence[Image.Image] | None = None, name: str = "", count: int = 16
) -> tuple[Side, Side]:
    def side(role: str, grid: Grid | None, image: Image.Image | None) -> Side:
        regions = count if grid is None else grid[0] * grid[1]
        return Side(role, name or role, np.full(regions, 1 / regions), grid, image)

    given = images or (None, None)
    return side("query", q, given[0]), side("gallery", g, given[1])


def summary_of(
    sides: tuple[Side, Side], parts: int = 4, *, calibrated: bool = True, shares: bool = True, full: bool = False
) -> dict[str, Any]:
    """A made-up summary: regions are dealt out to the parts in stripes."""
    counts = [len(side.weights) for side in sides]
    rows = []
    for part in range(min(parts, *counts)):
        share = 0.31 / (part + 1)
        regions = [list(range(count * part // parts, count * (part + 1) // parts)) or [0] for count in counts]
        rows.append(
            {
                "part": part + 1, "value": 1.4 * share, "share": share if shares else None, "mass": 0.1, "cosine": 0.6,
                "regions_q": regions[0], "regions_g": regions[1], "connected_q": True, "connected_g": part != 1,
                "place_q": PLACES[part % 6], "place_g": PLACES[(part + 1) % 6],
            }
        )  # fmt: skip
    rest = 1.4 - sum(row["value"] for row in rows)
    itself = {"value": 2.0, "kind": "itself", "label": "an image with itself"}
    scale: dict[str, Any] = {"low": 0.0, "high": 2.0, "marks": [itself], "bands": []}
    if calibrated:
        marks = [{"value": 1.2, "kind": "different", "label": "different classes, typically"},
                 {"value": 1.5, "kind": "same", "label": "the same class, typically"}, itself]  # fmt: skip
        bands = [{"kind": "different", "low": 1.0, "high": 1.4}, {"kind": "same", "low": 1.25, "high": 1.8}]
        scale |= {"low": 0.9, "marks": marks, "bands": bands}
    unmatched = {"mass": 0.2, "regions": [0, 3]}
    return {
        "headline": "91 % likely the same class" if calibrated else "Similarity 1.39",
        "sentence": "Three parts carry 84 % of the similarity; the largest (31 %) joins the centre of both images.",
        "score": 1.4, "ranked_by": 1.394 if full else None, "plan": "exact", "whole": not full,
        "undivided": "the head is not affine (gelu), so that the pooled cosine is no sum over regions" if full else "",
        "parts": rows, "between": {"value": rest, "share": rest / 1.4 if shares else None},
        "overall": not full,
        "pooled": {"value": 0.6, "share": 0.43 if shares else None} if full else None,
        "unmatched": {"query": unmatched, "gallery": {"mass": 0.0, "regions": []}} if full else None,
        "background": {"object": 0.5, "mixed": 0.3, "background": 0.2} if full else None,
        "probability": 0.91 if calibrated else None,
        "threshold": {"score": 1.47, "false_accept_rate": 0.01, "above": False} if calibrated else None,
        "scale": scale, "warnings": [WARNING, "Not converged."] if full else [], "hints": ["Run diml calibrate."],
    }  # fmt: skip


def texts_of(figure: Figure, prefix: str) -> str:
    lines = figure.findobj(lambda artist: isinstance(artist, Text) and str(artist.get_gid()).startswith(prefix))
    return " ".join(line.get_text() for line in lines)


def by_gid(figure: Figure, gid: str) -> list[Any]:
    return list(figure.findobj(lambda artist: artist.get_gid() == gid))


def test_shares_bars_and_words_are_those_of_the_summary() -> None:
    sides = sides_of_grids((4, 4), (4, 4), drawn_pair(64))
    summary = summary_of(sides, full=True)
    figure = draw_parts(summary, sides)
    assert texts_of(figure, "headline-") == summary["headline"]
    assert texts_of(figure, "sentence-") == summary["sentence"]
    assert texts_of(figure, "warning-0-") == summary["warnings"][0].strip()
    [track] = by_gid(figure, "track-part-1")
    for number, row in enumerate(summary["parts"], 1):
        assert texts_of(figure, f"share-part-{number}") == f"{100 * row['share']:.0f} %"
        [bar] = by_gid(figure, f"bar-part-{number}")
        assert bar.get_width() / track.get_width() == pytest.approx(row["share"])
        assert bar.get_facecolor() == to_rgba(PARTS_PALETTE[number - 1])
    assert "other pairs of regions" in texts_of(figure, "")
    for name in ("between", "pooled"):
        assert texts_of(figure, f"share-{name}") == f"{100 * summary[name]['share']:.0f} %"
        [bar] = by_gid(figure, f"bar-{name}")
        assert bar.get_facecolor() == to_rgba(UNMATCHED)
    assert "ranked by 1.394" in texts_of(figure, "plan-")


def test_values_stand_where_shares_would_mislead() -> None:
    sides = sides_of_grids((4, 4), (4, 4))
    summary = summary_of(sides, shares=False)
    figure = draw_parts(summary, sides)
    assert texts_of(figure, "share-part-1") == f"{summary['parts'][0]['value']:.3f}"
    assert by_gid(figure, "bar-part-1") == []


def test_the_parts_of_both_images_have_the_same_colour_and_number() -> None:
    sides = sides_of_grids((4, 4), (4, 4), drawn_pair(64))
    figure = draw_parts(summary_of(sides, 6), sides)
    for part in range(1, 7):
        for role in ("query", "gallery"):
            [line] = by_gid(figure, f"outline-{role}-{part}")
            assert line.get_edgecolor() == to_rgba(PARTS_PALETTE[part - 1])
            assert {text.get_text() for text in by_gid(figure, f"badge-{role}-{part}")} == {str(part)}
            assert len(by_gid(figure, f"thumb-{role}-{part}")) == 1


def test_images_keep_their_colours_unless_an_overlay_is_asked_for() -> None:
    image = Image.new("RGB", (64, 64), (90, 160, 60))
    sides = sides_of_grids((4, 4), (4, 4), (image, image))
    shown = []
    for overlay in (False, True):
        figure = draw_parts(summary_of(sides, 3), sides, overlay=overlay, panels=["images"])
        figure.canvas.draw()
        [axes] = by_gid(figure, "panel-query")
        box = axes.get_window_extent()
        pixels = np.asarray(figure.canvas.buffer_rgba())[::-1]  # from the bottom
        x, y = round(box.x0 + 0.62 * box.width), round(box.y0 + 0.87 * box.height)  # inside a cell of part 1
        shown.append(tuple(int(value) for value in pixels[y, x, :3]))
    assert shown[0] == (90, 160, 60)
    assert shown[1] != (90, 160, 60)


def test_regions_without_a_counterpart_are_hatched_and_explained() -> None:
    sides = sides_of_grids((4, 4), (4, 4), drawn_pair(64))
    figure = draw_parts(summary_of(sides, full=True), sides)
    [axes] = by_gid(figure, "panel-query")
    hatched = [patch.get_gid() for patch in axes.patches if patch.get_hatch()]
    assert hatched == ["unmatched-0", "unmatched-3"]
    assert "no counterpart in the other image" in [text.get_text() for text in figure.findobj(Text)]


def test_chosen_panels_are_drawn_and_no_others() -> None:
    sides = sides_of_grids((4, 4), (4, 4))
    figure = draw_parts(summary_of(sides, full=True), sides, panels=["images"])
    assert texts_of(figure, "headline") == ""
    assert by_gid(figure, "bar-part-1") == []
    with pytest.raises(ValueError, match="panels: need some of headline, images, parts, background, scale, got plan"):
        draw_parts(summary_of(sides), sides, panels=["plan"])


@pytest.mark.parametrize("width", [2.5, 3.3, 4.7, None, 14.0])
@pytest.mark.parametrize(("calibrated", "full", "parts"), [(True, True, 6), (False, False, 3), (True, False, 1)])
def test_no_text_covers_another_at_any_width(
    width: float | None, calibrated: bool, full: bool, parts: int, overlapping_texts: Overlapping
) -> None:
    sides = sides_of_grids((7, 7), (4, 5), drawn_pair(64), LONG)
    figure = draw_parts(summary_of(sides, parts, calibrated=calibrated, full=full), sides, width=width)
    assert figure.get_figwidth() == pytest.approx(width or 6.9)
    assert overlapping_texts(figure) == []
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 6


@pytest.mark.parametrize(
    ("q", "g"), [((1, 1), (1, 1)), ((1, 12), (12, 1)), (None, (3, 3)), ((14, 14), (2, 2)), (None, None)]
)
@pytest.mark.parametrize("images", [None, (drawn_pair(48)[0].resize((300, 30)), drawn_pair(48)[1])])
def test_any_grid_is_drawn(
    q: Grid | None, g: Grid | None, images: Sequence[Image.Image] | None, overlapping_texts: Overlapping
) -> None:
    sides = sides_of_grids(q, g, images, LONG)
    for width in (3.3, None):
        assert overlapping_texts(draw_parts(summary_of(sides, 5, full=True), sides, width=width)) == []


def test_a_summary_without_parts_is_drawn(overlapping_texts: Overlapping) -> None:
    sides = sides_of_grids((4, 4), (4, 4))
    assert overlapping_texts(draw_parts(summary_of(sides, 0), sides)) == []


@pytest.mark.parametrize("view", ["parts", "regions"])
def test_an_explanation_draws_its_summary(view: Any, random_match: Any, overlapping_texts: Overlapping) -> None:
    found = Explanation.of(random_match((4, 4), (3, 5), pairs=2), drawn_pair(64), ("a.jpg", "b.jpg"), pair=1)
    figure = found.draw(view=view)
    if view == "parts":
        summary: Mapping[str, Any] = found.summary().to_dict()
        assert texts_of(figure, "headline-") == summary["headline"]
        [bar], [track] = by_gid(figure, "bar-part-1"), by_gid(figure, "track-part-1")
        assert bar.get_width() / track.get_width() == pytest.approx(summary["parts"][0]["share"])
    assert overlapping_texts(figure) == []


def test_unknown_views_and_plans_are_refused(random_match: Any) -> None:
    found = Explanation.of(random_match((2, 2), (2, 2)))
    with pytest.raises(ValueError, match="view: need one of parts, regions, got 'cells'"):
        found.draw(view="cells")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="plan: need 'exact' or 'scored', got 'sharp'"):
        found.draw(plan="sharp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="flows: need view='regions', got 'parts'"):
        found.draw(flows=[(0, 0)])
    with pytest.raises(ValueError, match="parts: need view='parts', got 'regions'"):
        found.draw(view="regions", parts=3)
