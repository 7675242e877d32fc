"""The page of `diml serve` in a browser: what is dropped is compared or searched for, and shown as the API says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrated import made_up_calibrator
from served import MATCHER, drawn, small_embedder, write_shop

pytest.importorskip("fastapi", reason="fastapi is not installed; it is in the extra `web`")
from diml.calibration.calibrator import FILE
from diml.calibration.finding import FoundCalibration
from diml.search import Searcher, build_index, open_store
from diml.web import Engine, create_app
from diml.web.access import Access
from diml.web.folder import FolderGallery
from diml.web.index import IndexGallery
from diml.web.limits import Limits
from end_to_end.browser.conftest import PATIENCE, SIZES, text_faults
from end_to_end.browser.shop_pages import Served

Visit = Callable[..., Any]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shop(tmp_path_factory.mktemp("served") / "shop")


@pytest.fixture(scope="module")
def gallery(shop: Path) -> FolderGallery:
    made = FolderGallery(shop, small_embedder())
    made.start()
    assert made.wait(120).phase == "ready"
    return made


@pytest.fixture(scope="module")
def served(gallery: FolderGallery) -> Iterator[Served]:
    engine = Engine(small_embedder(), matcher=MATCHER, gallery=gallery)
    with Served(create_app(engine, limits=Limits(body_bytes=2_000_000))) as started:
        yield started


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.png and b.png, and words.txt, which is no image."""
    folder = tmp_path_factory.mktemp("files")
    for name, number in (("a", 3), ("b", 4)):
        drawn(number).rotate(5).save(folder / f"{name}.png")
    (folder / "words.txt").write_text("words")
    return folder


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """`visit(address, size="desktop", scheme="light", refusals=0)`: the page, and `page.answers` of the API.

    In the end no error may have been seen but so many refusals, and nothing may have been asked for elsewhere.
    """
    opened = []

    def open_(address: str, size: str = "desktop", scheme: str = "light", refusals: int = 0) -> Any:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=size in ("phone", "390")
        )
        page, troubles = context.new_page(), []
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("console", lambda message: message.type == "error" and troubles.append(f"console: {message.text}"))
        ours = (address.split("#")[0], "data:", f"blob:{address.split('/#')[0]}")
        page.on("request", lambda sent: sent.url.startswith(ours) or troubles.append(f"request: {sent.url}"))
        opened.append((context, troubles, refusals))
        page.goto(address)
        return page

    yield open_
    for context, troubles, refusals in opened:
        context.close()
        refused = [trouble for trouble in troubles if "the server responded with a status of 4" in trouble]
        assert len(refused) == refusals, troubles
        assert [trouble for trouble in troubles if trouble not in refused] == []


def drop(page: Any, where: str, *paths: Path) -> None:
    """Drop files on an element, as a hand with a mouse does."""
    given = [{"name": path.name, "bytes": list(path.read_bytes())} for path in paths]
    page.locator(where).evaluate(
        """(target, given) => {
            const transfer = new DataTransfer();
            for (const { name, bytes } of given) transfer.items.add(new File([new Uint8Array(bytes)], name));
            for (const kind of ["dragenter", "dragover", "drop"]) {
                target.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
            }
        }""",
        given,
    )


def answered(page: Any, address: str, act: Callable[[], object]) -> dict[str, Any]:
    """The JSON that the page got when something was done, and has shown (what it showed before is taken away first)."""
    with page.expect_response(lambda answer: address in answer.url) as caught:
        act()
    told: dict[str, Any] = json.loads(caught.value.body())
    page.wait_for_selector(".headline")
    return told


def cell(side: str, region: int) -> str:
    return f".stage .cell[data-side={side}][data-region='{region}']"


def number(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-").replace("+", ""))


def assert_summary(page: Any, summary: dict[str, Any]) -> None:
    """What the viewer shows to everybody is the summary of the answer."""
    assert page.locator(".headline").inner_text() == summary["headline"]
    assert page.locator(".sentence").inner_text() == summary["sentence"]
    assert page.locator(".part-row[data-part]").count() == len(summary["parts"])


def test_two_dropped_images_are_compared_for_everybody_and_for_experts(
    visit: Visit, served: Served, files: Path
) -> None:
    page = visit(served.address)
    told = answered(page, "/api/match", lambda: drop(page, "main", files / "a.png", files / "b.png"))
    (pair,) = told["pairs"]
    assert_summary(page, pair["summary"])
    names = [page.locator(f".place[data-place={place}] .name").inner_text() for place in ("query", "gallery")]
    assert names == ["a.png", "b.png"]
    assert page.locator(".place img").first.get_attribute("alt") == "Image: a.png"
    page.keyboard.press("e")
    page.wait_for_selector(".stage .cell")
    page.hover(cell("q", 9))
    masses = np.asarray(pair["plan"][9])
    lit = {int(one.get_attribute("data-region")) for one in page.locator(".cell.lit[data-side=g]").all()}
    assert lit
    assert lit <= {int(at) for at in np.flatnonzero(masses)}


def test_pin_slider_and_swap(visit: Visit, served: Served, files: Path) -> None:
    page = visit(f"{served.address}/#experts")
    told = answered(page, "/api/match", lambda: drop(page, "main", files / "a.png", files / "b.png"))
    page.click(cell("g", 6))
    assert page.locator(".details .pin").is_visible()
    page.keyboard.press("Escape")
    assert page.locator(".details .pin").count() == 0
    page.mouse.move(3, 3)
    for count in (0, 3, 11):
        page.locator("input[type=range]").fill(str(count))
        assert page.locator(".flow").count() == count
    swapped = answered(page, "/api/match", lambda: page.get_by_role("button", name="Swap").click())
    assert swapped["pairs"][0]["names"] == {"query": "b.png", "gallery": "a.png"}
    assert swapped["pairs"][0]["score"] == pytest.approx(told["pairs"][0]["score"], abs=1e-4)


def test_one_image_searches_and_a_contrast_says_why(visit: Visit, served: Served, files: Path) -> None:
    page = visit(served.address)
    page.wait_for_selector(".sample")
    told = answered(page, "/api/search", lambda: drop(page, "main", files / "a.png"))
    assert page.locator(".hit").count() == len(told["pairs"]) == 8
    for button, pair in zip(page.locator(".hit").all(), told["pairs"], strict=True):
        text, hit = button.text_content(), pair["hit"]
        assert f"hit {hit['rank']}" in text
        assert hit["label"] in text
        assert f"score {pair['score']:.3f}".replace("-", "\N{MINUS SIGN}") in text
        same = hit["rank"] == hit["pooled_rank"]
        moved = "= place kept" if same else f"from place {hit['pooled_rank']}"
        assert moved in text
        assert moved not in button.inner_text()  # for experts
        assert button.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 128
    assert_summary(page, told["pairs"][0]["summary"])
    page.locator("[data-which=above]").select_option("1")
    page.locator("[data-which=below]").select_option("4")
    one, other = (told["pairs"][at] for at in (1, 4))
    by = abs(one["score"] - other["score"])
    place = "more" if one["score"] > other["score"] else "less"
    assert f"Hit 2 is {place} similar than hit 5 by {by:.2f}" in page.locator(".contrast .plain").inner_text()
    page.locator(".hit").nth(3).click()
    assert_summary(page, told["pairs"][3]["summary"])


def test_options_search_again_and_a_hit_can_be_searched_with(visit: Visit, served: Served, files: Path) -> None:
    page = visit(served.address)
    page.wait_for_selector(".sample")
    answered(page, "/api/search", lambda: drop(page, "main", files / "a.png"))
    page.locator(".settings summary").click()
    told = answered(page, "hits=4&", lambda: page.locator("[data-option=hits]").select_option("4"))
    assert page.locator(".hit").count() == len(told["pairs"]) == 4
    plain = answered(page, "rerank_at=0", lambda: page.locator("[data-option=rerank_at]").select_option("0"))
    assert [pair["hit"]["pooled_rank"] for pair in plain["pairs"]] == [1, 2, 3, 4]
    page.locator(".hit").nth(2).click()
    chosen = plain["pairs"][2]
    again = answered(page, "/api/search", lambda: page.get_by_role("button", name="Search with hit 3").click())
    assert {pair["names"]["query"] for pair in again["pairs"]} == {chosen["names"]["gallery"]}
    assert page.locator(".place[data-place=query] .name").inner_text() == chosen["names"]["gallery"]
    # an image of the gallery can be compared with a file too
    both = answered(page, "/api/match", lambda: drop(page, ".place[data-place=gallery]", files / "b.png"))
    assert both["pairs"][0]["names"]["gallery"] == "b.png"


def test_a_sample_begins_a_search_by_keyboard(visit: Visit, served: Served, gallery: FolderGallery) -> None:
    page = visit(served.address)
    sample = page.locator(".sample").nth(2)
    sample.focus()
    told = answered(page, "/api/search", lambda: page.keyboard.press("Enter"))
    assert told["pairs"][0]["names"]["query"] == gallery.items(2, 1)[0].name
    page.locator(".clear").click()
    page.locator(".sample").nth(9).wait_for()
    assert page.locator(".sample").count() == 10
    assert page.locator(".hit").count() == 0
    assert page.evaluate("document.activeElement.type") == "file"


def test_what_is_no_image_is_told_and_the_page_goes_on(visit: Visit, served: Served, files: Path) -> None:
    page = visit(served.address, refusals=1)
    page.wait_for_selector(".sample")
    drop(page, "main", files / "words.txt")
    page.wait_for_selector("#notice b")
    notice = page.get_by_role("alert").inner_text()
    assert "words.txt is not an image of a known format." in notice
    assert "jpg" in notice
    assert page.locator(".broken").first.is_visible()
    answered(page, "/api/search", lambda: page.locator("[data-place=query] input").set_input_files(files / "a.png"))
    assert page.locator(".hit").count() == 8
    assert page.get_by_role("alert").inner_text() == ""


def test_an_image_above_the_limit_is_not_even_sent(visit: Visit, served: Served, tmp_path: Path) -> None:
    page = visit(served.address)
    page.wait_for_selector(".sample")
    large = tmp_path / "large.png"
    large.write_bytes(bytes(2_100_000))
    page.locator("[data-place=query] input").set_input_files(large)
    page.wait_for_selector("#notice b")
    assert "the server accepts 1.9" in page.get_by_role("alert").inner_text()


def test_a_server_that_is_gone_is_told(visit: Visit, gallery: FolderGallery, files: Path, browser: Any) -> None:
    with Served(create_app(Engine(small_embedder(), gallery=gallery))) as one:
        context = browser.new_context()
        page = context.new_page()
        page.goto(one.address)
        page.wait_for_selector(".sample")
    drop(page, "main", files / "a.png")
    page.wait_for_selector("#notice b", timeout=PATIENCE)
    assert "The server does not answer." in page.get_by_role("alert").inner_text()
    context.close()


def test_while_the_folder_is_embedded_its_progress_is_shown_and_the_search_waits(
    visit: Visit, tmp_path: Path, files: Path
) -> None:
    embedder = small_embedder()
    gallery = FolderGallery(write_shop(tmp_path / "shop", 6), embedder, batch_size=2)
    go_on, advance = threading.Event(), gallery._advance

    def held(images: int) -> None:
        advance(images)
        assert go_on.wait(120)

    gallery._advance = held  # type: ignore[method-assign]
    with Served(create_app(Engine(embedder, gallery=gallery))) as one:
        gallery.start()
        page = visit(one.address)
        page.get_by_text("embedding 2 of 6").wait_for()  # not by an expression, which the page's policy refuses
        assert page.locator("#gallery progress").evaluate("bar => bar.value") == 2
        drop(page, "main", files / "a.png")
        assert "The search starts when the folder is embedded" in page.locator("#busy").inner_text()
        go_on.set()
        page.wait_for_selector(".hit")
        assert page.locator(".hit").count() == 6
        assert "shop 6 images" in page.locator("#gallery").inner_text()
        assert page.locator("#busy").inner_text() == ""


def test_behind_a_prefix_and_with_a_token_the_page_searches_and_shows_all_images(
    browser: Any, gallery: FolderGallery
) -> None:
    token = "an-open-secret-of-tests"
    app = create_app(Engine(small_embedder(), gallery=gallery), access=Access(root_path="/shop", token=token))
    with Served(app) as one:
        refused = browser.new_context()
        assert refused.request.get(f"{one.address}/shop/").status == 401
        context = browser.new_context(http_credentials={"username": "anyone", "password": token})
        page, failed = context.new_page(), []
        page.set_default_timeout(PATIENCE)
        page.on("response", lambda got: got.status >= 402 and failed.append(got.url))
        page.goto(f"{one.address}/shop/")
        page.wait_for_selector(".sample")
        page.locator(".sample").nth(1).click()
        page.wait_for_selector(".hit")
        assert page.locator(".hit").count() > 1
        page.wait_for_load_state("networkidle")
        assert failed == []
        whole = "all => all.length > 2 && all.every(image => !image.complete || image.naturalWidth > 0)"
        assert page.locator("img").evaluate_all(whole)
        for used in (refused, context):
            used.close()


def test_without_a_folder_one_image_waits_for_another(visit: Visit, files: Path) -> None:
    with Served(create_app(Engine(small_embedder()))) as one:
        page = visit(one.address)
        page.wait_for_selector("#gallery code")
        assert "diml serve --folder" in page.locator("#gallery").inner_text()
        drop(page, "main", files / "a.png")
        assert page.locator("#busy").inner_text() == "Add a second image to compare it with."
        answered(page, "/api/match", lambda: drop(page, ".place[data-place=gallery]", files / "b.png"))
        assert page.locator(".headline").count() == 1


def test_a_phone_shows_it_all_without_scrolling_sideways(visit: Visit, served: Served, files: Path) -> None:
    page = visit(served.address, "phone", "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 20, 25)"
    page.wait_for_selector(".sample")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator(".sample").nth(1).tap()
    page.wait_for_selector(".hit")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert text_faults(page) == []
    page.locator("[data-place=gallery] input").set_input_files(files / "b.png")
    page.wait_for_selector(".swap:visible")
    page.wait_for_selector(".headline")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    upper, lower = (page.locator(f".place[data-place={place}]").bounding_box() for place in ("query", "gallery"))
    assert lower["y"] > upper["y"] + upper["height"]


def test_the_numbers_can_be_saved(visit: Visit, served: Served, files: Path) -> None:
    page = visit(served.address)
    told = answered(page, "/api/match", lambda: drop(page, "main", files / "a.png", files / "b.png"))
    with page.expect_download() as caught:
        page.get_by_role("button", name="Save the numbers").click()
    assert json.loads(Path(caught.value.path()).read_text()) == told


@pytest.fixture(params=["shop.index", "shop.db"])
def indexed(request: pytest.FixtureRequest, shop: Path, tmp_path: Path) -> Iterator[Searcher]:
    """The shop as an index of LanceDB and of Milvus Lite, with a calibration of its own."""
    pytest.importorskip("milvus_lite" if request.param.endswith(".db") else "lancedb")
    embedder = small_embedder()
    embedder.save(tmp_path / "model")
    build_index(shop, tmp_path / request.param, embedder, model=str(tmp_path / "model"))
    store = open_store(tmp_path / request.param)
    store.write_text(FILE, made_up_calibrator(embedder, kind="product", data="our shop").to_json())
    with Searcher(store, embedder) as searcher:
        yield searcher


@pytest.mark.parametrize("size", ["1400", "390"])
def test_an_index_is_shown_as_it_is_and_says_how_sure_it_is(
    visit: Visit, indexed: Searcher, files: Path, size: str
) -> None:
    engine = Engine(
        indexed.embedder,
        gallery=IndexGallery(indexed, "shop.index"),
        about={"model": "runs/shop-model"},
        calibration=indexed.calibration,
    )
    with Served(create_app(engine)) as one:
        page = visit(one.address, size)
        page.wait_for_selector(".sample")
        assert page.locator("#gallery").inner_text() == "shop.index 10 images"
        assert page.locator("#model").inner_text() == "model runs/shop-model, calibrated on our shop (50 classes)"
        assert page.locator(".sample").count() == 10
        for image in page.locator(".sample img").all():
            image.scroll_into_view_if_needed()
            assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 128
        told = answered(page, "/api/search", lambda: drop(page, "main", files / "a.png"))
        assert page.locator(".verdict-line p").text_content() == told["in_gallery"]["sentence"]
        verdict = told["in_gallery"]["sentence"].partition(":")[0]
        assert page.locator(".verdict-line summary b").inner_text() == f"{verdict}."
        assert page.locator(".hit").count() == 8
        for button, pair in zip(page.locator(".hit").all(), told["pairs"], strict=True):
            chance = pair["hit"]["probability"]
            assert f"{100 * chance:.0f}" in button.inner_text()
        assert_summary(page, told["pairs"][0]["summary"])
        assert "the same product" in page.locator(".headline").inner_text()
        assert text_faults(page) == []
        page.locator(".settings summary").click()
        plain = answered(page, "rerank_at=0", lambda: page.locator("[data-option=rerank_at]").select_option("0"))
        assert plain["notices"][0] in page.locator("#result").inner_text()
        assert page.locator(".verdict-line").count() == 0


def test_a_calibration_that_does_not_fit_is_told_in_the_header(visit: Visit, gallery: FolderGallery) -> None:
    missing = FoundCalibration(notice="The calibration of shop is not used: it belongs to another model.")
    with Served(create_app(Engine(small_embedder(), gallery=gallery, calibration=missing))) as one:
        page = visit(one.address)
        page.locator("#model summary").click()
        assert "model test_resnet, not calibrated" in " ".join(page.locator("#model").inner_text().split())
        assert missing.notice in page.locator("#model").inner_text()
        page.wait_for_load_state("networkidle")  # the images have come before the server ends
    with Served(create_app(Engine(small_embedder(), gallery=gallery))) as one:
        page = visit(one.address)
        page.wait_for_selector("#model .quiet")
        assert "not calibrated: scores, no probabilities" in page.locator("#model").inner_text()
        page.wait_for_load_state("networkidle")
