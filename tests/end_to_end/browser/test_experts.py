"""The view for experts of a pair: it shows the numbers of its JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diml.explain import Explanation, explanation_page
from diml.explain.description import describe_match
from diml.explain.formatting import TIMES
from diml.explain.shown_plan import shown_plan
from diml.files import write_text
from diml.matching import Matcher, Regions, match
from drawn_pair import drawn_pair

OpenPage = Callable[..., Any]
NAMES = "ABCD"
EXPERTS = "#experts"


@pytest.fixture(scope="module")
def found() -> Explanation:
    generator = torch.Generator().manual_seed(3)
    sides = [torch.randn(1, count, 24, generator=generator).relu() for count in (12, 16)]
    query, gallery = (
        Regions.normalized(side, side.mean(dim=1), grid) for side, grid in zip(sides, ((3, 4), (4, 4)), strict=True)
    )
    return Explanation.of(match(query, gallery), drawn_pair(448), ("shop/a.png", "shop/b.png"))


@pytest.fixture(scope="module")
def path(found: Explanation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(
        tmp_path_factory.mktemp("page") / "why.html", explanation_page(found, settings={"model": "mine"}, plan="scored")
    )


@pytest.fixture(scope="module")
def told(found: Explanation) -> dict[str, Any]:
    return json.loads(json.dumps(describe_match(found, top=192, names=found.names)))


def cell(side: str, region: int) -> str:
    return f".cell[data-side={side}][data-region='{region}']"


def numbers(text: str) -> list[float]:
    return [float(word.replace("\N{MINUS SIGN}", "-")) for word in text.replace("\u202f%", "").split()]


def lit(page: Any, side: str) -> dict[int, list[float]]:
    """Region -> the numbers written in it, for the highlighted regions of a side."""
    found = page.locator(f".cell.lit[data-side={side}]").all()
    return {
        int(one.get_attribute("data-region")): numbers(" ".join(one.locator("span").all_inner_texts())) for one in found
    }


def test_the_score_is_broken_down(open_page: OpenPage, path: Path, told: dict[str, Any]) -> None:
    page = open_page(path, view=EXPERTS)
    parts = [f"{name} {told[name]:.3f}" for name in ("score", "pooled", "structural")]
    assert page.locator(".score .sum").inner_text() == f"{parts[0]} = {parts[1]} + {parts[2]}"
    assert page.title() == "shop/a.png and shop/b.png"
    assert page.locator(".plan-kind").inner_text() == "plan: entropic, epsilon 0.05"
    for role in ("query", "gallery"):
        assert f"The {role} image, shop/" in page.locator(f".{role} img").get_attribute("alt")
        assert page.locator(f".{role} img").evaluate("image => image.complete && image.naturalWidth") == 448


@pytest.mark.parametrize("weight", [0.0, 4.0, float("inf")])
def test_the_weight_of_the_structural_score_is_shown(
    open_page: OpenPage, found: Explanation, tmp_path: Path, weight: float
) -> None:
    weighted = dataclasses.replace(found, matcher=Matcher(structural_weight=weight))
    page = open_page(write_text(tmp_path / "why.html", explanation_page(weighted, plan="scored")), view=EXPERTS)
    ledger = weighted.ledger()
    pooled, structural = f"pooled {ledger.pooled:.3f}", f"structural {ledger.structural:.3f}"
    sum_ = f"{pooled} + {weight:g} {TIMES} {structural}"
    if weight == float("inf"):
        sum_ = f"{structural} ({pooled} not counted)"
    assert page.locator(".score .sum").inner_text() == f"score {ledger.score:.3f} = {sum_}"
    page.locator(".about summary").click()
    about = page.locator(".about").inner_text()
    assert ("4 times a sum" in about) == (weight == 4)
    assert f"structural weight {'inf' if weight == float('inf') else f'{weight:g}'}" in about


@pytest.mark.parametrize(("side", "region"), [("q", 5), ("g", 11)])
def test_pointing_at_a_region_highlights_its_counterparts(
    open_page: OpenPage, path: Path, told: dict[str, Any], side: str, region: int
) -> None:
    page = open_page(path, view=EXPERTS)
    page.hover(cell(side, region))
    plan = np.asarray(told["plan"])
    masses = plan[region] if side == "q" else plan[:, region]
    shown = lit(page, "g" if side == "q" else "q")
    assert set(shown) == {int(at) for at in np.argsort(-masses)[:9] if masses[at] > 0.05 * masses.max()}
    for at, (share, mass) in shown.items():
        assert mass == pytest.approx(masses[at], abs=5.1e-5)
        assert share == pytest.approx(100 * masses[at] / told[f"weight_{side}"][region], abs=0.51)
    rows = page.locator(".details tbody tr").all()
    assert [int(row.get_attribute("data-region")) for row in rows] == [int(at) for at in np.argsort(-masses)[:6]]
    name = f"{NAMES[region % 4]}{region // 4 + 1}"
    assert page.locator(".details h3").inner_text() == f"{name} of the {'query' if side == 'q' else 'gallery'} image"
    assert f"contributes {told[f'total_{side}'][region]:.4f}" in page.locator(".details").inner_text()
    # the lines are the largest flows of this region, each from cell to cell
    drawn = {(int(f.get_attribute("data-q")), int(f.get_attribute("data-g"))) for f in page.locator(".flow").all()}
    flows = [flow for flow in told["top"] if flow[f"region_{side}"] == region and flow["contribution"] > 0]
    assert drawn == {(flow["region_q"], flow["region_g"]) for flow in flows[:6]}
    page.mouse.move(5, 5)
    assert lit(page, "q") == lit(page, "g") == {}


def test_lines_end_in_their_regions(open_page: OpenPage, path: Path) -> None:
    for size in ("desktop", "phone"):
        page = open_page(path, size, view=EXPERTS)
        for flow in page.locator(".flow").all():
            for side, end in zip("qg", flow.locator("circle").all(), strict=True):
                dot = end.bounding_box()
                box = page.locator(cell(side, int(flow.get_attribute(f"data-{side}")))).bounding_box()
                assert box["x"] < dot["x"] + dot["width"] / 2 < box["x"] + box["width"]
                assert box["y"] < dot["y"] + dot["height"] / 2 < box["y"] + box["height"]


def test_a_click_pins_and_escape_unpins(open_page: OpenPage, path: Path, told: dict[str, Any]) -> None:
    page = open_page(path, view=EXPERTS)
    page.click(cell("q", 2))
    pinned = lit(page, "g")
    assert pinned
    assert page.locator(cell("q", 2)).get_attribute("aria-selected") == "true"
    page.hover(cell("q", 7))
    page.mouse.move(5, 5)
    assert lit(page, "g") == pinned
    assert page.locator(".ledger tbody tr").count() == 16
    assert "Only region C1" in page.locator(".ledger caption").inner_text()
    assert numbers(page.locator(".ledger tfoot td").last.inner_text()) == pytest.approx([told["total_q"][2]], abs=6e-4)
    page.keyboard.press("Escape")
    assert lit(page, "g") == {}
    assert page.locator("[aria-selected=true].cell").count() == 0
    assert "All 192 pairs" in page.locator(".ledger caption").inner_text()
    page.click(cell("q", 2))
    page.click(cell("q", 2))  # a second click unpins it as well
    page.mouse.move(5, 5)
    assert page.locator(".details .pin").count() == 0


def test_the_slider_chooses_how_many_flows_are_drawn(open_page: OpenPage, path: Path, told: dict[str, Any]) -> None:
    page = open_page(path, view=EXPERTS)
    for count in (0, 1, 12):
        page.locator("input[type=range]").fill(str(count))
        assert page.locator(".flow").count() == count
        carried = sum(flow["contribution"] for flow in told["top"][:count])
        said = page.locator("output").inner_text()
        assert said.startswith(f"{count} line{'' if count == 1 else 's'}: {carried:.3f}"[:14])
        ranks = sorted(int(flow.get_attribute("data-rank")) for flow in page.locator(".flow").all())
        assert ranks == list(range(count))
    page.focus("input[type=range]")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".flow").count() == 11


def test_the_ledger_is_sorted_by_any_column(open_page: OpenPage, path: Path, told: dict[str, Any]) -> None:
    page = open_page(path, view=EXPERTS)

    def column(number: int) -> list[float]:
        return [
            numbers(text)[0] for text in page.locator(f".ledger tbody td:nth-child({number})").all_inner_texts() if text
        ]

    assert column(6) == pytest.approx([flow["contribution"] for flow in told["top"][:20]], abs=5.1e-4)
    page.locator(".ledger [data-key=cosine] button").click()
    largest = sorted((flow["cosine"] for flow in told["top"]), reverse=True)
    assert column(5) == pytest.approx(largest[:20], abs=5.1e-4)
    assert page.locator("th[data-key=cosine]").get_attribute("aria-sort") == "descending"
    page.locator(".ledger [data-key=cosine] button").click()
    assert column(5) == pytest.approx(largest[::-1][:20], abs=5.1e-4)
    page.locator(".ledger [data-key=q] button").click()
    assert page.locator(".ledger tbody td:nth-child(2)").all_inner_texts() == ["A1"] * 16 + ["B1"] * 4
    page.get_by_role("button", name="Show more").click()
    assert page.locator(".ledger tbody tr").count() == 120
    page.get_by_role("button", name="Show more").click()
    assert page.locator(".ledger tbody tr").count() == 192
    assert page.get_by_role("button", name="Show more").count() == 0
    assert sum(column(6)) == pytest.approx(told["structural"], abs=192 * 5e-4)
    assert numbers(page.locator(".ledger tfoot td").last.inner_text()) == pytest.approx([told["structural"]], abs=6e-4)


def test_a_row_of_the_ledger_points_at_its_two_regions(open_page: OpenPage, path: Path, told: dict[str, Any]) -> None:
    page = open_page(path, view=EXPERTS)
    page.locator(".ledger tbody tr").nth(3).hover()
    flow = told["top"][3]
    assert page.locator(".cell.pointed").count() == 2
    for side in "qg":
        assert "pointed" in page.locator(cell(side, flow[f"region_{side}"])).get_attribute("class")
    assert page.locator(".flow").count() == 1
    assert page.locator(".details").inner_text().startswith(f"{flow['name_q']} → {flow['name_g']}: mass")


def test_tabs_show_the_plan_and_the_cosines(open_page: OpenPage, path: Path, told: dict[str, Any]) -> None:
    page = open_page(path, view=EXPERTS)
    page.get_by_role("tab", name="Plan").click()
    assert page.get_by_role("tabpanel", name="Plan").is_visible()
    assert not page.get_by_role("tabpanel", name="Weights").is_visible()
    page.locator("canvas").first.scroll_into_view_if_needed()
    box = page.locator("canvas").first.bounding_box()
    step = (box["width"] - 44) / 16
    page.mouse.move(box["x"] + 42 + 10.5 * step, box["y"] + 34 + 6.5 * step)  # row C2, column C3
    mass, cosine = told["plan"][6][10], told["cosine"][6][10]
    expected = (
        f"C2 → C3: mass {mass:.5f} \N{MULTIPLICATION SIGN} cosine {cosine:.3f} = contribution {mass * cosine:.5f}"
    )
    assert page.get_by_role("tabpanel", name="Plan").locator(".readout").inner_text() == expected
    page.keyboard.press("Tab")
    page.get_by_role("tab", name="Plan").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Cosine").get_attribute("aria-selected") == "true"
    page.hover(cell("q", 6))
    shown = lit(page, "g")
    assert shown
    for at, (value,) in shown.items():
        assert value == pytest.approx(told["cosine"][6][at], abs=5.1e-3)


def test_the_keyboard_does_it_all(open_page: OpenPage, path: Path, told: dict[str, Any]) -> None:
    page = open_page(path, view=EXPERTS)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowLeft", "ArrowLeft"):  # stops at the edges
        page.keyboard.press(key)
    focused = page.evaluate("[document.activeElement.dataset.side, document.activeElement.dataset.region]")
    assert focused == ["q", "8"]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert page.locator(".details h3").inner_text() == "A3 of the query image"
    page.keyboard.press("Enter")
    assert page.locator(".details .pin").is_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.side") == "g"
    assert page.locator(".details h3").inner_text().startswith("A3 of the query image")
    page.keyboard.press("Escape")
    page.keyboard.press("End")
    assert page.locator(".details h3").inner_text() == "D4 of the gallery image"
    page.keyboard.press(" ")
    assert page.locator(cell("g", 15)).get_attribute("aria-selected") == "true"


def test_a_phone_shows_all_of_it_without_scrolling_sideways(open_page: OpenPage, path: Path) -> None:
    page = open_page(path, "phone", view=EXPERTS)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    query, gallery = (page.locator(f".{role} .frame").bounding_box() for role in ("query", "gallery"))
    assert gallery["y"] > query["y"] + query["height"]
    assert query["width"] > 300
    page.tap(cell("g", 5))
    assert lit(page, "q")
    assert page.locator(".details .pin").is_visible()
    for tab in ("Plan", "Cosine"):
        page.get_by_role("tab", name=tab).tap()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.keyboard.press("Escape")
    assert page.evaluate("document.querySelector('.ledger-box').scrollWidth") <= page.evaluate(
        "document.querySelector('.ledger-box').clientWidth"
    )


def test_dark_and_light_follow_the_system(open_page: OpenPage, path: Path, contrast: Callable[..., float]) -> None:
    for scheme in ("light", "dark"):
        page = open_page(path, scheme=scheme, view=EXPERTS)
        for selector in (".score .pooled", ".score .structural", "output", ".ledger caption", ".details p", ".note"):
            assert contrast(page, selector) > 4.5, (scheme, selector)


@pytest.fixture(scope="module")
def divided() -> Explanation:
    """A pair whose whole score is divided among its regions, with uneven weights."""
    generator = torch.Generator().manual_seed(5)
    sides = [torch.randn(1, count, 24, generator=generator).relu() for count in (12, 16)]
    sides[0][:, :3] *= 0.2
    query, gallery = (
        Regions.normalized(side, side.mean(dim=1), grid, shares=side / side.shape[1])
        for side, grid in zip(sides, ((3, 4), (4, 4)), strict=True)
    )
    found = match(query, gallery, structural_weight=2.0)
    return Explanation.of(found, drawn_pair(224), ("shop/a.png", "shop/b.png"))


@pytest.fixture(scope="module")
def exact_path(divided: Explanation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("exact") / "why.html", explanation_page(divided))


@pytest.fixture(scope="module")
def exact_told(divided: Explanation) -> dict[str, Any]:
    shown = shown_plan(divided)
    return json.loads(json.dumps(describe_match(shown, top=192, names=divided.names)))


def test_the_whole_ledger_sums_to_the_score(
    open_page: OpenPage, exact_path: Path, divided: Explanation, exact_told: dict[str, Any]
) -> None:
    page = open_page(exact_path, view=EXPERTS)
    assert exact_told["note"] in page.locator(".score").inner_text()
    ledger = shown_plan(divided).ledger()
    whole = ledger.whole
    for flow, row in zip(exact_told["top"], page.locator(".ledger tbody tr").all()[:5], strict=False):
        texts = row.locator("td").all_inner_texts()
        assert numbers(texts[7])[0] == pytest.approx(float(whole[flow["region_q"], flow["region_g"]]), abs=5.1e-4)
        assert numbers(texts[6])[0] == pytest.approx(
            float(ledger.pooled_parts[flow["region_q"], flow["region_g"]]), abs=5.1e-4
        )
    foot = page.locator(".ledger tfoot tr").last
    assert foot.locator("th").first.inner_text() == "structural, pooled, score"
    sums = [numbers(text)[0] for text in foot.locator("td").all_inner_texts()]
    assert sums == pytest.approx([exact_told["structural"], exact_told["pooled"], exact_told["score"]], abs=6e-4)
    page.locator(".ledger [data-key=whole] button").click()
    largest = page.locator(".ledger tbody tr").first
    best = int(whole.argmax())
    assert [int(largest.get_attribute(f"data-{side}")) for side in "qg"] == list(divmod(best, 16))


def test_regions_are_listed_with_what_they_account_for(
    open_page: OpenPage, exact_path: Path, exact_told: dict[str, Any]
) -> None:
    page = open_page(exact_path, view=EXPERTS)
    for side, name in (("q", "Query"), ("g", "Gallery")):
        page.locator(".totals").get_by_role("button", name=name).click()
        rows = page.locator(".totals tbody tr").all()
        shown = {int(row.get_attribute("data-region")): row.locator("td").all_inner_texts() for row in rows}
        totals = exact_told["whole"][f"total_{side}"]
        assert list(shown) == sorted(range(len(totals)), key=lambda region: -totals[region])
        for region, (weight, structural, pooled, whole) in shown.items():
            assert numbers(weight)[0] == pytest.approx(100 * exact_told[f"weight_{side}"][region], abs=0.51)
            assert numbers(structural)[0] == pytest.approx(2 * exact_told[f"total_{side}"][region], abs=5.1e-5)
            assert numbers(pooled)[0] == pytest.approx(exact_told["pooled_parts"][f"total_{side}"][region], abs=5.1e-5)
            assert numbers(whole)[0] == pytest.approx(totals[region], abs=5.1e-5)
        last = page.locator(".totals tfoot tr").last.locator("td").all_inner_texts()
        assert numbers(last[-1])[0] == pytest.approx(exact_told["score"], abs=5.1e-5)
    page.locator(".totals tbody tr").first.click()
    assert page.locator(".details .pin").is_visible()


def test_reduced_costs_say_what_is_missing(open_page: OpenPage, exact_path: Path, exact_told: dict[str, Any]) -> None:
    page = open_page(exact_path, view=EXPERTS)
    page.get_by_role("tab", name="Reduced costs").click()
    page.hover(cell("q", 7))
    potentials, cosine = exact_told["potentials"], np.asarray(exact_told["cosine"])
    reduced = 1 - cosine - np.asarray(potentials["query"])[:, None] - np.asarray(potentials["gallery"])
    assert reduced.min() > -1e-6
    shown = lit(page, "g")
    assert len(shown) == 9
    for at, (value,) in shown.items():
        assert value == pytest.approx(max(0, reduced[7, at]), abs=5.1e-3)
    assert page.locator(".details thead th").all_inner_texts()[4] == "reduced cost"
    moved = [at for at in range(16) if exact_told["plan"][7][at] > 1e-9]
    assert max(reduced[7, moved]) == pytest.approx(0, abs=1e-5)


def test_weights_are_shaded_on_a_scale_that_no_image_changes(
    open_page: OpenPage, exact_path: Path, exact_told: dict[str, Any]
) -> None:
    page = open_page(exact_path, view=EXPERTS)
    colour = "one => one.style.backgroundColor"
    for side in "qg":
        weights = exact_told[f"weight_{side}"]
        for region in range(0, len(weights), 3):
            times = min(2.0, weights[region] * len(weights)) - 1
            shade = page.locator(cell(side, region)).evaluate(colour)
            red = 10 if times < 0 else 255
            assert shade.startswith(f"rgba({red}, ")
            assert float(shade.split(",")[-1][:-1]) == pytest.approx(0.72 * abs(times), abs=6e-3)  # browsers round it


def test_unmatched_mass_of_a_region_is_told(open_page: OpenPage, divided: Explanation, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    sides = [torch.randn(1, 16, 24, generator=generator).relu() for _ in range(2)]
    found = match(*(Regions.normalized(side, side.mean(dim=1)) for side in sides), share=0.6)
    page = open_page(
        write_text(tmp_path / "why.html", explanation_page(Explanation.of(found, drawn_pair(224)))), view=EXPERTS
    )
    told = describe_match(shown_plan(Explanation.of(found)))
    region = int(np.argmax(told["unmatched"]["query"]))
    page.hover(cell("q", region))
    share = 100 * told["unmatched"]["query"][region] / told["weight_q"][region]
    assert f"of which {share:.0f}" in page.locator(".details").inner_text()
