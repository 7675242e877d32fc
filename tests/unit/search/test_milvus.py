"""Milvus satisfies the contract: Milvus Lite always, a real server in `make test-milvus`; and its own behaviour."""

from __future__ import annotations

import dataclasses
import time
import uuid

import numpy as np
import pytest

from diml.search import Searcher, build_index, open_store
from diml.search.backends import milvus as backend
from diml.search.backends.milvus import LONGEST_TEXT, Connection, MilvusStore, read_place, region_fields
from diml.search.filters import parse_where
from diml.search.index import create_store
from diml.search.store import IndexConfig, Rows
from unit.search.conftest import draw
from unit.search.contract import CONFIG, StoreContract, assert_equal_rows, make_rows, some

pymilvus = pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")


class TestMilvusLite(StoreContract):
    @pytest.fixture
    def uri(self, tmp_path):
        return str(tmp_path / "index.db")


@pytest.mark.milvus
class TestMilvusServer(StoreContract):
    @pytest.fixture
    def uri(self, collection):
        return collection


@pytest.fixture(params=["lite", pytest.param("server", marks=pytest.mark.milvus)])
def milvus(request, tmp_path):
    """A place for an index, in Milvus Lite and on the server."""
    return str(tmp_path / "other.db") if request.param == "lite" else request.getfixturevalue("collection")


WIDE = IndexConfig(dim=32, num_regions=1, storage="float16", columns={"label": "text", "shelf": "integer"})


def wide_rows(count: int, seed: int) -> Rows:
    generator = np.random.default_rng(seed)
    pooled = generator.normal(size=(count, 32)).astype(np.float32)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    coded = generator.integers(0, 256, (count, WIDE.row_bytes), np.uint8)
    metadata = tuple({"label": f"l{row % 7}", "shelf": row} for row in range(count))
    return Rows(tuple(f"{row:05}" for row in range(count)), pooled, coded, metadata)


@pytest.mark.parametrize("where", [None, "label != 'l3' and (shelf < 900 or label in ('l1', 'l2'))"])
def test_top_10_is_that_of_lance(milvus, tmp_path, where):
    pytest.importorskip("lancedb")
    rows, queries = wide_rows(1500, seed=0), wide_rows(40, seed=1).pooled
    condition = None if where is None else parse_where(where, WIDE.columns)
    answers = []
    for place in (str(tmp_path / "folder"), milvus):
        store = create_store(place, WIDE)
        store.add(rows)
        store.remove(rows.ids[:100])
        store.add(some(rows, list(range(50))))
        store.optimize()
        answers.append(store.nearest(queries, 10, where=condition))
        store.close()
    for lance, other in zip(*answers, strict=True):
        assert len(lance.ids) == 10
        assert other.ids == lance.ids
        np.testing.assert_allclose(other.cosine, lance.cosine, atol=1e-6)


def test_search_finds_what_it_finds_in_lance(milvus, tmp_path, photos, embedder, model):
    pytest.importorskip("lancedb")
    hits = []
    draw(7).save(tmp_path / "query.png")
    for place in (str(tmp_path / "folder"), milvus):
        first = build_index(photos, place, embedder, model=str(model), commit_every=5, workers=0)
        again = build_index(photos, place, embedder, model=str(model), workers=0)
        assert (first.embedded, again.embedded, again.unchanged, again.total) == (12, 0, 12, 12)
        with Searcher.open(place) as searcher:
            found = searcher.search(tmp_path / "query.png", 5, where="label = 'class 1'", rerank_at=10)
        hits.append([(hit.id, hit.metadata, pytest.approx(hit.score, abs=1e-6), hit.pooled_rank) for hit in found.hits])
    assert hits[0] == hits[1]
    assert hits[0][0][1]["path"].endswith("7.png")


def test_regions_too_long_for_one_field_take_two(milvus):
    config = dataclasses.replace(CONFIG, dim=128, num_regions=256, grid=None)
    assert len(region_fields(config)) == 2
    generator = np.random.default_rng(0)
    pooled = np.eye(3, 128, dtype=np.float32)
    rows = Rows(tuple("abc"), pooled, generator.integers(0, 256, (3, config.row_bytes), np.uint8), ({},) * 3)
    store = create_store(milvus, config)
    store.add(rows)
    np.testing.assert_array_equal(store.regions(["c", "a"]).coded, rows.coded[[2, 0]])
    store.close()


def test_what_needs_several_messages_and_pages(milvus, monkeypatch):
    """Pages are in the order of ids also where some rows are in sealed segments, and others not yet."""
    monkeypatch.setattr(backend, "_MESSAGE_BYTES", 7 * (4 * 8 + 88 + 2048))
    monkeypatch.setattr(backend, "_PAGE", 6)
    monkeypatch.setattr(backend, "_IDS", 5)
    monkeypatch.setattr(backend, "_ANSWERS", 20)
    rows = make_rows(40)
    store = create_store(milvus, CONFIG)
    store.add(some(rows, list(range(0, 40, 2))))
    store.optimize()
    store.add(some(rows, list(range(1, 40, 2))))
    pages = [part.ids for part in store.listing()]
    assert sum(pages, ()) == rows.ids
    assert len(pages) == 7
    assert_equal_rows(store.regions(rows.ids), rows)
    assert [found.ids[0] for found in store.nearest(rows.pooled, 10)] == list(rows.ids)
    assert store.remove(rows.ids[:23]) == 23
    assert store.count() == 17
    store.close()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda rows: dataclasses.replace(rows, ids=("a", "b", "c" * (LONGEST_TEXT + 1))), "id: need at most 65535"),
        (lambda rows: dataclasses.replace(rows, metadata=({}, {}, {"label": "ü" * 33_000})), "label: need at most"),
        (lambda rows: dataclasses.replace(rows, metadata=({}, {}, {"shelf": 2**63})), "shelf needs whole numbers"),
    ],
)
def test_what_milvus_cannot_hold_is_refused_whole(tmp_path, spoil, told):
    store = create_store(tmp_path / "index.db", CONFIG)
    with pytest.raises(ValueError, match=told):
        store.add(spoil(make_rows(3)))
    assert store.count() == 0
    store.close()


def test_numbers_at_the_edges_survive(milvus):
    rows = make_rows(3)
    entries = (
        {"shelf": 2**63 - 1, "price": 1e308, "label": "x" * LONGEST_TEXT, "fresh": None},
        {"shelf": 1 - 2**63, "price": -5e-324, "label": "", "fresh": False},
        {"shelf": None, "price": 3, "label": None, "fresh": True},
    )
    store = create_store(milvus, CONFIG)
    store.add(dataclasses.replace(rows, metadata=entries))
    assert tuple(dict(entry) for entry in store.regions(rows.ids).metadata) == entries
    store.close()


def test_no_answer_is_larger_than_milvus_gives(tmp_path):
    store = create_store(tmp_path / "index.db", CONFIG)
    with pytest.raises(ValueError, match="k: need at most 16384"):
        store.nearest(make_rows(1).pooled, 16_385)
    store.close()


def test_a_foreign_collection_is_named_as_such(milvus):
    place = read_place(milvus)
    connection = Connection(place)
    connection.call("create_collection", place.collection, dimension=4)
    connection.close()
    with pytest.raises(ValueError, match="diml did not create"):
        open_store(milvus)
    with pytest.raises(ValueError, match="diml did not create"):
        create_store(milvus, CONFIG)


@pytest.mark.milvus
def test_several_indices_on_one_server(milvus_server, collection):
    other = f"{milvus_server}/second_{uuid.uuid4().hex}"
    for uri, count in ((collection, 3), (other, 5)):
        create_store(uri, CONFIG).add(make_rows(count))
    assert (open_store(collection).count(), open_store(other).count()) == (3, 5)
    connection = Connection(read_place(other))
    connection.call("drop_collection", read_place(other).collection)
    connection.close()


@pytest.mark.milvus
def test_no_message_has_the_password_in_it(collection):
    uri = collection.replace("http://", "http://me:secret@")
    store = create_store(uri, CONFIG)
    assert "secret" not in store.info().uri
    with pytest.raises(ValueError, match="another embedder") as caught:
        create_store(uri, dataclasses.replace(CONFIG, embedder="f" * 64))
    assert "secret" not in str(caught.value)
    store.close()


@pytest.mark.milvus
def test_cells_are_only_an_approximation_unless_asked_for(collection, monkeypatch):
    """Sealed segments of a thousand rows and more get their index; few cells are looked into, and all when exact."""
    rows, queries = wide_rows(6000, seed=0), wide_rows(20, seed=1).pooled
    store = create_store(f"{collection}?index=IVF_FLAT", WIDE)
    store.add(rows)
    store.optimize()
    deadline = time.monotonic() + 120
    while store.info().indexed < len(rows) and time.monotonic() < deadline:
        time.sleep(0.2)
    info = store.info()
    assert (info.index, info.indexed, info.rows) == ("IVF_FLAT", 6000, 6000)
    place = read_place(collection)
    connection = Connection(place)
    connection.call("release_collection", place.collection)  # a server goes over to the index in its own time
    connection.close()
    store = open_store(collection)
    best = [tuple(rows.ids[row] for row in np.argsort(-cosine)[:10]) for cosine in queries @ rows.pooled.T]
    exact = [found.ids for found in store.nearest(queries, 10, exact=True)]
    while exact != best and time.monotonic() < deadline:  # what it has not gone over to yet, it estimates
        time.sleep(0.5)
        exact = [found.ids for found in store.nearest(queries, 10, exact=True)]
    assert exact == best
    monkeypatch.setattr(backend, "PROBED", 16)
    found = store.nearest(queries, 10)
    shared = [len(set(one.ids) & set(expected)) for one, expected in zip(found, best, strict=True)]
    assert 100 <= sum(shared) < 200  # of 200; all of them would mean that the index is not in use
    assert [len(one.ids) for one in store.nearest(queries[:2], 6000)] == [6000, 6000]


def test_every_read_says_how_consistent_it_is_to_be(tmp_path, monkeypatch):
    """As the place has it; what precedes a write sees everything."""
    levels = []
    plain = Connection.call

    def recorded(self, method, *args, **settings):
        if method in ("query", "search"):
            levels.append(settings["consistency_level"])
        return plain(self, method, *args, **settings)

    monkeypatch.setattr(Connection, "call", recorded)
    place, rows = read_place(str(tmp_path / "index.db")), make_rows(4)
    made = create_store(tmp_path / "index.db", CONFIG)
    made.add(rows)
    for level in ("Strong", "Bounded"):
        store = MilvusStore(dataclasses.replace(place, consistency=level))
        store.nearest(rows.pooled, 2)
        store.regions(rows.ids)
        store.count()
        list(store.listing())
        assert levels == [level] * 4
        levels.clear()
        assert store.remove(rows.ids[:1]) == (level == "Strong")
        assert levels == ["Strong"]
        levels.clear()
        store.close()
    made.close()
