"""CORS: pages of the origins that were allowed may use the API with the token, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed; it is in the extra `web`")
from fastapi.testclient import TestClient

from diml.models import Embedder
from diml.web import Engine, create_app
from diml.web.access import Access
from diml.web.folder import FolderGallery
from served import MATCHER

TOKEN = "an-open-secret-of-tests"
SHOP, EVIL = "https://shop.example.com", "https://evil.example"
ASKED = {"access-control-request-method": "DELETE", "access-control-request-headers": "authorization"}
WITH_TOKEN = {"authorization": f"Bearer {TOKEN}"}
Make = Callable[..., TestClient]


@pytest.fixture
def open_to(embedder: Embedder, gallery: FolderGallery) -> Iterator[Make]:
    """`open_to(*origins)`: a client of an application that needs the token."""
    opened = []

    def make(*origins: str) -> TestClient:
        app = create_app(
            Engine(embedder, matcher=MATCHER, gallery=gallery), access=Access(token=TOKEN, origins=origins)
        )
        opened.append(TestClient(app, base_url="http://127.0.0.1:8765"))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_a_browser_may_ask_for_an_allowed_page_and_it_may_read_answers_and_errors(open_to: Make) -> None:
    client = open_to("https://other.example:8443", "HTTPS://Shop.example.com:443/")
    asked = client.options("/api/images/1", headers={"origin": SHOP, **ASKED})
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == SHOP
    assert "authorization" in asked.headers["access-control-allow-headers"].lower()
    assert {"GET", "POST", "DELETE"} <= set(asked.headers["access-control-allow-methods"].split(", "))
    assert "access-control-allow-credentials" not in asked.headers
    across = {"origin": SHOP, "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}
    answer = client.get("/api/gallery", headers={**across, **WITH_TOKEN})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == SHOP
    assert "origin" in answer.headers["vary"].lower()
    refused = client.get("/api/gallery", headers=across)  # the page learns that the token is missing
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "no_token")
    assert refused.headers["access-control-allow-origin"] == SHOP
    assert refused.headers["access-control-expose-headers"] == "Retry-After"
    strange = client.get("/api/gallery", headers={**across, **WITH_TOKEN, "host": "evil.example"})
    assert strange.status_code == 421


@pytest.mark.parametrize("origins", [(), (SHOP,)])
@pytest.mark.parametrize(
    "origin", [EVIL, "http://shop.example.com", f"{SHOP}:8443", f"{SHOP}.evil.example", "null", ""]
)
def test_all_other_pages_are_refused(open_to: Make, origins: tuple[str, ...], origin: str) -> None:
    client = open_to(*origins)
    asked = client.options("/api/gallery", headers={"origin": origin, **ASKED})
    assert (asked.status_code, asked.json()["error"]["code"]) == (403, "foreign_page")
    answer = client.get("/api/gallery", headers={"origin": origin, **WITH_TOKEN})
    assert answer.status_code == 403
    assert not [name for name in (*asked.headers, *answer.headers) if name.startswith("access-control")]
    assert ("origin" in answer.headers.get("vary", "").lower()) == bool(origins)


def test_programs_and_the_own_page_are_answered_as_without(open_to: Make) -> None:
    client = open_to(SHOP)
    for headers in ({}, {"origin": "http://127.0.0.1:8765", "sec-fetch-site": "same-origin"}):
        answer = client.get("/api/gallery", headers={**headers, **WITH_TOKEN})
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["vary"].lower() == "origin"  # a cache keeps it for them alone


@pytest.mark.parametrize(
    "origin", ["*", "null", "shop.example.com", "https://a.example/b", "ftp://a.example", "", "https://"]
)
def test_origins_of_another_form_are_refused(origin: Any) -> None:
    with pytest.raises(ValueError, match="allow_origins: need origins of pages"):
        Access(origins=(origin,))
