"""Behind a proxy and off this machine: names of hosts, prefix of the path, token; probes need none of them."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed; it is in the extra `web`")
from fastapi.testclient import TestClient

from diml.cli import main
from diml.models import Embedder
from diml.web import Engine, create_app
from diml.web.access import Access, read_token
from diml.web.folder import FolderGallery
from diml.web.server import check_exposure, open_port, serve
from served import MATCHER

TOKEN = "an-open-secret-of-tests"
Make = Callable[..., TestClient]


@pytest.fixture
def open_to(embedder: Embedder, gallery: FolderGallery) -> Iterator[Make]:
    """`open_to(**access)`: a client of an application with this access."""
    opened = []

    def make(**access: Any) -> TestClient:
        app = create_app(Engine(embedder, matcher=MATCHER, gallery=gallery), access=Access(**access))
        opened.append(TestClient(app, base_url="http://127.0.0.1:8765"))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


@pytest.mark.parametrize("host", ["images.example.com", "Images.example.com:443", "[fd00::1]:80", "127.0.0.1"])
def test_allowed_names_are_answered_also_to_their_own_page(open_to: Make, host: str) -> None:
    client = open_to(hosts=("images.example.com", "fd00::1"))
    headers = {"host": host, "origin": f"https://{host.lower()}"}
    assert client.get("/api/status", headers=headers).status_code == 200
    assert client.get("/api/status", headers={"host": "example.com"}).json()["error"]["code"] == "wrong_host"
    assert client.get("/api/status", headers=headers | {"origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize("name", ["https://a.example", "a.example:80", "a/b", "", "a b", "*", "[x]"])
def test_names_with_more_than_a_name_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="allowed_hosts: need names without scheme"):
        Access(hosts=(name,))


@pytest.mark.parametrize("root", ["images", "/images/", "/", "/a//b", "/..", "/a?b"])
def test_prefixes_of_another_form_are_refused(root: str) -> None:
    with pytest.raises(ValueError, match="root_path: need a path"):
        Access(root_path=root)


@pytest.mark.parametrize("stripped", [True, False])
def test_behind_a_prefix_all_is_found_whether_the_proxy_removes_it_or_not(open_to: Make, stripped: bool) -> None:
    client, start = open_to(root_path="/shop/images"), "" if stripped else "/shop/images"
    page = client.get(f"{start}/").text
    assert 'src="page/app.js"' in page
    for address in ("/page/app.js", "/page/viewer.css", "/api/status", "/healthz", "/readyz"):
        assert client.get(start + address).status_code == 200, address
    key = client.get(f"{start}/api/gallery").json()["items"][0]["id"]
    answer = client.post(f"{start}/api/search", params={"id": key, "hits": 2}).json()
    assert all(image["src"].startswith("/shop/images/api/gallery/image?id=") for image in answer["images"])
    assert client.get(answer["images"][1]["src"].removeprefix("/shop/images" if stripped else "")).status_code == 200
    assert client.get(f"{start}/api/openapi.json").json()["servers"] == [{"url": "/shop/images"}]


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", f"bearer  {TOKEN}", basic(TOKEN)])
def test_who_sends_the_token_is_let_in(open_to: Make, header: str) -> None:
    client = open_to(token=TOKEN)
    for address in ("/", "/api/status", "/metrics", "/page/app.js"):
        assert client.get(address, headers={"authorization": header}).status_code == 200


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "no_token"),
        ("", "no_token"),
        ("Bearer", "no_token"),
        (f"Digest {TOKEN}", "no_token"),
        ("Basic %%%", "no_token"),
        ("Basic /w==", "no_token"),
        (basic(""), "no_token"),
        (f"Bearer {TOKEN}x", "wrong_token"),
        (f"Bearer {TOKEN[:-1]}", "wrong_token"),
        (basic(TOKEN.upper()), "wrong_token"),
        (basic("ü"), "wrong_token"),
    ],
)
def test_others_get_nothing_but_the_probes(open_to: Make, header: str | None, code: str) -> None:
    client, headers = open_to(token=TOKEN), {} if header is None else {"authorization": header}
    for address in ("/", "/api/status", f"/api/status?token={TOKEN}", "/metrics", "/page/app.js", "/no", "//healthz"):
        answer = client.get(address, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, code), address
        assert answer.headers["www-authenticate"].startswith("Basic realm=")
        assert TOKEN not in answer.text
    for address in ("/healthz", "/readyz"):
        assert client.get(address, headers={**headers, "host": "10.1.2.3:8765"}).status_code == 200


def test_the_probes_tell_readiness(embedder: Embedder, shop: Path) -> None:
    waiting = FolderGallery(shop, embedder)  # not started
    for gallery, status in ((waiting, 503), (None, 200)):
        client = TestClient(create_app(Engine(embedder, gallery=gallery)), base_url="http://127.0.0.1")
        assert client.get("/healthz").json() == {"status": "ok"}
        answer = client.get("/readyz")
        assert answer.status_code == status
        assert client.head("/readyz").status_code == status
        if status == 503:
            assert answer.json()["error"]["code"] == "gallery_embedding"
            assert answer.headers["retry-after"]


@pytest.mark.parametrize("content", ["", "short", "has spaces in the middle", "umlaut-ü-and-more-text", "x" * 5000])
def test_files_without_a_token_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"token_file .*token.txt: need a token of 16 to 4096") as refused:
        read_token(path)
    assert not content or content not in str(refused.value)
    path.write_text(f"{TOKEN}\n")
    assert read_token(path) == TOKEN
    assert TOKEN not in repr(Access(token=TOKEN))


def test_a_port_that_others_reach_needs_a_token(embedder: Embedder, capsys: pytest.CaptureFixture[str]) -> None:
    with open_port(0, "0.0.0.0") as exposed:
        with pytest.raises(ValueError, match="token_file: need one where other machines reach the server"):
            serve(create_app(Engine(embedder)), exposed)
        check_exposure(exposed, Access(token=TOKEN))
    with open_port(0, "localhost") as local:
        check_exposure(local, Access())
    assert main(["serve", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "--token-file: need one" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-name.invalid"])
def test_an_address_of_another_machine_is_told(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def local(name: str, *more: Any, **named: Any) -> Any:
        if name.endswith(".invalid"):
            raise socket.gaierror
        return real(name, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", local)
    with pytest.raises(OSError, match=f"host: need an address of this machine, got '{host}'"):
        open_port(0, host)
