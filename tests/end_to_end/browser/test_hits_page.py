"""The interactive page of a query's hits: selecting one, and why one ranks above another."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diml.explain import Explanation, RankedHits, explanation_page, rank_hits
from diml.explain.formatting import TIMES
from diml.explain.html import MODULES, page_text
from diml.explain.shown_plan import shown_plan
from diml.files import write_text
from diml.matching import Matcher, Regions, match
from drawn_pair import drawn_pair
from end_to_end.browser.conftest import text_faults

OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def hits() -> RankedHits:
    generator = torch.Generator().manual_seed(5)
    query, gallery = (torch.randn(count, 16, 24, generator=generator).relu() for count in (1, 4))
    gallery[1:3] += 0.6 * query
    found = match(*(Regions.normalized(side, side.mean(dim=1)) for side in (query, gallery)))
    a, b = drawn_pair(224)
    images = (b, b.rotate(90), b.rotate(180), b.rotate(270))
    return rank_hits(
        [Explanation.of(found, (a, image), ("shop/q.png", f"shop/{n}.png"), n) for n, image in enumerate(images)]
    )


@pytest.fixture(scope="module")
def path(hits: RankedHits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("page") / "hits.html", explanation_page(hits))


def number(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-"))


def test_hits_are_in_order_and_each_can_be_selected(open_page: OpenPage, path: Path, hits: RankedHits) -> None:
    page = open_page(path, view="#experts")
    buttons = page.locator(".hit")
    for place, found in enumerate(hits.matches):
        text = buttons.nth(place).inner_text()
        assert f"hit {place + 1}" in text
        assert f"score {found.ledger().score:.3f}" in text
        assert ("= place kept" if hits.moved(place) == 0 else f"from place {hits.pooled_rank[place]}") in text
    for place in (2, 0, 3):
        buttons.nth(place).click()
        assert [b.get_attribute("aria-pressed") for b in buttons.all()] == [str(n == place).lower() for n in range(4)]
        assert page.locator("h2").first.inner_text() == f"Hit {place + 1}: {hits.matches[place].names[1]}"
        assert f"score {hits.matches[place].ledger().score:.3f}" in page.locator(".score .sum").inner_text()
    assert page.locator(".stage").count() == 1


@pytest.mark.parametrize(("above", "below"), [(0, 1), (1, 3), (3, 0)])
def test_a_contrast_is_the_ledger_of_the_difference(
    open_page: OpenPage, path: Path, hits: RankedHits, above: int, below: int
) -> None:
    page = open_page(path, view="#experts")
    page.locator("[data-which=above]").select_option(str(above))
    page.locator("[data-which=below]").select_option(str(below))
    contrast = hits.contrast(above, below)
    place = "above" if contrast.score > 0 else "below"
    sentence = page.locator(".contrast .sum").inner_text()
    assert sentence.startswith(f"Hit {above + 1} is {abs(contrast.score):.4f} {place} hit {below + 1}: pooled ")
    rows = {
        int(row.get_attribute("data-region")): [number(text) for text in row.locator("td").all_inner_texts()]
        for row in page.locator(".contrast tbody tr").all()
    }
    assert list(rows) == contrast.top(12)
    for region, (one, other, difference) in rows.items():
        assert one == pytest.approx(float(hits.matches[above].ledger().total_q[region]), abs=5.1e-5)
        assert other == pytest.approx(float(hits.matches[below].ledger().total_q[region]), abs=5.1e-5)
        assert difference == pytest.approx(float(contrast.regions[region]), abs=5.1e-5)
    rest, structural, pooled, score = (
        number(row.locator("td").last.inner_text()) for row in page.locator(".contrast tfoot tr").all()
    )
    assert structural == pytest.approx(contrast.structural, abs=5.1e-5)
    assert pooled == pytest.approx(contrast.pooled, abs=5.1e-5)
    assert score == pytest.approx(contrast.score, abs=5.1e-5)
    assert rest + sum(values[2] for values in rows.values()) == pytest.approx(structural, abs=14 * 5e-5)
    for region in contrast.top(6):
        shown = page.locator(f".contrast .cell[data-region='{region}'] .share")
        assert number(shown.inner_text()) == pytest.approx(float(contrast.regions[region]), abs=5.1e-5)


def test_a_weighted_contrast_sums_to_the_difference(open_page: OpenPage, hits: RankedHits, tmp_path: Path) -> None:
    matches = [dataclasses.replace(match, matcher=Matcher(structural_weight=4)) for match in hits.matches]
    weighted = rank_hits(matches)
    page = open_page(write_text(tmp_path / "hits.html", explanation_page(weighted)), view="#experts")
    contrast = weighted.contrast(0, 1)
    assert f"4 {TIMES} structural" in page.locator(".contrast .sum").inner_text()
    rows = page.locator(".contrast tfoot tr").all()
    values = [number(row.locator("td").last.inner_text()) for row in rows[-4:]]
    expected = [contrast.structural, 4 * contrast.structural, contrast.pooled, contrast.score]
    assert values == pytest.approx(expected, abs=5.1e-5)
    assert (
        f"by score (pooled + 4 {TIMES} structural)" in page.locator("section", has=page.locator(".moves")).inner_text()
    )
    assert f"score {weighted.matches[0].ledger().score:.3f}" in page.locator(".hit").first.inner_text()


def test_a_region_of_the_contrast_points_at_its_row(open_page: OpenPage, path: Path, hits: RankedHits) -> None:
    page = open_page(path, view="#experts")
    region = hits.contrast(0, 1).top(1)[0]
    page.hover(f".contrast .cell[data-region='{region}']")
    assert page.locator(".contrast tr.pointed").get_attribute("data-region") == str(region)
    page.hover(".contrast tbody tr:nth-child(2)")
    pointed = page.locator(".contrast .cell.pointed")
    assert pointed.get_attribute("data-region") == str(hits.contrast(0, 1).top(2)[1])


def test_the_regions_behind_the_re_ranking_are_named(open_page: OpenPage, path: Path, hits: RankedHits) -> None:
    page = open_page(path, view="#experts")
    for place, row in enumerate(page.locator(".moves tbody tr").all()):
        texts = row.locator("td").all_inner_texts()
        assert number(texts[3]) == pytest.approx(float(hits.lift[place].sum()), abs=5.1e-4)
        region = int(hits.lift[place].argmax())
        assert texts[4].startswith(f"{'ABCD'[region % 4]}{region // 4 + 1} +{float(hits.lift[place][region]):.3f}")


def test_no_listener_of_a_deselected_hit_remains(open_page: OpenPage, path: Path) -> None:
    count = """
        window.listening = 0;
        const [add, remove] = [document.addEventListener, document.removeEventListener];
        document.addEventListener = function (...words) { window.listening += 1; return add.apply(this, words); };
        document.removeEventListener = function (...words) { window.listening -= 1; return remove.apply(this, words); };
    """
    for view in ("", "#experts"):
        page = open_page(path, first=count, view=view)
        before = page.evaluate("window.listening")
        assert before <= 3
        for place in (1, 2, 0):
            page.locator(".hit").nth(place).click()
        assert page.evaluate("window.listening") == before


def test_escape_after_a_change_of_hits_unpins_once(open_page: OpenPage, path: Path) -> None:
    page = open_page(path, view="#experts")
    page.locator(".hit").nth(1).click()
    page.click(".stage .cell[data-side=q][data-region='3']")
    assert page.locator(".details .pin").is_visible()
    page.keyboard.press("Escape")
    assert page.locator(".details .pin").count() == 0


def test_the_view_for_everybody_lists_parts_and_says_why_one_is_above_another(
    open_page: OpenPage, path: Path, hits: RankedHits
) -> None:
    page = open_page(path, "1400")
    assert text_faults(page) == []
    assert page.locator(".moves, .contrast table").first.is_visible() is False
    for place, button in enumerate(page.locator(".hit").all()):
        parts = shown_plan(hits.matches[place]).ledger().parts().rows
        shares = [
            text.replace("\u202f%", "") for text in button.locator(".mini-part > span:last-child").all_inner_texts()
        ]
        assert [float(share) for share in shares] == pytest.approx([100 * part.share for part in parts[:2]], abs=0.51)
        assert button.locator(".thumb").count() == 4
    page.locator(".hit").nth(2).click()
    assert page.locator(".part-images").count() == 1
    contrast = hits.contrast(0, 2)
    words = page.locator(".contrast .plain").inner_text()
    assert words.startswith(f"Hit 1 is more similar than hit 3 by {contrast.score:.2f} on the common scale.")
    assert f"as a whole adds +{contrast.pooled:.2f}" in words
    assert page.locator(".contrast .side").count() == 3
    assert not page.locator(".contrast .cell .share").first.is_visible()


def test_a_divided_contrast_sums_to_the_difference_of_the_scores(open_page: OpenPage, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(7)
    query, gallery = (torch.randn(count, 16, 24, generator=generator).relu() for count in (1, 3))
    sides = (Regions.normalized(side, side.mean(dim=1), shares=side / 16) for side in (query, gallery))
    found = match(*sides, structural_weight=3.0)
    names = [("shop/q.png", f"shop/{n}.png") for n in range(3)]
    divided = rank_hits([Explanation.of(found, drawn_pair(224), names[n], n) for n in range(3)])
    page = open_page(write_text(tmp_path / "hits.html", explanation_page(divided)), view="#experts")
    contrast = divided.contrast(0, 1)
    assert "Whole score" in page.locator(".contrast caption").inner_text()
    rows = {
        int(row.get_attribute("data-region")): [number(text) for text in row.locator("td").all_inner_texts()]
        for row in page.locator(".contrast tbody tr").all()
    }
    assert list(rows) == contrast.top(12)
    for region, (one, other, difference) in rows.items():
        assert one == pytest.approx(float(divided.matches[0].ledger().whole[region].sum()), abs=5.1e-5)
        assert other == pytest.approx(float(divided.matches[1].ledger().whole[region].sum()), abs=5.1e-5)
        assert difference == pytest.approx(float(contrast.whole[region]), abs=5.1e-5)
    rest, score = (number(row.locator("td").last.inner_text()) for row in page.locator(".contrast tfoot tr").all())
    assert score == pytest.approx(contrast.score, abs=5.1e-5)
    assert rest + sum(values[2] for values in rows.values()) == pytest.approx(score, abs=14 * 5e-5)
    assert "as a whole adds" not in page.locator(".contrast .plain").inner_text()


def test_hits_show_how_likely_they_are(open_page: OpenPage, path: Path, tmp_path: Path) -> None:
    data = json.loads(re.findall(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"))[0])
    for pair, probability in zip(data["pairs"], (0.912, 0.5, 0.043, 0.0), strict=True):
        pair["summary"]["probability"] = probability
    page = open_page(write_text(tmp_path / "hits.html", page_text("hits", data, MODULES, "mountExplanation")), "390")
    likely = [" ".join(text.split()) for text in page.locator(".hit .likely").all_inner_texts()]
    assert likely == ["91 % likely", "50 % likely", "4.3 % likely", "0.0 % likely"]
    assert text_faults(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways(open_page: OpenPage, path: Path, scheme: str) -> None:
    page = open_page(path, "phone", scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator(".hit").nth(2).tap()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
