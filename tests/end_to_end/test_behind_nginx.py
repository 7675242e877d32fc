"""`diml serve` behind a real nginx with the configuration of docs/serve.md: prefix, host, sizes, time-outs, the end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from debian import require_program
from diml.search import build_index
from end_to_end.test_serve import serving
from end_to_end.test_serve_processes import form, until
from served import content_of, drawn, small_embedder, write_shop

pytest.importorskip("fastapi", reason="fastapi is not installed; it is in the extra `web`")
pytest.importorskip("lancedb", reason="lancedb is not installed; it is in the extra `search`")

TOKEN = "an-open-secret-of-tests"
NAME = "images.example.com"
ROOT = Path(__file__).parents[2]
NGINX = Path("/usr/sbin/nginx")


class Site(NamedTuple):
    """A server and the nginx before it, in a folder; `unbuffered` passes a body on while it arrives."""

    process: subprocess.Popen[str]
    folder: Path
    port: int
    unbuffered: int

    def ask(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> tuple[int, Any, bytes]:
        sent = {"Host": NAME, "Authorization": f"Bearer {TOKEN}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        address = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(address, data=body or None, method=method, headers=sent)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def configuration(folder: Path, server: str, port: int, unbuffered: int) -> str:
    """The server block of the document with these ports, without TLS, and a second one that does not buffer bodies."""
    (block,) = re.findall(r"^```nginx\n(.*?)^```", (ROOT / "docs/serve.md").read_text(), re.MULTILINE | re.DOTALL)
    assert "listen 443 ssl;" in block
    assert "proxy_pass http://127.0.0.1:8765;" in block
    assert "proxy_read_timeout 70s;" in block
    block = re.sub(r"^ *ssl_.*\n", "", block, flags=re.MULTILINE).replace("http://127.0.0.1:8765", server)
    block = block.replace("proxy_read_timeout 70s;", "proxy_read_timeout 3s;")
    first = block.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    second = block.replace("listen 443 ssl;", f"listen 127.0.0.1:{unbuffered};")
    second = second.replace("proxy_pass", "proxy_request_buffering off; proxy_pass")
    user = "user root;" if os.geteuid() == 0 else ""
    kept = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"{user} daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {kept}\n{first}\n{second} }}"
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nginx")
    embedder = small_embedder()
    embedder.save(folder / "model")
    build_index(write_shop(folder / "shop", 5), folder / "shop.index", embedder, model=str(folder / "model"))
    (folder / "token").write_text(TOKEN)
    return folder


@pytest.fixture(scope="module")
def site(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(shutil.copytree(shop, tmp_path_factory.mktemp("site") / "shop")) as one:
        yield one


@contextmanager
def running(shop: Path) -> Iterator[Site]:
    """A server of this folder, and nginx before it."""
    nginx = require_program(NGINX, "nginx-light")
    options = ["--index", "shop.index", "--token-file", "token", "--max-megabytes", "1"]
    port, unbuffered = free_port(), free_port()
    with serving(shop, *options, "--allowed-hosts", NAME, "--root-path", "/images") as (process, address):
        (shop / "nginx.conf").write_text(configuration(shop, address, port, unbuffered))
        with subprocess.Popen([nginx, "-p", shop, "-e", shop / "error.log", "-c", shop / "nginx.conf"]) as proxy:
            try:
                until(lambda: is_open(port))
                yield Site(process, shop, port, unbuffered)
            finally:
                proxy.terminate()


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def test_all_is_found_behind_the_prefix(site: Site) -> None:
    status, headers, page = site.ask("/images/")
    assert status == 200
    assert "script-src 'self'" in headers["content-security-policy"]
    for name in re.findall(rb'(?:src|href)="(page/[^"]+)"', page):
        assert site.ask(f"/images/{name.decode()}")[0] == 200
    assert site.ask("/images/healthz")[0] == 200
    body, kind = form(query=content_of(drawn(3)))
    status, _, told = site.ask("/images/api/search?hits=2", "POST", body, origin=f"https://{NAME}", **kind)
    assert status == 200, told
    for image in json.loads(told)["images"][1:]:
        assert image["src"].startswith("/images/api/gallery/image?id=")
        assert site.ask(image["src"])[1]["content-type"] == "image/jpeg"
    description = json.loads(site.ask("/images/api/openapi.json")[2])
    assert description["servers"] == [{"url": "/images"}]
    assert b"docs/start.js" in site.ask("/images/api/docs")[2]
    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as plain:
        plain.sendall(f"GET /images HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
        assert b"301" in (moved := plain.recv(4096))  # nginx leads to the page
        assert b"/images/" in moved
    assert site.ask("/api/status")[0] == 404  # not behind the prefix: nginx has nothing there


def test_other_names_pages_and_tokens_are_refused(site: Site) -> None:
    for code, headers in (
        ("wrong_host", {"Host": "evil.example"}),
        ("foreign_page", {"origin": "https://evil.example"}),
        ("no_token", {"Authorization": ""}),
        ("wrong_token", {"Authorization": "Bearer another-one-than-this"}),
    ):
        status, _, told = site.ask("/images/api/status", **headers)
        assert (status, json.loads(told)["error"]["code"]) == (
            {"wrong_host": 421, "foreign_page": 403}.get(code, 401), code,
        )  # fmt: skip


def test_too_large_bodies_are_refused_by_the_server_and_before_it(site: Site) -> None:
    body, kind = form(query=b"x" * 2**21)
    status, _, told = site.ask("/images/api/search", "POST", body, **kind)
    assert (status, json.loads(told)["error"]["code"]) == (413, "too_large")
    body, kind = form(query=b"x" * (34 * 2**20))
    assert site.ask("/images/api/search", "POST", body, **kind)[0] == 413
    assert site.ask("/images/api/status")[0] == 200


def test_a_server_that_hangs_is_a_time_out_of_nginx_and_recovers(site: Site) -> None:
    site.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert site.ask("/images/api/status")[0] == 504
        assert 2 < time.monotonic() - began < 30
    finally:
        site.process.send_signal(signal.SIGCONT)
    until(lambda: site.ask("/images/readyz")[0] == 200)


def test_requests_in_progress_end_and_new_ones_are_refused_at_the_end(shop: Path, tmp_path: Path) -> None:
    with running(shutil.copytree(shop, tmp_path / "shop")) as site:  # of its own, as it ends the server
        end_with_a_request_in_progress(site)


def end_with_a_request_in_progress(site: Site) -> None:
    body, kind = form(query=content_of(drawn(4)))
    lines = [
        "POST /images/api/search?hits=1 HTTP/1.1", f"Host: {NAME}", f"Content-Length: {len(body)}",
        f"Authorization: Bearer {TOKEN}", f"Content-Type: {kind['content_type']}", "Connection: close",
    ]  # fmt: skip
    with socket.create_connection(("127.0.0.1", site.unbuffered), timeout=30) as slow:
        slow.sendall("\r\n".join([*lines, "", ""]).encode() + body[:-900])
        time.sleep(1)  # it has arrived at the server
        site.process.send_signal(signal.SIGTERM)
        until(lambda: site.ask("/images/healthz")[0] == 502)
        slow.sendall(body[-900:])
        with slow.makefile("rb") as stream:
            answer = stream.read()
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b'"rank":1' in answer
    assert site.process.wait(60) == 0
    assert (site.folder / "log").read_text().endswith("Stopped.\n")
