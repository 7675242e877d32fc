"""The view for everybody of a pair: it shows its summary, in words without jargon, on wide and narrow screens."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diml.explain import Explanation, explanation_page
from diml.explain.html import MODULES, page_text
from diml.explain.shown_plan import shown_plan
from diml.explain.summary import summarise
from diml.files import write_text
from diml.matching import Regions, match
from drawn_pair import drawn_pair
from end_to_end.browser.conftest import text_faults

OpenPage = Callable[..., Any]
Write = Callable[..., Path]

SCALE = {
    "low": 0.6,
    "high": 2.0,
    "marks": [
        {"value": 0.95, "kind": "different", "label": "different products, typically"},
        {"value": 1.35, "kind": "same", "label": "the same product, typically"},
        {"value": 2.0, "kind": "itself", "label": "an image with itself"},
    ],
    "bands": [{"kind": "different", "low": 0.75, "high": 1.2}, {"kind": "same", "low": 1.1, "high": 1.6}],
}
JARGON = re.compile(r"pooled|structural|\bmass\b|\bplan\b|cosine|ledger|transport|epsilon|entropic", re.IGNORECASE)


def made(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).relu()


@pytest.fixture(scope="module")
def found() -> Explanation:
    """A pair of 3 x 4 against 4 x 4 regions, whose whole score is divided among them."""
    query, gallery = (
        Regions.normalized(side, side.mean(dim=1), grid, shares=side / side.shape[1])
        for side, grid in ((made((1, 12, 24), 3), (3, 4)), (made((1, 16, 24), 4), (4, 4)))
    )
    return Explanation.of(match(query, gallery), drawn_pair(448), ("shop/a.png", "shop/b.png"))


@pytest.fixture(scope="module")
def told(found: Explanation) -> dict[str, Any]:
    return json.loads(json.dumps(summarise(shown_plan(found)).to_dict()))


@pytest.fixture(scope="module")
def path(found: Explanation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("page") / "why.html", explanation_page(found))


@pytest.fixture
def write(path: Path, tmp_path: Path) -> Write:
    """`write(pair={...}, **summary)`: the page with these values of its pair and of its summary replaced."""
    data = json.loads(re.findall(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"))[0])

    def write_(pair: dict[str, Any] | None = None, **summary: Any) -> Path:
        changed = copy.deepcopy(data)
        changed["pairs"][0] |= pair or {}
        changed["pairs"][0]["summary"] |= summary
        page = page_text("shop/a.png and shop/b.png", changed, MODULES, "mountExplanation")
        return write_text(tmp_path / "changed.html", page)

    return write_


def part(number: int, side: str | None = None) -> str:
    where = f"[data-side={side}]" if side else ""
    return f".part{where}[data-part='{number}']"


def badges(number: int, side: str) -> str:
    return f".badges[data-side={side}][data-number='{number}']"


def row(number: int) -> str:
    return f".part-row[data-part='{number}']"


def percent(share: float) -> str:
    return f"{100 * share:.{0 if abs(share) >= 0.0995 else 1}f} %"


def plain(text: str) -> str:
    """With ordinary spaces and minus signs."""
    return text.replace("\u202f", " ").replace("\u00a0", " ").replace("\N{MINUS SIGN}", "-")


def view(page: Any) -> str:
    """The hash of the address."""
    hash_: str = page.evaluate("location.hash")
    return hash_


def active(page: Any) -> dict[str, list[int]]:
    """Numbers of the parts that are highlighted: in the images, and as rows."""
    names = {"q": ".part.active[data-side=q]", "g": ".part.active[data-side=g]", "row": ".part-row.active"}
    return {
        name: [int(one.get_attribute("data-part")) for one in page.locator(selector).all()]
        for name, selector in names.items()
    }


def only(number: int) -> dict[str, list[int]]:
    return {"q": [number], "g": [number], "row": [number]}


NOTHING: dict[str, list[int]] = {"q": [], "g": [], "row": []}


def test_the_summary_is_what_is_shown(open_page: OpenPage, path: Path, told: dict[str, Any]) -> None:
    page = open_page(path, "1400")
    assert page.locator(".headline").inner_text() == told["headline"]
    assert plain(page.locator(".sentence").inner_text()) == plain(told["sentence"])
    assert [plain(text) for text in page.locator(".head .warning").all_inner_texts()] == told["warnings"]
    assert page.locator(".head .hint").all_inner_texts() == told["hints"]
    assert page.locator(".part-row").count() == len(told["parts"])
    for one in told["parts"]:
        text = plain(page.locator(row(one["part"])).inner_text())
        assert f"{percent(one['share'])} of the similarity" in text
        assert f"{one['place_q']} \u2194 {one['place_g']}" in text
        assert page.locator(f"{row(one['part'])} .thumb").count() == 2
        bar, track = (
            page.locator(f"{row(one['part'])} {name}").bounding_box() for name in (".share-bar i", ".share-bar")
        )
        assert bar["width"] / track["width"] == pytest.approx(max(one["share"], 0), abs=0.005)
    between = plain(page.locator(".row.between").inner_text())
    assert between.startswith(percent(told["between"]["share"]))
    assert page.locator(".row.overall, .row.missing, .row.background, .threshold").count() == 0


def test_the_shares_on_the_page_sum_to_the_whole(open_page: OpenPage, path: Path) -> None:
    page = open_page(path)
    shares = [float(plain(text).split(" ")[0]) for text in page.locator(".part-list .amount b").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.5 * len(shares))
    bars = [one.evaluate("bar => parseFloat(bar.style.width)") for one in page.locator(".part-list .share-bar i").all()]
    assert sum(bars) == pytest.approx(100, abs=0.1)


def test_no_word_of_the_method_stands_in_the_view_for_everybody(open_page: OpenPage, write: Write) -> None:
    missing = {"query": {"mass": 0.2, "regions": [0]}, "gallery": {"mass": 0.1, "regions": [3]}}
    page = open_page(
        write(
            pair={"whole": None, "pooled_parts": None},
            scale=SCALE,
            unmatched=missing,
            pooled={"value": 0.8, "share": 0.5},
            undivided="the head is not affine",
            background={"object": 0.5, "mixed": 0.3, "background": 0.2},
            threshold={"score": 1.2, "false_accept_rate": 0.01, "above": False},
        )
    )
    assert JARGON.findall(page.locator("main").inner_text()) == []
    assert JARGON.findall(" ".join(page.locator("main [title]").evaluate_all("all => all.map(one => one.title)"))) == []
    labels = page.locator("main [aria-label]").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    assert JARGON.findall(" ".join(labels)) == []


def test_images_are_untouched_and_above_the_fold(open_page: OpenPage, path: Path) -> None:
    page = open_page(path, "1400")
    boxes = [page.locator(f".side.{role} .frame").bounding_box() for role in ("query", "gallery")]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]
    for box in boxes:
        assert box["y"] + box["height"] < 900
        assert box["width"] > 350
    assert page.locator(".cell, canvas").count() == 0
    fills = page.locator(".hit-area").evaluate_all("all => all.map(one => getComputedStyle(one).fillOpacity)")
    assert set(fills) == {"0"}
    assert set(page.locator(".veil").evaluate_all("all => all.map(one => one.getAttribute('d') || '')")) >= {""}
    for role in ("query", "gallery"):
        image = page.locator(f".side.{role} img")
        assert f"The {role} image, shop/" in image.get_attribute("alt")
        assert image.evaluate("image => image.complete && image.naturalWidth") == 448


@pytest.mark.parametrize("size", ["1400", "390"])
def test_outlines_run_inside_their_regions(
    open_page: OpenPage, path: Path, found: Explanation, told: dict[str, Any], size: str
) -> None:
    page = open_page(path, size)
    for side, role, grid in (("q", "query", found.grid_q), ("g", "gallery", found.grid_g)):
        frame = page.locator(f".side.{role} .frame").bounding_box()
        for one in told["parts"]:
            inside = page.locator(f"{part(one['part'], side)} .edge").evaluate(
                """(edge, [columns, rows]) => {
                    const { width, height } = edge.ownerSVGElement.viewBox.baseVal;
                    const cells = new Set();
                    for (let at = 0; at < edge.getTotalLength(); at += 1) {
                        const { x, y } = edge.getPointAtLength(at);
                        cells.add(Math.floor(y / height * rows) * columns + Math.floor(x / width * columns));
                    }
                    return [...cells];
                }""",
                [grid[1], grid[0]],
            )
            regions = set(one[f"regions_{side}"])
            assert set(inside) <= regions
            edges = {r for r in regions if not {r - 1, r + 1, r - grid[1], r + grid[1]} <= regions}
            assert edges <= set(inside) | {r for r in regions if r % grid[1] in (0, grid[1] - 1)}
            badge = page.locator(f"{badges(one['part'], side)} circle").first.bounding_box()
            assert frame["x"] - 2 <= badge["x"]
            assert badge["x"] + badge["width"] <= frame["x"] + frame["width"] + 2
            colour = page.locator(f"{part(one['part'], side)} .edge").get_attribute("stroke")
            chip = page.locator(f"{row(one['part'])} .number").evaluate("one => one.style.backgroundColor")
            assert chip == f"rgb({', '.join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))})"


def middle(page: Any, number: int, side: str, told: dict[str, Any], grid: tuple[int, int]) -> tuple[float, float]:
    """Where the last region of a part is, away from the number of the part."""
    role = "query" if side == "q" else "gallery"
    frame = page.locator(f".side.{role} .frame").bounding_box()
    region = told["parts"][number - 1][f"regions_{side}"][-1]
    x, y = (region % grid[1] + 0.7) / grid[1], (region // grid[1] + 0.7) / grid[0]
    return frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]


def test_pointing_at_a_part_highlights_it_on_both_sides(
    open_page: OpenPage, path: Path, found: Explanation, told: dict[str, Any]
) -> None:
    page = open_page(path, "1400")
    page.mouse.move(*middle(page, 2, "g", told, found.grid_g))
    assert active(page) == only(2)
    assert page.locator(".part.dim").count() == 2 * (len(told["parts"]) - 1)
    page.hover(row(1))
    assert active(page) == only(1)
    page.mouse.move(5, 5)
    assert active(page) == NOTHING
    page.mouse.click(*middle(page, 1, "q", told, found.grid_q))
    page.hover(row(2))
    assert active(page) == only(1)
    assert page.locator(row(1)).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    page.mouse.move(5, 5)
    assert active(page) == NOTHING


def test_a_tap_highlights_a_part_and_another_tap_does_not(
    open_page: OpenPage, path: Path, found: Explanation, told: dict[str, Any]
) -> None:
    page = open_page(path, "390")
    place = middle(page, 2, "q", told, found.grid_q)
    page.touchscreen.tap(*place)
    assert active(page) == only(2)
    page.touchscreen.tap(*place)
    assert active(page) == NOTHING
    page.locator(row(3)).tap()
    assert active(page) == only(3)


def test_the_keyboard_does_it_all(open_page: OpenPage, path: Path, told: dict[str, Any]) -> None:
    page = open_page(path, "1400")
    count = len(told["parts"])
    where = "[document.activeElement.dataset.side ?? 'row', Number(document.activeElement.dataset.part)]"
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text().startswith("Details for experts")
    page.keyboard.press("Tab")
    assert page.evaluate(where) == ["q", 1]
    assert active(page) == only(1)
    label = page.locator(":focus").get_attribute("aria-label")
    assert label.startswith("Part 1, ")
    assert "of the similarity" in label
    for key, number in (
        ("ArrowRight", 2),
        ("ArrowDown", 3),
        ("ArrowUp", 2),
        ("End", count),
        ("ArrowRight", 1),
        ("Home", 1),
    ):
        page.keyboard.press(key)
        assert page.evaluate(where) == ["q", number]
        assert active(page) == only(number)
    page.keyboard.press("Enter")
    assert page.locator(":focus").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Tab")
    assert page.evaluate(where)[0] == "g"
    assert active(page) == only(1)
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    assert active(page) == only(2)
    page.keyboard.press("Tab")
    assert page.locator(":focus").get_attribute("type") == "checkbox"
    page.keyboard.press(" ")
    assert view(page) == "#overlay"
    page.keyboard.press("Tab")
    assert page.evaluate(where) == ["row", 1]
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    assert page.locator(row(2)).get_attribute("aria-pressed") == "true"
    outline = page.locator(":focus").evaluate("one => getComputedStyle(one).outlineStyle")
    assert outline == "solid"


def test_the_focus_of_a_part_is_visible(open_page: OpenPage, path: Path) -> None:
    page = open_page(path)
    before = page.locator(f"{part(1, 'q')} .casing").evaluate("one => getComputedStyle(one).stroke")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    after = page.locator(f"{part(1, 'q')} .casing").evaluate("one => getComputedStyle(one).stroke")
    assert (before, after) == ("rgb(255, 255, 255)", "rgb(255, 216, 61)")


def test_one_click_or_a_key_leads_to_the_view_for_experts_and_the_address_keeps_it(
    open_page: OpenPage, path: Path
) -> None:
    page = open_page(path)
    page.get_by_role("button", name="Details for experts").click()
    assert view(page) == "#experts"
    assert page.locator(".cells").count() == 2
    assert page.locator(".part-images").count() == 0
    assert "pooled" in page.locator(".score .sum").inner_text()
    page.reload()
    assert page.locator(".cells").count() == 2
    page.keyboard.press("e")
    assert view(page) == ""
    assert page.locator(".cells").count() == 0
    assert page.locator(".part-images").is_visible()
    page.keyboard.press("Control+e")
    assert page.locator(".cells").count() == 0
    page.keyboard.press("e")
    page.evaluate("location.hash = ''")
    page.locator(".part-images").wait_for()
    headline = page.locator(".headline").inner_text()
    page.keyboard.press("e")
    assert page.locator(".headline").inner_text() == headline


def test_parts_are_coloured_only_when_asked_for(open_page: OpenPage, path: Path) -> None:
    page = open_page(path)
    fill = "all => [...new Set(all.map(one => getComputedStyle(one).fillOpacity))]"
    assert page.locator(".hit-area").evaluate_all(fill) == ["0"]
    page.get_by_label("Colour the parts").check()
    assert view(page) == "#overlay"
    assert page.locator(".hit-area").evaluate_all(fill) == ["0.42"]
    page.reload()
    assert page.get_by_label("Colour the parts").is_checked()
    page.keyboard.press("e")
    assert view(page) == "#experts&overlay"
    page.keyboard.press("e")
    page.get_by_label("Colour the parts").uncheck()
    assert page.locator(".hit-area").evaluate_all(fill) == ["0"]
    assert view(page) == ""


def test_the_common_scale_has_the_same_ends_for_every_pair(open_page: OpenPage, write: Write) -> None:
    for score in (0.8, 1.6):
        page = open_page(write(scale=SCALE, score=score, ranked_by=None), "1400")
        track = page.locator(".lane[data-kind=pair]").bounding_box()

        def at(value: float, track: dict[str, float] = track) -> float:
            return track["x"] + track["width"] * (value - 0.6) / 1.4

        line = page.locator(".here-line i").bounding_box()
        assert line["x"] + line["width"] / 2 == pytest.approx(at(score), abs=1)
        assert page.locator(".here").inner_text() == f"{score:.2f}"
        for kind, low, high, typical in (("different", 0.75, 1.2, 0.95), ("same", 1.1, 1.6, 1.35)):
            band = page.locator(f".lane[data-kind={kind}] .band").bounding_box()
            assert band["x"] == pytest.approx(at(low), abs=1)
            assert band["x"] + band["width"] == pytest.approx(at(high), abs=1)
            tick = page.locator(f".lane[data-kind={kind}] .tick").bounding_box()
            assert tick["x"] + tick["width"] / 2 == pytest.approx(at(typical), abs=1)
    names = page.locator(".lane-name").all_inner_texts()
    assert names == [
        "this pair",
        "an image with itself",
        "the same product, typically",
        "different products, typically",
    ]


def test_the_scale_shows_the_score_that_ranks(open_page: OpenPage, write: Write) -> None:
    page = open_page(write(scale=SCALE, score=1.5, ranked_by=1.31))
    assert page.locator(".here").inner_text() == "1.31"
    page = open_page(write(scale=SCALE, score=-0.4, ranked_by=None))
    line, track = page.locator(".here-line i").bounding_box(), page.locator(".lane[data-kind=pair]").bounding_box()
    assert line["x"] + 1 == pytest.approx(track["x"], abs=1)
    assert page.locator(".here").inner_text() == "\N{MINUS SIGN}0.40"


@pytest.mark.parametrize("size", ["1400", "390"])
def test_all_that_can_be_said_fits(open_page: OpenPage, write: Write, told: dict[str, Any], size: str) -> None:
    spare = told["parts"][0]["regions_q"][:2]
    parts = [one | {"regions_q": [r for r in one["regions_q"] if r not in spare]} for one in told["parts"]]
    page = open_page(
        write(
            headline="91 % likely the same product",
            scale=SCALE,
            parts=parts,
            probability=0.91,
            threshold={"score": 1.2, "false_accept_rate": 0.001, "above": True},
            pooled={"value": 0.9, "share": 0.55},
            undivided="the head is not affine",
            unmatched={"query": {"mass": 0.18, "regions": spare}, "gallery": {"mass": 0.04, "regions": []}},
            background={"object": 0.45, "mixed": 0.1, "background": 0.45},
            warnings=["45 % of the similarity comes from the background.", "All regions look alike to this model."],
            hints=["Run diml calibrate to see how likely the images show the same class."],
        ),
        size,
    )
    assert text_faults(page) == []
    assert page.locator(".head .warning").all_inner_texts()[1] == "All regions look alike to this model."
    assert (
        plain(page.locator(".threshold").inner_text())
        == "Above the threshold 1.20, which 0.1 % of different pairs reach."
    )
    assert plain(page.locator(".row.overall").inner_text()).startswith("55 % from comparing the images as a whole")
    assert (
        plain(page.locator(".row.missing").inner_text())
        == "No counterpart: 18 % of the query, 4.0 % of the gallery image"
    )
    background = plain(page.locator(".row.background").inner_text())
    assert background.startswith("45 % comes from the background alone")
    assert "object to background 10 %" in background
    hatched = [page.locator(f".side.{role} .outlines > .unmatched").get_attribute("d") for role in ("query", "gallery")]
    assert hatched[0].startswith("M")
    assert hatched[1] == ""
    page.keyboard.press("e")
    assert text_faults(page) == []
    assert "not divided among pairs of regions: the head is not affine" in page.locator(".score").inner_text()


def test_a_negative_score_has_no_shares(open_page: OpenPage, write: Write, told: dict[str, Any]) -> None:
    parts = [one | {"share": None} for one in told["parts"]]
    page = open_page(write(parts=parts, between={"value": -0.4, "share": None}, score=-0.2))
    amounts = page.locator(".part-list .amount b").all_inner_texts()
    assert set(amounts) == {"\N{EN DASH}"}


def test_regions_without_a_grid_are_listed(open_page: OpenPage, write: Write, told: dict[str, Any]) -> None:
    parts = [one | {"place_q": "", "place_g": ""} for one in told["parts"]]
    page = open_page(write(pair={"grid_q": None, "grid_g": None}, parts=parts), "1400")
    assert page.locator(".outlines, .thumb, input[type=checkbox]").count() == 0
    assert "cannot be outlined" in page.locator(".everybody .hint").inner_text()
    for one in told["parts"]:
        words = f"{len(one['regions_q'])} and {len(one['regions_g'])} regions"
        assert words in page.locator(row(one["part"])).inner_text()
    assert text_faults(page) == []
    page.keyboard.press("e")
    assert page.locator(".cells").count() == 2


def test_pieces_of_a_part_each_have_its_number(open_page: OpenPage, write: Write, told: dict[str, Any]) -> None:
    first = told["parts"][0] | {
        "regions_q": [0, 1, 11],
        "connected_q": False,
        "regions_g": [0, 5, 10, 15],
        "connected_g": False,
    }
    page = open_page(write(parts=[first]))
    assert page.locator(f"{badges(1, 'q')} .badge").count() == 2
    assert page.locator(f"{badges(1, 'g')} .badge").count() == 4
    path = page.locator(f"{part(1, 'g')} .edge").get_attribute("d")
    assert path.count("M") == path.count("Z") == 4  # regions that meet in a corner stay apart
    assert "2 pieces in the query, 4 pieces in the gallery" in page.locator(row(1)).inner_text()


def test_motion_can_be_reduced_and_a_page_can_be_printed(open_page: OpenPage, path: Path) -> None:
    page = open_page(path)
    page.emulate_media(reduced_motion="reduce")
    assert page.locator(".part path").first.evaluate("one => getComputedStyle(one).transitionDuration") == "0s"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".switch").is_visible()
    assert not page.locator(".overlay").is_visible()
    assert page.locator(".part-row").first.is_visible()
    page.set_viewport_size({"width": 720, "height": 1000})  # about the width of A4 between its margins
    assert text_faults(page) == []


def test_dark_and_light_follow_the_system(open_page: OpenPage, path: Path, contrast: Callable[..., float]) -> None:
    papers = []
    for scheme in ("light", "dark"):
        page = open_page(path, scheme=scheme)
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        for selector in (
            "h1",
            ".headline",
            ".sentence",
            ".hint",
            ".places",
            ".lane-name",
            ".ends",
            ".switch",
            ".amount",
        ):
            assert contrast(page, selector) > 4.5, (scheme, selector)
    assert papers == ["rgb(255, 255, 255)", "rgb(15, 20, 25)"]
