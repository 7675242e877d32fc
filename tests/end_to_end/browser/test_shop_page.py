"""The page of an index with metadata: filters, look-up, addresses that can be shared, boxes; of each back end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed; it is in the extra `web`")

from end_to_end.browser.conftest import PATIENCE, SIZES, text_faults
from end_to_end.browser.shop_pages import BRANDS, COUNT, Served, Shop, application, open_shop

Visit = Callable[..., Any]
#: What does not depend on the back end is tested with one.
one_index = pytest.mark.parametrize("shop", ["shop.index"], indirect=True)


@pytest.fixture(scope="module", params=["shop.index", "shop.db"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The shop as an index of LanceDB and of Milvus Lite."""
    pytest.importorskip("milvus_lite" if request.param.endswith(".db") else "lancedb")
    folder = tmp_path_factory.mktemp("shop")
    searcher, rows = open_shop(folder, request.param)
    with searcher, Served(application(searcher)) as one:
        yield Shop(one.address, searcher, rows, folder)


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """`visit(address, size="1400")`: the page; in the end no error was seen, and nothing was asked for elsewhere."""
    contexts, troubles = [], []

    def open_(address: str, size: str = "1400") -> Any:
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, has_touch=size == "390")
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("console", lambda message: message.type == "error" and troubles.append(f"console: {message.text}"))
        own = f"http://{urlsplit(address).netloc}/"
        page.on("request", lambda sent: sent.url.startswith((own, "data:", f"blob:{own}")) or troubles.append(sent.url))
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert troubles == []


def searched(page: Any, act: Callable[[], object]) -> dict[str, Any]:
    """The answer of a search that something begins, when it is shown."""
    with page.expect_response(lambda answer: "/api/search" in answer.url) as caught:
        act()
    told: dict[str, Any] = caught.value.json()
    if told["pairs"]:
        page.wait_for_selector(".headline")
    return told


def address_of(page: Any) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def id_of(shop: Shop, name: str) -> str:
    (part,) = shop.searcher.store.listing(columns=["path"])
    return next(key for key, entry in zip(part.ids, part.metadata, strict=True) if entry["path"] == name)


def choose(page: Any, column: str, word: str) -> None:
    """Tick the box of a value."""
    page.locator(f"fieldset[data-column='{column}'] .value", has_text=word).locator("input").click()


@pytest.mark.parametrize("size", ["1400", "390"])
def test_the_index_is_shown_as_it_is(visit: Visit, shop: Shop, size: str) -> None:
    page = visit(shop.address, size)
    page.wait_for_selector(".sample")
    assert page.locator("#gallery").inner_text() == f"shop.index {COUNT} images"
    assert page.locator("#model").inner_text() == "model runs/shop-model, calibrated on our shop (50 classes)"
    assert page.locator(".sample").count() == 24
    assert page.locator(".pager span").inner_text() == f"1\N{EN DASH}24 of {COUNT}"
    for sample in page.locator(".sample").all():
        cells = shop.rows[sample.get_attribute("title")]
        text = sample.text_content()
        assert cells["label"] in text
        assert cells["brand"] in text
        assert f"price {float(cells['price']):g}"[:8] in text
        assert f"stock {cells['stock']}" in text
        assert ("on sale" in text) == (cells["on sale"] == "true")
    if size == "390":
        page.locator(".filters > summary").click()
    page.locator("fieldset[data-column='stock']").wait_for()
    for column in ("brand", "label", "on sale"):
        values: dict[str, int] = {}
        for cells in shop.rows.values():
            word = {"true": "yes", "false": "no", "": "no value"}.get(cells[column], cells[column])
            values[word] = values.get(word, 0) + 1
        shown = page.locator(f"fieldset[data-column='{column}'] .value").all()
        assert {
            line.locator(".words").inner_text(): int(line.locator(".count").inner_text()) for line in shown
        } == values
    ends = page.locator("fieldset[data-column='price'] input").all()
    assert [end.get_attribute("placeholder") for end in ends] == ["1", "8.25"]
    assert text_faults(page) == []
    page.get_by_role("button", name="Page after").or_(page.get_by_role("button", name="Next page")).click()
    page.get_by_text(f"25\N{EN DASH}30 of {COUNT}").wait_for()
    assert page.locator(".sample").count() == 6
    assert address_of(page) == {"page": ["2"]}


@pytest.mark.parametrize("size", ["1400", "390"])
def test_a_hit_is_understood_and_seen_without_scrolling(visit: Visit, shop: Shop, size: str) -> None:
    key = id_of(shop, "cartons/07.png")
    page = visit(f"{shop.address}/?id={key}", size)
    page.wait_for_selector(".badge")
    assert page.locator(".hit").count() == 8
    assert page.locator(".place[data-place=query] .name").inner_text() == "cartons/07.png"
    for hit in page.locator(".hit").all():
        name = hit.locator(".name").get_attribute("title")
        assert name != "cartons/07.png"
        assert "likely" in hit.inner_text()
        assert f"stock {shop.rows[name]['stock']}" in hit.text_content()
        assert shop.rows[name]["brand"] in hit.text_content()
    assert "likely the same product" in page.locator(".headline").inner_text()
    words = page.locator("main").inner_text().lower()
    for word in ("pooled", "structural", "mass", "plan "):
        assert word not in words
    seen = [page.locator(".hit img").first, *page.locator(".part-images img").all()]
    for image in seen:
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        box = image.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= SIZES[size][1]
    assert text_faults(page) == []
    page.locator(".settings summary").click()
    assert "pooled" in page.locator(".settings").inner_text()
    page.keyboard.press("e")
    page.wait_for_selector(".stage .cell")
    assert "pooled" in page.locator(".diml-viewer").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]


def test_filters_are_sent_shown_and_kept_in_the_address(visit: Visit, shop: Shop) -> None:
    page = visit(f"{shop.address}/?path=fruit/03.png")
    page.wait_for_selector(".headline")
    odd = BRANDS[2]
    told = searched(page, lambda: choose(page, "brand", "O'Boy"))
    assert {pair["hit"]["metadata"]["brand"] for pair in told["pairs"]} == {odd}
    told = searched(page, lambda: choose(page, "brand", "no value"))
    assert {pair["hit"]["metadata"]["brand"] for pair in told["pairs"]} == {odd, None}
    told = searched(page, lambda: choose(page, "on sale", "yes"))
    assert all(pair["hit"]["metadata"]["on sale"] for pair in told["pairs"])
    price = page.locator("fieldset[data-column='price'] input").first
    told = searched(page, lambda: (price.fill("3.5"), price.press("Tab")))
    found = [shop.rows[pair["names"]["gallery"]] for pair in told["pairs"]]
    assert found
    assert all(float(cells["price"]) >= 3.5 and cells["on sale"] == "true" for cells in found)
    assert all(cells["brand"] in (odd, "") for cells in found)
    chips = page.locator(".filter-chip").all_inner_texts()
    assert [chip.rstrip("\N{MULTIPLICATION SIGN}").strip() for chip in chips] == [
        f"brand: {odd}", "brand: no value", "price from 3.5", "on sale: yes",
    ]  # fmt: skip
    given = address_of(page)
    assert (given["is.brand"], given["none.brand"], given["from.price"], given["is.on sale"]) == (
        [odd], ["1"], ["3.5"], ["true"],
    )  # fmt: skip
    names = page.locator(".hit .name").evaluate_all("all => all.map((one) => one.title)")
    again = visit(page.url)  # as somebody who was sent the address
    again.wait_for_selector(".headline")
    assert again.locator(".hit .name").evaluate_all("all => all.map((one) => one.title)") == names
    none = page.locator("fieldset[data-column='stock'] input").first
    told = searched(page, lambda: (none.fill("29"), none.press("Tab")))
    assert told["pairs"] == []
    assert "No image satisfies the filters." in page.get_by_role("alert").inner_text()
    told = searched(page, lambda: page.get_by_role("button", name="Clear all").click())
    assert len(told["pairs"]) == 8
    assert page.locator(".filter-chip").count() == 0
    for _ in range(2):
        page.go_back()
    page.locator(".filter-chip").nth(3).wait_for()
    assert page.locator(".hit .name").evaluate_all("all => all.map((one) => one.title)") == names


def test_words_find_images_in_any_letter_case(visit: Visit, shop: Shop) -> None:
    page = visit(shop.address)
    page.wait_for_selector(".sample")
    page.locator(".look input").fill("OATLY cartons")
    page.keyboard.press("Enter")
    wanted = [name for name, cells in shop.rows.items() if cells["brand"] == "Oatly" and name.startswith("cartons")]
    page.get_by_text(f"1\N{EN DASH}{len(wanted)} of {len(wanted)}").wait_for()
    assert sorted(page.locator(".sample").evaluate_all("all => all.map((one) => one.title)")) == sorted(wanted)
    assert address_of(page) == {"text": ["OATLY cartons"]}
    page.locator(".look input").fill("100%_")
    page.keyboard.press("Enter")
    page.locator(".none").wait_for()
    page.go_back()
    page.locator(".sample").nth(len(wanted) - 1).wait_for()
    assert page.locator(".look input").input_value() == "OATLY cartons"


@one_index
def test_back_forward_and_reload_show_the_same(visit: Visit, shop: Shop) -> None:
    page = visit(shop.address)
    page.wait_for_selector(".sample")
    searched(page, lambda: page.locator(".sample").nth(4).click())
    first = page.locator(".place[data-place=query] .name").inner_text()
    page.locator(".hit").nth(2).click()
    assert address_of(page)["hit"] == ["3"]
    title = page.locator(".hit-head h2").inner_text()
    searched(page, page.reload)
    assert page.locator(".hit").nth(2).get_attribute("aria-pressed") == "true"
    assert page.locator(".hit-head h2").inner_text() == title
    searched(page, lambda: page.get_by_role("button", name="Search with hit 3").click())
    assert page.locator(".place[data-place=query] .name").inner_text() in title
    searched(page, page.go_back)
    assert page.locator(".place[data-place=query] .name").inner_text() == first
    assert page.locator(".hit-head h2").inner_text() == title
    page.go_back()
    page.wait_for_selector(".sample")
    assert page.locator(".hit").count() == 0
    searched(page, page.go_forward)
    assert page.locator(".place[data-place=query] .name").inner_text() == first


@one_index
def test_an_upload_is_no_part_of_the_address_and_the_page_says_so(visit: Visit, shop: Shop, tmp_path: Any) -> None:
    page = visit(shop.address)
    page.wait_for_selector(".sample")
    own = shop.folder / "photos" / "fruit" / "06.png"
    told = searched(page, lambda: page.locator("[data-place=query] input").set_input_files(own))
    assert [item["name"] for item in told["own"]] == ["fruit/06.png"]
    assert "fruit/06.png" not in [pair["names"]["gallery"] for pair in told["pairs"]]
    assert "This very file is in the gallery" in page.locator("#result").inner_text()
    assert "a link to this page does not contain it" in page.locator(".place[data-place=query]").inner_text()
    page.locator(".settings summary").click()
    told = searched(page, lambda: page.locator("[data-option=copies]").click())
    assert told["pairs"][0]["names"]["gallery"] == "fruit/06.png"
    searched(page, lambda: page.get_by_role("button", name="Search with hit 1").click())
    searched(page, page.go_back)  # while the page is open, the file is kept
    assert page.locator(".place[data-place=query] .name").inner_text() == "06.png"
    page.reload()
    page.wait_for_selector(".sample")
    assert "The uploaded image is no longer here." in page.get_by_role("alert").inner_text()


@one_index
def test_a_box_is_drawn_typed_shared_and_removed(visit: Visit, shop: Shop) -> None:
    key = id_of(shop, "cartons/08.png")
    page = visit(f"{shop.address}/?id={key}")
    page.wait_for_selector(".headline")
    frame = page.locator(".box-frame img").bounding_box()

    def drag() -> None:
        page.mouse.move(frame["x"] + 0.25 * frame["width"], frame["y"] + 0.2 * frame["height"])
        page.mouse.down()
        page.mouse.move(frame["x"] + 0.5 * frame["width"], frame["y"] + 0.5 * frame["height"])
        page.mouse.move(frame["x"] + 0.75 * frame["width"], frame["y"] + 0.8 * frame["height"])
        page.mouse.up()

    told = searched(page, drag)
    edges = [float(edge) for edge in told["settings"]["box"].split(",")]
    assert edges == pytest.approx([0.25, 0.2, 0.75, 0.8], abs=0.01)
    assert [float(edge) for edge in address_of(page)["box"][0].split(",")] == edges
    assert told["images"][0]["src"].startswith("data:")  # the part, as the model sees it
    assert key not in [pair["hit"]["id"] for pair in told["pairs"]]
    marked = page.locator(".marked").bounding_box()
    assert marked["width"] == pytest.approx(0.5 * frame["width"], abs=4)
    again = visit(page.url)
    again.wait_for_selector(".headline")
    assert again.locator(".marked").is_visible()
    page.locator(".edges summary").click()
    for field, value in zip(page.locator(".edges input").all(), ("0", "0", "50", "100"), strict=True):
        field.fill(value)
    told = searched(page, lambda: page.keyboard.press("Enter"))
    assert told["settings"]["box"] == "0,0,0.5,1"
    page.locator(".edges input").nth(2).fill("3")  # too narrow: 3 of 96 pixels
    page.keyboard.press("Enter")
    page.get_by_text("Draw a larger box").wait_for()
    told = searched(page, lambda: page.get_by_role("button", name="Whole image", exact=True).click())
    assert "box" not in told["settings"]
    assert "box" not in address_of(page)


@one_index
def test_a_finger_draws_a_box_when_it_was_told_to(visit: Visit, shop: Shop) -> None:
    page = visit(f"{shop.address}/?path=cartons/08.png", "390")
    page.wait_for_selector(".headline")
    page.get_by_role("button", name="Mark a part").tap()
    frame = page.locator(".box-frame")
    frame.wait_for()
    around = frame.bounding_box()

    def touch() -> None:
        for kind, share in (("pointerdown", 0.1), ("pointermove", 0.5), ("pointerup", 0.9)):
            at = {"clientX": around["x"] + share * around["width"], "clientY": around["y"] + share * around["height"]}
            frame.dispatch_event(kind, {"pointerType": "touch", "pointerId": 1, "button": 0, "bubbles": True, **at})

    page.evaluate("Element.prototype.setPointerCapture = () => {}")  # which knows no invented pointers
    told = searched(page, touch)
    edges = [float(edge) for edge in told["settings"]["box"].split(",")]
    assert edges == pytest.approx([0.1, 0.1, 0.9, 0.9], abs=0.03)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@one_index
def test_an_address_of_nothing_is_told(visit: Visit, shop: Shop, browser: Any) -> None:
    context = browser.new_context()
    page = context.new_page()
    for address, told in (("id=nobody", "No image has the id"), ("path=no.png", "No image has the path")):
        page.goto(f"{shop.address}/?{address}")
        page.wait_for_selector("#notice b")
        assert told in page.get_by_role("alert").inner_text()
    context.close()


PAYLOAD = "<img src=x onerror=window.ran=1>"


@one_index
def test_no_payload_in_an_address_runs(visit: Visit, shop: Shop) -> None:
    names = ("text", "is.brand", "like.label", "from.price", f"is.{PAYLOAD}", "is.__proto__", "is.constructor", "share")
    page = visit(f"{shop.address}/?{urlencode(dict.fromkeys(names, PAYLOAD))}")
    page.wait_for_selector(".none")
    assert PAYLOAD in page.locator(".none").inner_text()
    assert page.locator(".filter-chip").count() >= 1
    assert page.evaluate("window.ran") is None
    assert page.locator("main [onerror], main img[src=x]").count() == 0
