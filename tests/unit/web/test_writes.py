"""Images put into an index over HTTP: as a whole or not at all, as `diml index build` would have put them there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="fastapi is not installed; it is in the extra `web`")
pytest.importorskip("lancedb", reason="lancedb is not installed; it is in the extra `search`")
from fastapi.testclient import TestClient

from diml.files import exclusive_lock, only_user
from diml.models import Embedder
from diml.search import Searcher, build_index, open_store
from diml.search.index import verify_index
from diml.web import Engine, create_app, writes
from diml.web.access import Access
from diml.web.errors import ApiError
from diml.web.index import IndexGallery
from diml.web.limits import Limits
from diml.web.writes import IndexWriter, checked_metadata, checked_path
from served import MATCHER, content_of, drawn, write_shop

TOKEN = "an-open-secret-of-tests"
A, B = content_of(drawn(20)), content_of(drawn(31))
COLUMNS = {"label": "text", "price": "number", "stock": "integer", "new": "boolean"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Path:
    folder = tmp_path_factory.mktemp("writes")
    embedder.save(folder / "model")
    images = sorted(write_shop(folder / "shop", 4).rglob("*.png"))
    rows = [f"{file.relative_to(folder)},milk,{place}.5,{place},true" for place, file in enumerate(images)]
    (folder / "shop.csv").write_text("\n".join(["path,label,price,stock,new", *rows]))
    build_index(folder / "shop.csv", folder / "shop.index", embedder, model=str(folder / "model"))
    return folder


class Served:
    """An application over an index whose clients may write."""

    def __init__(self, index: Path, added: Path, embedder: Embedder) -> None:
        self.store, self.added = open_store(index), added
        searcher = Searcher(self.store, embedder)
        engine = Engine(embedder, matcher=MATCHER, gallery=IndexGallery(searcher, "shop.index"))
        app = create_app(
            engine, access=Access(token=TOKEN), writer=IndexWriter(searcher, added), limits=Limits(body_bytes=2**20)
        )
        self.client = TestClient(app, base_url="http://127.0.0.1:8765", headers={"authorization": f"Bearer {TOKEN}"})

    def put(self, image: bytes, **fields: str) -> Any:
        return self.client.post("/api/images", files={"image": ("a.png", image)}, data=fields)

    def state(self) -> tuple[set[str], dict[str, bytes]]:
        """Ids in the index, and the files of the folder."""
        files = [file for file in self.added.rglob("*") if file.is_file() and not file.name.startswith(".")]
        ids = {key for part in self.store.listing() for key in part.ids}
        return ids, {str(file.relative_to(self.added)): file.read_bytes() for file in files}


@pytest.fixture
def served(made: Path, tmp_path: Path, embedder: Embedder) -> Iterator[Served]:
    opened = Served(made / "shop.index", tmp_path / "added", embedder)
    before, _ = opened.state()
    yield opened
    opened.client.close()
    opened.store.remove(sorted(opened.state()[0] - before))


def refused(answer: Any, status: int, code: str) -> dict[str, str]:
    assert answer.status_code == status, answer.text
    error: dict[str, str] = answer.json()["error"]
    assert error["code"] == code
    assert error["remedy"]
    return error


def test_an_image_is_as_a_build_of_its_folder_would_have_it(
    served: Served, embedder: Embedder, made: Path, tmp_path: Path
) -> None:
    answer = served.put(A, path="milk/a.png", metadata='{"price": 2, "stock": 7}')
    assert answer.status_code == 201
    told = answer.json()
    assert told["metadata"] == {"price": 2.0, "stock": 7, "label": "milk"}
    build_index(served.added, tmp_path / "own.index", embedder, model=str(made / "model"))
    own = open_store(tmp_path / "own.index")
    (key,) = [key for part in own.listing() for key in part.ids]
    assert key == told["id"]
    built, written = own.regions([key]), served.store.regions([key])
    assert np.array_equal(built.pooled, written.pooled)
    assert np.array_equal(built.coded, written.coded)
    for column in ("source", "path", "content", "label"):
        assert built.metadata[0][column] == written.metadata[0][column]
    assert verify_index(served.store).faults == ()
    hits = served.client.post("/api/search?hits=1", files={"query": A}).json()["pairs"]
    assert (hits[0]["hit"]["id"], hits[0]["hit"]["metadata"]["price"]) == (key, 2.0)


def test_it_is_replaced_as_a_whole_shown_anew_and_removed_with_its_file(served: Served) -> None:
    key = served.put(A, path="a.png", metadata='{"price": 1, "label": "milk"}').json()["id"]
    shown = served.client.get(f"/api/gallery/image?id={key}")
    assert shown.headers["cache-control"] == "private, no-cache"
    again = served.client.get(f"/api/gallery/image?id={key}", headers={"if-none-match": shown.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    answer = served.put(B, path="a.png", metadata='{"stock": 3}')
    assert (answer.status_code, answer.json()["id"], answer.json()["created"]) == (200, key, False)
    (entry,) = served.store.listed([key]).metadata
    assert (entry["price"], entry["label"], entry["stock"]) == (None, None, 3)
    assert entry["content"] == hashlib.sha256(B).hexdigest()
    other = served.client.get(f"/api/gallery/image?id={key}", headers={"if-none-match": shown.headers["etag"]})
    assert other.status_code == 200
    assert other.content != shown.content
    assert served.client.delete(f"/api/images/{key}").json() == {"id": key, "file_removed": True}
    assert served.state()[1] == {}
    refused(served.client.delete(f"/api/images/{key}"), 404, "no_such_image")
    refused(served.client.get(f"/api/gallery/image?id={key}"), 404, "no_such_image")


def test_the_file_of_another_source_is_kept(served: Served, made: Path) -> None:
    item = served.client.get("/api/gallery").json()["items"][0]
    rows = served.store.regions([item["id"]])
    try:
        assert served.client.delete(f"/api/images/{item['id']}").json()["file_removed"] is False
        assert (made / item["name"]).is_file()
    finally:
        served.store.add(dataclasses.replace(rows, checksums=None))


@pytest.mark.parametrize(
    ("fields", "code", "told"),
    [
        ({"metadata": '{"price": "2"}'}, "bad_metadata", "price needs a number, got '2'"),
        ({"metadata": '{"price": NaN}'}, "bad_metadata", "price needs a number, got nan"),
        ({"metadata": '{"stock": 1.5}'}, "bad_metadata", "stock needs a whole number, got 1.5"),
        ({"metadata": '{"stock": 9223372036854775808}'}, "bad_metadata", "stock needs a whole number"),
        ({"metadata": '{"new": 1}'}, "bad_metadata", "new needs true or false, got 1"),
        ({"metadata": '{"label": 7}'}, "bad_metadata", "label needs a text, got 7"),
        ({"metadata": '{"label": "\\ud800"}'}, "bad_metadata", "label needs a text"),
        ({"metadata": '{"prize": 2}'}, "bad_metadata", "did you mean 'price'?"),
        ({"metadata": '{"content": "x"}'}, "bad_metadata", "content is set by the server"),
        ({"metadata": "[1]"}, "bad_metadata", "need a JSON object"),
        ({"metadata": "{"}, "bad_metadata", "not readable as JSON"),
        ({"path": "../a.png"}, "bad_path", "below the folder"),
        ({"path": "/etc/a.png"}, "bad_path", "below the folder"),
        ({"path": "a/.hidden.png"}, "bad_path", "below the folder"),
        ({"path": "a\\b.png"}, "bad_path", "no backslashes"),
        ({"path": "a.txt"}, "bad_path", "the ending of an image"),
        ({"path": "link/a.png"}, "bad_path", "below that of the images"),
        ({"path": f"{'a' * 300}.png"}, "bad_path", "255 bytes"),
        ({"paht": "a.png"}, "unknown_parameter", "did you mean 'path'?"),
    ],
)
def test_what_does_not_fit_is_told_and_changes_nothing(
    served: Served, tmp_path: Path, fields: dict[str, str], code: str, told: str
) -> None:
    (served.added / "link").symlink_to(tmp_path)
    before = served.state()
    error = refused(served.put(A, **fields), 422, code)
    assert told in error["message"]
    if code == "bad_metadata":
        assert "price (number)" in error["remedy"]
    assert served.state() == before
    assert not (tmp_path / "a.png").exists()


def test_what_is_no_image_or_has_no_token_changes_nothing(served: Served) -> None:
    before = served.state()
    refused(served.put(b"words", path="a.png"), 422, "bad_image")
    refused(served.put(A[:900], path="a.png"), 422, "bad_image")
    refused(served.put(b"x" * 2**21, path="a.png"), 413, "too_large")
    refused(served.client.post("/api/images", data={"path": "a.png"}, files={"x": b""}), 422, "unknown_parameter")
    refused(served.client.post("/api/images"), 422, "missing_image")
    for headers in ({"authorization": ""}, {"authorization": "Bearer wrong-wrong-wrong-wrong"}):
        one = served.client.post("/api/images", files={"image": ("a.png", A)}, headers=headers)
        assert one.status_code == 401
        assert served.client.delete(f"/api/images/{min(before[0])}", headers=headers).status_code == 401
    foreign = served.client.post(
        "/api/images", files={"image": ("a.png", A)}, headers={"origin": "https://evil.example"}
    )
    assert foreign.status_code == 403
    assert served.state() == before


def test_a_write_that_fails_leaves_the_old_image(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    key = served.put(A, path="a.png", metadata='{"price": 1}').json()["id"]
    before = served.state(), served.store.listed([key]).metadata

    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(type(served.store), "add", lambda _, rows: full(rows))
        for path in ("a.png", "new.png"):
            assert "No space left" in refused(served.put(B, path=path), 507, "cannot_write")["message"]
    assert (served.state(), served.store.listed([key]).metadata) == before
    assert not list(served.added.glob(".diml-*"))
    assert served.put(B, path="a.png").status_code == 200


#: A server that is killed when a file is in its folder and its row is about to be written.
KILLED = """
import os, signal, sys
from pathlib import Path
from fastapi.testclient import TestClient
from diml.models import load_embedder
from diml.search import Searcher, open_store
from diml.web import Engine, create_app
from diml.web.access import Access
from diml.web.index import IndexGallery
from diml.web.writes import IndexWriter

index, added, model, image, token = sys.argv[1:]
store = open_store(index)
type(store).add = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
searcher = Searcher(store, load_embedder(model))
engine = Engine(searcher.embedder, matcher=searcher.matcher, gallery=IndexGallery(searcher, "shop.index"))
app = create_app(engine, access=Access(token=token), writer=IndexWriter(searcher, Path(added)))
client = TestClient(app, base_url="http://127.0.0.1:8765", headers={"authorization": f"Bearer {token}"})
client.post("/api/images", files={"image": ("b.png", Path(image).read_bytes())}, data={"path": "a.png"})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_server_killed_between_a_file_and_its_row_leaves_the_old_row_and_is_told(
    served: Served, made: Path, tmp_path: Path
) -> None:
    key = served.put(A, path="a.png", metadata='{"price": 1}').json()["id"]
    row = served.store.regions([key])
    (tmp_path / "b.png").write_bytes(B)
    paths = [made / "shop.index", served.added, made / "model", tmp_path / "b.png"]
    run = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, paths), TOKEN], check=False, capture_output=True, text=True
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    after = served.store.regions([key])
    assert after.metadata == row.metadata
    assert np.array_equal(after.coded, row.coded)
    assert (served.added / "a.png").read_bytes() == B
    (stale,) = verify_index(served.store).stale
    assert "a.png" in stale
    assert served.put(B, path="a.png").status_code == 200  # as a client does that had no answer
    assert verify_index(served.store).ok


def test_while_another_process_writes_clients_are_told_to_come_again(
    served: Served, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writes, "_WAIT", 0.2)
    key = served.put(A, path="a.png").json()["id"]
    before = served.state()
    for lock in (
        lambda: exclusive_lock(made / "shop.index" / "writer.lock"),  # diml index build
        lambda: only_user(served.added, "allow_writes"),  # another server process
    ):
        with lock():
            for answer in (served.put(B, path="b.png"), served.client.delete(f"/api/images/{key}")):
                refused(answer, 503, "index_in_use")
                assert int(answer.headers["retry-after"]) >= 1
        assert served.state() == before
    assert served.put(B, path="b.png").status_code == 201


def test_a_database_that_does_not_answer_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any, **__: Any) -> Any:
        raise ConnectionError("index: no Milvus answers at http://secret-host:19530/images")

    before = served.state()
    with monkeypatch.context() as patched:
        for method in ("count", "listed", "add"):
            patched.setattr(type(served.store), method, lost)
        for answer in (
            served.client.get("/readyz"),
            served.client.post("/api/search", files={"query": A}),
            served.put(A, path="a.png"),
        ):
            error = refused(answer, 503, "index_unavailable")
            assert "secret-host" not in str(error)
            assert answer.headers["retry-after"]
    assert served.state() == before


def test_many_clients_write_at_the_same_time(served: Served) -> None:
    codes: list[int] = []

    def write(number: int) -> None:
        codes.append(served.put(content_of(drawn(number)), path=f"{number % 3}.png").status_code)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(9)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(codes) == [200] * 6 + [201] * 3
    assert len(served.state()[1]) == 3
    assert verify_index(served.store).ok


def test_a_server_that_only_reads_says_how_writes_are_allowed(
    served: Served, embedder: Embedder, tmp_path: Path
) -> None:
    app = create_app(Engine(embedder))
    client = TestClient(app, base_url="http://127.0.0.1")
    refused(client.post("/api/images", files={"image": ("a.png", A)}), 403, "read_only")
    refused(client.delete("/api/images/1"), 403, "read_only")
    assert "/api/images" not in client.get("/api/openapi.json").json()["paths"]
    with pytest.raises(ValueError, match="allow_writes: need a token"):
        create_app(Engine(embedder), writer=IndexWriter(Searcher(served.store, embedder), tmp_path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2),
)


def result_or_error(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except ApiError as error:
        return error


@given(st.dictionaries(st.sampled_from([*COLUMNS, "other"]), JSON))
def test_any_metadata_is_of_the_columns_types_or_an_error(metadata: dict[str, Any]) -> None:
    types = {"text": str, "number": float, "integer": int, "boolean": bool}
    found = result_or_error(lambda: checked_metadata(json.dumps(metadata), COLUMNS))
    if isinstance(found, ApiError):
        assert (found.status, found.code) == (422, "bad_metadata")
        assert found.remedy
        return
    assert found.keys() == metadata.keys()
    assert all(value is None or type(value) is types[COLUMNS[name]] for name, value in found.items())


@given(st.text(st.sampled_from("ab./\\\0\nü .png"), max_size=30))
def test_any_path_stays_in_the_folder_or_is_an_error(path: str) -> None:
    found = result_or_error(lambda: checked_path(path))
    if isinstance(found, ApiError):
        assert (found.status, found.code) == (422, "bad_path")
        return
    inside = Path("/folder") / found
    assert inside.is_relative_to("/folder")
    assert ".." not in inside.parts
    assert inside.suffix == ".png"
    assert checked_path(found) == found
