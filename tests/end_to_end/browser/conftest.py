"""Debian's Chromium without a window, driven by Playwright; pages are opened as files, and nothing may be requested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from debian import require_program

CHROMIUM = Path("/usr/bin/chromium")
#: Chromium of itself asks its maker for updates and much else; as root it needs to be told to run without a sandbox.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]
SIZES = {"desktop": (1200, 900), "phone": (360, 740), "1400": (1400, 900), "390": (390, 844)}

#: Milliseconds to wait for what must come in the end, also on a machine that is busy with other things.
PATIENCE = 90_000

OpenPage = Callable[..., Any]


@pytest.fixture(scope="session")
def chromium() -> Path:
    """The browser; installed where this is root's Debian, else the tests skip."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed; it is in the extra `dev`")
    return require_program(CHROMIUM, "chromium")


@pytest.fixture(scope="module")
def browser(chromium: Path) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(chromium), args=ARGUMENTS, timeout=PATIENCE)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """`open_page(path, size="desktop", scheme="light", first="", view="")`; in the end no error or request was seen.

    `first` is JavaScript that runs before the page's own; `view` is the hash of the address: "#experts", "#overlay", or
    both.
    """
    contexts, troubles = [], []

    def open_(path: Path, size: str = "desktop", scheme: str = "light", first: str = "", view: str = "") -> Any:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=size in ("phone", "390")
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("console", lambda message: message.type == "error" and troubles.append(f"console: {message.text}"))
        page.on("request", lambda request: _is_ours(request.url, path) or troubles.append(f"request: {request.url}"))
        page.add_init_script(first)
        page.goto(path.as_uri() + view)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert troubles == []


def _is_ours(address: str, path: Path) -> bool:
    return address.startswith("data:") or address.split("#")[0] == path.as_uri()


#: Texts that a reader sees, with the boxes in which they are drawn, cut where an element around them cuts them.
TEXTS = """() => {
    const found = [];
    let number = 0;
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const parent = node.parentElement;
        if (!node.textContent.trim() || parent.closest("script, option, noscript, [hidden]")) continue;
        if (!parent.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
        number += 1;
        const range = document.createRange();
        range.selectNodeContents(node);
        for (const box of range.getClientRects()) {
            let [left, top, right, bottom] = [box.left, box.top, box.right, box.bottom];
            for (let around = parent; around; around = around.parentElement) {
                const style = getComputedStyle(around);
                if (style.overflowX === "visible" || around === document.documentElement) continue;
                const edge = around.getBoundingClientRect();
                [left, right] = [Math.max(left, edge.left), Math.min(right, edge.right)];
                [top, bottom] = [Math.max(top, edge.top), Math.min(bottom, edge.bottom)];
            }
            if (right - left < 1 || bottom - top < 1) continue;
            const text = node.textContent.trim().slice(0, 40);
            found.push({ text, node: number, left, top, right, bottom });
        }
    }
    return found;
}"""


def text_faults(page: Any) -> list[str]:
    """Texts that cover each other by more than a pixel or leave the page sideways; a page that scrolls sideways."""
    texts = page.evaluate(TEXTS)
    assert len(texts) > 10
    width = page.evaluate("window.innerWidth")
    wrong = [f"{one['text']!r} leaves the page" for one in texts if one["left"] < -1 or one["right"] > width + 1]
    texts.sort(key=lambda box: box["top"])
    for place, one in enumerate(texts):
        for other in texts[place + 1 :]:
            if other["top"] >= one["bottom"] - 1:
                break
            wide = min(one["right"], other["right"]) - max(one["left"], other["left"])
            high = min(one["bottom"], other["bottom"]) - other["top"]
            if wide > 1 and high > 1.5 and one["node"] != other["node"]:
                wrong.append(f"{one['text']!r} and {other['text']!r} overlap by {wide:.0f} x {high:.0f} pixels")
    scrolled = page.evaluate("document.documentElement.scrollWidth")
    return [*wrong, *([f"the page is {scrolled} pixels wide"] if scrolled > width else [])]


@pytest.fixture
def contrast() -> Callable[[Any, str], float]:
    """`contrast(page, selector)`: the contrast of a text against the paper, as WCAG 2 defines it; 4.5 is legible."""

    def light(colour: str) -> float:
        values = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast_(page: Any, selector: str) -> float:
        ink = page.locator(selector).first.evaluate("one => getComputedStyle(one).color")
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        low, high = sorted((light(ink), light(paper)))
        return (high + 0.05) / (low + 0.05)

    return contrast_
