"""A small shop in memory, and an application that serves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from served import MATCHER, small_embedder, write_shop

pytest.importorskip("fastapi", reason="fastapi is not installed; it is in the extra `web`")
from fastapi.testclient import TestClient

from diml.models import Embedder
from diml.web import Engine, create_app
from diml.web.folder import FolderGallery
from diml.web.limits import Limits


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    return small_embedder()


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shop(tmp_path_factory.mktemp("served") / "shop")


@pytest.fixture(scope="session")
def gallery(shop: Path, embedder: Embedder) -> FolderGallery:
    made = FolderGallery(shop, embedder)
    made.start()
    assert made.wait(120).phase == "ready"
    return made


@pytest.fixture
def client(embedder: Embedder, gallery: FolderGallery) -> Iterator[Callable[..., Any]]:
    """`client(limits=Limits(), keep=None, gallery=...)`: talks to an application as a program on this machine does."""
    opened = []

    def make(limits: Limits | None = None, keep: Path | None = None, gallery: Any = gallery) -> TestClient:
        app = create_app(Engine(embedder, matcher=MATCHER, gallery=gallery), limits=limits, keep=keep)
        opened.append(TestClient(app, base_url="http://127.0.0.1:8765", raise_server_exceptions=True))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
