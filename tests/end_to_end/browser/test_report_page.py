"""`diml report` on a run: the page shows the run's own metrics, marks hits, and explains the selected one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibrated import made_up_calibrator
from diml.cli import main
from diml.models import load_embedder
from diml.training import train
from end_to_end.browser.conftest import text_faults
from end_to_end.small_runs import make_images, small_config

OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = small_config(make_images(folder / "images"), folder / "plain", epochs=1)
    train(config)
    return folder / "plain"


@pytest.fixture(scope="module")
def path(run: Path) -> Path:
    page = run.parent / "out" / "report.html"
    words = ["report", str(run), "--html", str(page), "--queries", "5", "--hits", "3", "--rerank-at", "5"]
    assert main([*words, "--no-cache", "--workers", "0"]) == 0
    return page


@pytest.fixture(scope="module")
def told(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text().split('id="data">')[1].split("</script>")[0])
    return data


def test_the_metrics_are_those_of_the_runs_own_test(
    open_page: OpenPage, path: Path, run: Path, told: dict[str, Any]
) -> None:
    page = open_page(path)
    own = json.loads((run / "evaluation.json").read_text())["methods"]["plain"]
    for place, row in enumerate(own["rows"]):
        shown = page.locator(".metrics tbody tr").nth(place).locator("td b").all_inner_texts()
        expected = [100 * row[metric] for metric in ("recall@1", "r_precision", "map@r")]
        assert [float(text) for text in shown] == pytest.approx(expected, abs=5.1e-3)
    assert page.locator(".query-card").count() == 5
    assert told["settings"]["dataset"] == "csv"


def test_hits_are_marked_before_and_after(open_page: OpenPage, path: Path, told: dict[str, Any]) -> None:
    page = open_page(path)
    for card, query in zip(page.locator(".query-card").all(), told["queries"], strict=True):
        for strip, when in zip(card.locator(".hits").all(), ("before", "after"), strict=True):
            marks = [text.split()[-1] for text in strip.locator(".verdict").all_inner_texts()]
            correct = [query["pairs"][at]["hit"]["correct"] for at in query[when]]
            assert marks == ["right" if right else "wrong" for right in correct]
            assert strip.locator(".hit").count() == 3


def test_a_hit_is_explained_where_it_is_selected(open_page: OpenPage, path: Path, told: dict[str, Any]) -> None:
    page = open_page(path, view="#experts")
    card, query = page.locator(".query-card").nth(1), told["queries"][1]
    button = card.locator(".hits").nth(1).locator(".hit").nth(2)
    button.click()
    pair = query["pairs"][query["after"][2]]
    assert f"score {pair['score']:.3f}" in card.locator(".score .sum").inner_text()
    assert button.get_attribute("aria-expanded") == "true"
    assert card.locator(".opened .hits .hit").count() == len(query["pairs"])
    card.locator(".opened .cell[data-side=q][data-region='1']").first.hover()
    assert card.locator(".opened .cell.lit").count() > 0
    other = card.locator(".hits").nth(0).locator(".hit").nth(0)
    other.click()
    assert button.get_attribute("aria-expanded") == "false"
    assert card.locator(".stage").count() == 1
    card.get_by_role("button", name="Close the explanation").click()
    assert card.locator(".stage").count() == 0
    assert other.evaluate("one => one === document.activeElement")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways(open_page: OpenPage, path: Path, scheme: str) -> None:
    page = open_page(path, "phone", scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator(".query-card .hit").nth(1).tap()
    assert page.locator(".part-images").is_visible()
    assert text_faults(page) == []
    page.keyboard.press("e")
    assert page.locator(".stage").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("size", ["1400", "390"])
def test_a_calibrated_report_says_how_likely_each_hit_is(open_page: OpenPage, run: Path, size: str) -> None:
    saved, page_file = run.parent / "calibration", run.parent / "out" / "calibrated.html"
    made_up_calibrator(load_embedder(run), depth=5, kind="product").save(saved)
    words = ["report", str(run), "--html", str(page_file), "--queries", "3", "--hits", "3", "--rerank-at", "5"]
    assert main([*words, "--calibration", str(saved), "--no-cache", "--workers", "0"]) == 0
    told = json.loads(page_file.read_text().split('id="data">')[1].split("</script>")[0])
    page = open_page(page_file, size)
    for card, query in zip(page.locator(".query-card").all(), told["queries"], strict=True):
        assert card.locator("p.hint").first.inner_text() == query["in_gallery"]["sentence"]
        for strip, when in zip(card.locator(".hits").all(), ("before", "after"), strict=True):
            chances = [query["pairs"][at]["hit"]["probability"] for at in query[when]]
            shown = [float(text.split()[0].rstrip("%")) for text in strip.locator(".likely").all_inner_texts()]
            assert shown == pytest.approx([100 * chance for chance in chances], abs=0.51)
    page.locator(".query-card .hit").first.click()
    assert "the same product" in page.locator(".headline").first.inner_text()
    assert text_faults(page) == []
