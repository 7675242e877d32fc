"""Connections that stay silent, send half of their headers, or do not read, are closed and keep nobody out."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed; it is in the extra `web`")
import uvicorn

from diml.web import connections
from diml.web.connections import RareMessages, bounded, most_connections
from diml.web.limits import Limits
from diml.web.server import open_port

LARGE = 20_000_000  # more than the buffers of the system hold


async def app(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    """Answers `/large` with many bytes, `/read` once it has the body, and others at once."""
    body = b"x" * LARGE if scope["path"] == "/large" else b"ok"
    if scope["path"] == "/read":
        while (await receive()).get("more_body"):
            pass
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def serving(**limits: Any) -> Iterator[tuple[int, uvicorn.Server]]:
    """A server in a thread, with these limits: its port, and the server."""
    listener = open_port(0)
    http = bounded(Limits(**limits))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", http=http, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def opened(port: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=20)
    made.settimeout(20)
    return made


def ask(port: int, path: str = "/", *, method: str = "GET") -> bytes:
    """The answer to one request, to its end."""
    with opened(port) as made:
        made.sendall(f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: made.recv(65536), b""))


def is_closed(made: socket.socket) -> bool:
    """Wait until the server closes a connection."""
    try:
        return made.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nhost: x\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",  # and then nothing
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf",  # answered before it has come
    ],
    ids=["nothing", "half of the headers", "a request, then nothing", "half of a body"],
)
def test_a_silent_connection_is_closed(sent: bytes) -> None:
    with serving(header_seconds=0.2) as (port, server), opened(port) as made:
        made.sendall(sent)
        if sent.endswith((b"\r\n\r\n", b"half")):
            while b"ok" not in made.recv(65536):
                pass
        began = time.monotonic()
        assert is_closed(made)
        assert time.monotonic() - began < 10
        assert b"200 OK" in ask(port)
    assert not server.server_state.connections


def test_headers_that_drip_are_not_waited_for() -> None:
    with serving(header_seconds=0.3) as (port, _), opened(port) as made:
        began = time.monotonic()
        with contextlib.suppress(OSError):  # reset, or broken pipe
            for letter in b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 1000:
                made.sendall(bytes([letter]))
                time.sleep(0.02)
        assert time.monotonic() - began < 10


def test_an_answer_that_is_not_read_is_given_up() -> None:
    with serving(header_seconds=0.3) as (port, server), opened(port) as made:
        made.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        for _ in range(400):
            time.sleep(0.025)
            if not server.server_state.connections:
                break
        assert not server.server_state.connections
        assert not server.server_state.tasks
        assert len(ask(port, "/large")) > LARGE  # one that reads gets everything


def test_an_answer_that_is_read_slowly_is_not_cut_off() -> None:
    with serving(header_seconds=0.3) as (port, _), opened(port) as made:
        made.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        read, began = 0, time.monotonic()
        while True:
            part = made.recv(400_000)
            if not part:
                break
            read += len(part)
            time.sleep(0.02)
        assert read > LARGE
        assert time.monotonic() - began > 3 * 0.3


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nho", b"POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"]
)
def test_those_that_are_silent_are_closed_for_others(sent: bytes) -> None:
    with serving(connections=4) as (port, server), ExitStack() as stack:
        held = [stack.enter_context(opened(port)) for _ in range(12)]
        for made in held[-4:]:
            made.sendall(sent)
        for _ in range(10):
            assert b"200 OK" in ask(port)
        assert len(server.server_state.connections) <= 4
        assert all(is_closed(made) for made in held[:8])


def test_when_all_are_being_answered_the_next_is_told_to_come_again() -> None:
    with serving(connections=2) as (port, server), ExitStack() as stack:
        for _ in range(2):  # they do not read
            stack.enter_context(opened(port)).sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        for _ in range(400):
            time.sleep(0.01)
            if sum(not one.is_silent for one in server.server_state.connections) == 2:
                break
        with opened(port) as made:
            answer = b"".join(iter(lambda: made.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        assert b'"code":"busy"' in answer


def test_connections_are_fewer_than_file_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    limits = {"now": (80, 80)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.update(now=new))
    monkeypatch.setattr(connections, "_used_descriptors", lambda: 30)
    assert most_connections(256) == 80 - 30 - 24
    assert limits["now"] == (80, 80)
    limits["now"] = (80, 10_000)
    assert most_connections(256) == 256
    assert limits["now"] == (4096, 10_000)
    limits["now"] = (20, 20)
    assert most_connections(256) == 4


def test_a_message_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(connections.time, "monotonic", lambda: now[0])
    logger = logging.getLogger("diml.web.test")
    rare = RareMessages(10)
    logger.addFilter(rare)
    try:
        for _ in range(1000):
            logger.warning("too %s", "many")
        logger.warning("another")
        now[0] = 11.0
        logger.warning("too %s", "few")
    finally:
        logger.removeFilter(rare)
    told = [record.getMessage() for record in caplog.records]
    assert told == ["too many", "another", "too few (and 999 more like this in the 11 seconds before)"]


def test_messages_that_all_differ_are_not_remembered_for_ever() -> None:
    rare = RareMessages()
    for number in range(5000):
        rare.filter(logging.LogRecord("x", logging.WARNING, "", 0, f"message {number}", (), None))
    assert len(rare._seen) <= 1001
