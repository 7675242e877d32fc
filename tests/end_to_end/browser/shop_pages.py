"""A shop with metadata as a real index of each back end, served for tests of its page."""

from __future__ import annotations

import csv
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from calibrated import made_up_calibrator
from diml.calibration.calibrator import FILE
from diml.search import Searcher, build_index, open_store
from diml.search.sources import list_source
from diml.web import Engine, create_app
from diml.web.index import IndexGallery
from diml.web.limits import Limits
from diml.web.server import open_port
from served import drawn, small_embedder

BRANDS = ("Arla", "Oatly", 'O\'Boy "<b>x</b>"', "")
COUNT = 30


class Served:
    """An application at work in a thread of its own."""

    def __init__(self, app: Any) -> None:
        self._socket = open_port(0)
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=5))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def __enter__(self) -> Served:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        self._socket.close()


@dataclass(frozen=True)
class Shop:
    """An index that is served, and what is in it: path -> cells."""

    address: str
    searcher: Searcher
    rows: dict[str, dict[str, str]]
    folder: Path


def write_csv(folder: Path) -> dict[str, dict[str, str]]:
    """Thirty drawn images and their CSV file; one column has a name of two words, some cells are empty."""
    rows = {}
    for number in range(COUNT):
        name = f"{'cartons' if number % 3 else 'fruit'}/{number:02}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        drawn(number).save(folder / name)
        rows[name] = {
            "label": f"product {number % 5}",
            "brand": BRANDS[number % 4],
            "price": f"{1 + number / 4:.2f}",
            "stock": str(number),
            "on sale": str(number % 2 == 0).lower(),
        }
    with (folder / "shop.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *next(iter(rows.values()))])
        writer.writerows([name, *cells.values()] for name, cells in rows.items())
    return rows


def open_shop(folder: Path, index: str) -> tuple[Searcher, dict[str, dict[str, str]]]:
    """Build the index, with a calibration of its own."""
    embedder = small_embedder()
    embedder.save(folder / "model")
    rows = write_csv(folder / "photos")
    listing = list_source(folder / "photos" / "shop.csv", {"price": "number", "on sale": "boolean"})
    build_index(listing, folder / index, embedder, model=str(folder / "model"))
    store = open_store(folder / index)
    store.write_text(FILE, made_up_calibrator(embedder, kind="product", data="our shop").to_json())
    return Searcher(store, embedder), rows


def application(searcher: Searcher) -> Any:
    """The application of an index."""
    engine = Engine(
        searcher.embedder,
        gallery=IndexGallery(searcher, "shop.index"),
        about={"model": "runs/shop-model"},
        calibration=searcher.calibration,
    )
    return create_app(engine, limits=Limits(body_bytes=2_000_000))
