"""The page of the API in a browser: it lists the routes, sends a request, and asks nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from end_to_end.browser.conftest import PATIENCE, SIZES
from served import small_embedder

pytest.importorskip("fastapi", reason="fastapi is not installed; it is in the extra `web`")
from diml.web import Engine, create_app
from diml.web.access import Access
from end_to_end.browser.shop_pages import Served


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served(create_app(Engine(small_embedder()), access=Access(root_path="/images"))) as started:
        yield started


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_it_shows_the_routes_and_sends_requests_to_this_server_alone(browser: Any, served: Served, size: str) -> None:
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height})
    page, troubles = context.new_page(), []
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("console", lambda message: message.type == "error" and troubles.append(f"console: {message.text}"))
    page.on("request", lambda sent: sent.url.startswith((served.address, "data:")) or troubles.append(sent.url))
    page.goto(f"{served.address}/images/api/docs")
    page.get_by_text("/api/search", exact=True).first.wait_for()
    shown = page.locator(".opblock-summary-path").all_inner_texts()
    paths = page.request.get(f"{served.address}/images/api/openapi.json").json()["paths"]
    assert sorted(text.replace("\u200b", "") for text in shown) == sorted(paths)  # one method each
    page.get_by_text("/api/status", exact=True).first.click()
    page.get_by_role("button", name="Try it out").click()
    with page.expect_response(lambda answer: answer.url.endswith("/images/api/status")) as caught:
        page.get_by_role("button", name="Execute").click()
    assert caught.value.status == 200
    page.get_by_text('"keeps_uploads": false').first.wait_for()
    context.close()
    assert troubles == []
