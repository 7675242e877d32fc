"""The figure shows the numbers of the ledger at the right places, and is legible."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from calibrated import made_up_calibrator
from diml.explain import Explanation, draw_match
from diml.explain.canvas import save_figure
from diml.explain.flows import colour_of
from diml.explain.formatting import TIMES
from diml.matching import Match, Matcher, Regions, match
from drawn_pair import drawn_pair

MakeMatch = Callable[..., Match]
Overlapping = Callable[[Figure], list[tuple[str, str]]]


def by_gid(figure: Figure, gid: str) -> Any:
    found = figure.findobj(lambda artist: artist.get_gid() == gid)
    assert len(found) == 1, (gid, found)
    return found[0]


def text_of(figure: Figure, gid: str) -> str:
    """A text, or the lines of a paragraph joined."""
    lines = figure.findobj(lambda artist: isinstance(artist, Text) and str(artist.get_gid()).rpartition("-")[0] == gid)
    if gid in ("title", "share", "note", "warning", "unmatched"):
        return " ".join(line.get_text() for line in lines)
    return str(by_gid(figure, gid).get_text())


def number(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-"))


def test_lines_run_from_the_right_cell_to_the_right_cell(random_match: MakeMatch) -> None:
    found = random_match((3, 4), (5, 2))
    figure = draw_match(found, images=drawn_pair(64), top=12)
    boxes = {role: by_gid(figure, f"panel-{role}").get_window_extent() for role in ("query", "gallery")}
    for rank, flow in enumerate(found.ledger().top(12)):
        patch = by_gid(figure, f"flow-{rank}")
        ends = patch.axes.transData.transform(patch.get_path().vertices[[0, -1]])
        sides = (("query", flow.region_q, (3, 4)), ("gallery", flow.region_g, (5, 2)))
        for (x, y), (role, region, (rows, columns)) in zip(ends, sides, strict=True):
            across = (x - boxes[role].x0) / boxes[role].width * columns
            down = (boxes[role].y1 - y) / boxes[role].height * rows
            assert (int(down), int(across)) == divmod(region, columns)
        dots = patch.axes.transData.transform(by_gid(figure, f"ends-{rank}").get_offsets())
        assert np.asarray(dots) == pytest.approx(np.asarray(ends))


def test_lines_are_as_wide_as_they_contribute(random_match: MakeMatch) -> None:
    found = random_match((4, 4), (4, 4))
    figure = draw_match(found)
    widths = [by_gid(figure, f"flow-{rank}").get_linewidth() for rank in range(8)]
    shares = [flow.contribution for flow in found.ledger().top(8)]
    assert np.diff(widths) / (widths[0] - widths[-1]) == pytest.approx(np.diff(shares) / (shares[0] - shares[-1]))
    assert by_gid(figure, "casing-0").get_linewidth() > widths[0]


def test_printed_values_are_the_ledgers(random_match: MakeMatch) -> None:
    found = random_match((4, 4), (4, 4))
    ledger = found.ledger()
    figure = draw_match(found)
    for rank, flow in enumerate(ledger.top(8)):
        place, value = text_of(figure, f"value-{rank}").split(" · ")
        assert int(place) == rank + 1
        assert number(value) == pytest.approx(flow.contribution, abs=0.0005)
        assert by_gid(figure, f"value-{rank}").get_bbox_patch().get_facecolor() == pytest.approx(
            by_gid(figure, f"flow-{rank}").get_edgecolor()
        )
        column, row = flow.region_q % 4, flow.region_q // 4
        assert text_of(figure, f"ledger-{rank}-0") == f"{'ABCD'[column]}{row + 1}"
        printed = [number(text_of(figure, f"ledger-{rank}-{column}")) for column in (2, 3, 4)]
        assert printed == pytest.approx([flow.mass, flow.cosine, flow.contribution], abs=0.0005)
    bill = sum(flow.contribution for flow in ledger.top(8)) + number(text_of(figure, "ledger-rest"))
    assert bill == pytest.approx(number(text_of(figure, "ledger-sum")), abs=0.0015)


def test_the_title_is_the_score_and_its_two_parts(random_match: MakeMatch) -> None:
    found = random_match((4, 4), (4, 4), pairs=3)
    title = text_of(draw_match(found, pair=-1), "title")
    score, pooled, structural = (float(part[2]) for part in (found.score, found.pooled, found.structural))
    assert title == f"score {score:.3f} = pooled {pooled:.3f} + structural {structural:.3f}"


@pytest.mark.parametrize("weight", [0, 0.125, 4, float("inf")])
def test_the_title_has_the_weight_of_the_structural_score(
    weight: float, random_match: MakeMatch, overlapping_texts: Overlapping
) -> None:
    found = random_match((4, 4), (4, 4), structural_weight=weight)
    figure = draw_match(found, names=(LONG, LONG))
    score, pooled, structural = (float(part[0]) for part in (found.score, found.pooled, found.structural))
    title = f"score {score:.3f} = pooled {pooled:.3f} + {weight:g} {TIMES} structural {structural:.3f}"
    if weight == float("inf"):
        title = f"score {structural:.3f} = structural {structural:.3f} (pooled {pooled:.3f} not counted)"
    assert text_of(figure, "title") == title
    assert number(text_of(figure, "ledger-sum")) == pytest.approx(structural, abs=5e-4)
    assert overlapping_texts(figure) == []


def test_the_share_of_the_lines_is_written(random_match: MakeMatch) -> None:
    found = random_match((2, 2), (2, 2))
    carried = sum(flow.contribution for flow in found.ledger().top(3))
    share = carried / float(found.structural[0])
    assert f"The 3 lines account for {carried:.3f}" in text_of(draw_match(found, top=3), "share")
    assert f"({100 * share:.0f} %)" in text_of(draw_match(found, top=3), "share")
    assert "(100 %)" in text_of(draw_match(found, top=20), "share")
    assert text_of(draw_match(found, top=0), "share") == "No lines drawn."


def test_weights_plan_and_cosine_are_shown_as_they_are(random_match: MakeMatch) -> None:
    found = random_match((2, 3), (4, 4))
    figure = draw_match(found)
    for role, weights, grid in (("query", found.weight_q, (2, 3)), ("gallery", found.weight_g, (4, 4))):
        shown = np.asarray(by_gid(figure, f"weights-{role}").get_array())
        assert shown.shape == grid
        assert shown.ravel() == pytest.approx(weights[0].double().numpy() * weights.shape[1])  # 1 is uniform
    for what in ("plan", "cosine"):
        assert np.asarray(by_gid(figure, f"image-{what}").get_array()) == pytest.approx(
            getattr(found, what)[0].double().numpy()
        )
        axes = by_gid(figure, what)
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("gallery region", "query region")
    labels = [tick.get_text() for tick in by_gid(figure, "scale-weights").get_xticklabels()]
    assert labels == ["0", "1/R (uniform)", "2/R or more"]


def test_scales_of_weights_and_cosines_are_the_same_in_every_figure(random_match: MakeMatch) -> None:
    for found in (random_match((4, 4), (4, 4)), random_match((7, 7), (4, 4), weights="uniform")):
        figure = draw_match(found)
        heat, cosine = by_gid(figure, "weights-query"), by_gid(figure, "image-cosine")
        assert (heat.norm.vmin, heat.norm.vmax) == (0, 2)
        assert (cosine.norm.vmin, cosine.norm.vmax) == (0, 1)
    signed = by_gid(draw_match(random_match((3, 3), (3, 3), signed=True)), "image-cosine")
    assert (signed.norm.vmin, signed.norm.vmax) == (-1, 1)


def test_the_overlay_can_be_switched_off(random_match: MakeMatch) -> None:
    figure = draw_match(random_match((4, 4), (4, 4)), images=drawn_pair(64), overlay=False)
    assert figure.findobj(lambda artist: str(artist.get_gid()).startswith("weights-")) == []
    assert figure.findobj(lambda artist: artist.get_gid() == "scale-weights") == []


def test_an_exact_plan_shows_reduced_costs_and_potentials(
    random_match: MakeMatch, overlapping_texts: Overlapping
) -> None:
    found = random_match((3, 3), (4, 4), epsilon=0)
    figure = draw_match(found)
    assert found.potential_q is not None
    assert found.potential_g is not None
    cost = 1 - found.cosine[0].double()
    reduced = cost - found.potential_q[0].unsqueeze(1) - found.potential_g[0].unsqueeze(0)
    shown = np.asarray(by_gid(figure, "image-reduced").get_array())
    assert shown == pytest.approx(reduced.numpy(), abs=1e-6)
    assert shown[found.plan[0].numpy() > 1e-6].max() < 1e-6  # what is matched has none
    strip = np.asarray(by_gid(figure, "potential-query").get_array()).ravel()
    assert np.diff(strip) == pytest.approx(np.diff(found.potential_q[0].numpy()))
    assert overlapping_texts(figure) == []
    with pytest.raises(ValueError, match="panels: need an exact plan for 'reduced'"):
        draw_match(random_match((3, 3), (4, 4)), panels=["reduced"])


def test_unmatched_mass_is_written_and_its_regions_are_hatched(
    random_match: MakeMatch, overlapping_texts: Overlapping
) -> None:
    found = random_match((3, 3), (4, 4), epsilon=0, share=0.6)
    assert found.unmatched_q is not None
    figure = draw_match(found, images=drawn_pair(64))
    assert "Unmatched mass: 40 % of the query, 40 % of the gallery image" in text_of(figure, "unmatched")
    hatched = {str(patch.get_gid()) for patch in by_gid(figure, "panel-query").patches if patch.get_hatch()}
    mostly = (found.unmatched_q[0] > 0.5 * found.weight_q[0]).nonzero().flatten().tolist()
    assert hatched == {f"unmatched-{region}" for region in mostly}
    assert overlapping_texts(figure) == []


def test_chosen_panels_are_drawn_and_no_others(random_match: MakeMatch) -> None:
    found = random_match((4, 4), (4, 4))
    whole = draw_match(found)
    part = draw_match(found, panels=["images", "plan"])
    assert part.get_figheight() < whole.get_figheight()
    for gid, expected in (
        ("panel-query", 1),
        ("image-plan", 1),
        ("image-cosine", 0),
        ("ledger-sum", 0),
        ("title-0", 0),
    ):
        assert len(part.findobj(lambda artist, gid=gid: artist.get_gid() == gid)) == expected
    with pytest.raises(ValueError, match=r"panels: need some of headline, .*, got ledgers"):
        draw_match(found, panels=["ledgers"])


def test_chosen_flows_are_drawn_instead_of_the_largest(random_match: MakeMatch) -> None:
    found = random_match((3, 3), (3, 3))
    figure = draw_match(found, flows=[(0, 8), (4, 4), (0, 8)])
    shown = {(text_of(figure, f"ledger-{rank}-0"), text_of(figure, f"ledger-{rank}-1")) for rank in range(2)}
    assert shown == {("A1", "C3"), ("B2", "B2")}
    assert figure.findobj(lambda artist: artist.get_gid() == "ledger-2-0") == []


@pytest.mark.parametrize("width", [2.5, 3.3, 6.9, 14.0])
def test_every_width_is_legible(width: float, random_match: MakeMatch, overlapping_texts: Overlapping) -> None:
    found = random_match((4, 4), (7, 7), epsilon=0)
    figure = draw_match(found, images=drawn_pair(64), names=(LONG, LONG), width=width, note="A note. " * 20)
    assert figure.get_figwidth() == pytest.approx(width)
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 6
    assert overlapping_texts(figure) == []


def test_colours_can_be_chosen(random_match: MakeMatch) -> None:
    figure = draw_match(random_match((3, 3), (3, 3)), top=3, colours=["#112233", "#445566"])
    inks = [by_gid(figure, f"flow-{rank}").get_edgecolor() for rank in range(3)]
    assert inks == [to_rgba(colour) for colour in ("#112233", "#445566", "#112233")]


def test_tick_labels_of_the_matrices_name_the_regions_that_they_stand_at(random_match: MakeMatch) -> None:
    axes = by_gid(draw_match(random_match((2, 3), (14, 14))), "plan")
    ticks = dict(zip(axes.get_yticks(), [t.get_text() for t in axes.get_yticklabels()], strict=True))
    assert ticks == {0: "A1", 3: "A2"}
    ticks = dict(zip(axes.get_xticks(), [t.get_text() for t in axes.get_xticklabels()], strict=True))
    assert ticks[0] == "A1"
    assert ticks[28] == "A3"


LONG = "/data/" + "very_long_folder_name/" * 8 + "an image with $ and 中 in its name.jpg"


@pytest.mark.parametrize(
    ("q", "g", "top"),
    [((1, 1), (1, 1), 8), ((2, 3), (4, 4), 8), ((4, 4), (4, 4), 20), ((7, 7), (7, 7), 12), ((14, 14), (14, 14), 20),
     ((1, 12), (12, 1), 8), (17, 30, 8), ((30, 2), 5, 20)],
)  # fmt: skip
@pytest.mark.parametrize("drawn", [True, False])
def test_no_text_covers_another_or_leaves_the_figure(
    q: Any, g: Any, top: int, drawn: bool, random_match: Any, overlapping_texts: Overlapping
) -> None:
    images = drawn_pair(64) if drawn else None
    figure = draw_match(random_match(q, g), images=images, names=(LONG, LONG), top=top)
    assert overlapping_texts(figure) == []


@pytest.mark.parametrize("size", [(600, 60), (60, 600)])
def test_strips_are_drawn_in_proportion(
    size: tuple[int, int], random_match: MakeMatch, overlapping_texts: Overlapping
) -> None:
    images = (drawn_pair(64)[0].resize(size), drawn_pair(64)[1])
    figure = draw_match(random_match((4, 4), (4, 4)), images=images, names=("a", "b"))
    box = by_gid(figure, "panel-query").get_window_extent()
    assert box.width / box.height == pytest.approx(size[0] / size[1], rel=0.01)
    assert overlapping_texts(figure) == []


def test_letters_are_large_enough_at_1200_pixels(random_match: MakeMatch) -> None:
    figure = draw_match(random_match((14, 14), (4, 4)), names=("a", "b"))
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 8


def test_the_saved_image_is_1200_pixels_wide(random_match: MakeMatch, tmp_path: Path) -> None:
    path = save_figure(draw_match(random_match((4, 4), (4, 4)), images=drawn_pair(64)), tmp_path / "why.png")
    with Image.open(path) as saved:
        assert saved.width == 1200
        assert 800 < saved.height < 1300
        colours = {tuple(pixel) for pixel in np.asarray(saved.convert("RGB")).reshape(-1, 3)}
    for rank in range(8):
        assert tuple(int(colour_of(rank)[at : at + 2], 16) for at in (1, 3, 5)) in colours


def test_a_plan_that_did_not_converge_is_flagged(random_match: MakeMatch, overlapping_texts: Overlapping) -> None:
    found = random_match((4, 4), (4, 4), max_iterations=1, tolerance=1e-9)
    figure = draw_match(found, names=(LONG, LONG))
    assert f"marginal error {float(found.marginal_error[0]):.1e} after 1 iterations" in text_of(figure, "warning")
    assert overlapping_texts(figure) == []
    done = draw_match(random_match((4, 4), (4, 4)))
    assert done.findobj(lambda artist: artist.get_gid() == "warning-0") == []


def test_regions_without_a_grid_are_labelled_so(random_match: MakeMatch) -> None:
    figure = draw_match(random_match(5, (2, 2)), images=drawn_pair(64))
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert texts.count("no known grid: regions in their order") == 1
    assert {"#0", "#4"} <= set(texts)
    shown = by_gid(figure, "weights-query").get_array()
    assert shown.shape == (2, 3)
    assert shown.mask.ravel().tolist() == [False] * 5 + [True]


def test_opposite_images_have_no_lines_and_a_negative_sum(overlapping_texts: Overlapping) -> None:
    dense = torch.rand(1, 4, 8, generator=torch.Generator().manual_seed(0))
    positive = Regions.normalized(dense, dense.mean(1))
    figure = draw_match(match(positive, Regions(-positive.dense, -positive.pooled)))
    assert text_of(figure, "share") == "No pair of regions adds to the score."
    assert number(text_of(figure, "ledger-sum")) < 0
    assert overlapping_texts(figure) == []


def test_wrong_arguments_are_named(random_match: MakeMatch) -> None:
    found = random_match((2, 2), (2, 2), pairs=2)
    with pytest.raises(IndexError, match=r"pair: need -2\.\.1, got 2"):
        draw_match(found, pair=2)
    with pytest.raises(ValueError, match="top: need 0 to 20 lines, got 21"):
        draw_match(found, top=21)
    with pytest.raises(ValueError, match="names: need two"):
        draw_match(found, names=("a",))  # type: ignore[arg-type]


def test_drawing_uses_neither_pyplot_nor_global_state() -> None:
    code = (
        "import sys, torch, matplotlib\n"
        "before = matplotlib.rcParams.copy()  # copying does not look for a display\n"
        "from diml.explain import draw_match\n"
        "from diml.matching import Regions, match\n"
        "r = Regions.normalized(torch.rand(1, 4, 8), torch.rand(1, 8))\n"
        "draw_match(match(r, r)).canvas.draw()\n"
        "assert matplotlib.rcParams.copy() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_scale_is_that_of_the_summary(random_match: MakeMatch) -> None:
    calibrator = made_up_calibrator(SimpleNamespace(fingerprint=str, matcher=Matcher()), kind="product")  # type: ignore[arg-type]
    found = Explanation.of(random_match((3, 3), (3, 3)), calibrator=calibrator)
    labels = [mark.label for mark in found.summary().scale.marks]
    figure = found.draw(view="regions", panels=["scale"])
    shown = [text.get_text() for text in figure.findobj(Text) if str(text.get_gid()).startswith("scale-name-")]
    assert sorted(shown) == sorted(labels)
