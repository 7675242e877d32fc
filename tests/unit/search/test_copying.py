"""A copy of an index is the original, in whatever database; or there is none."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from diml.search import Searcher, build_index, open_store
from diml.search import copying as module
from diml.search.backends.lance import LanceStore
from diml.search.copying import copy_index
from diml.search.index import create_store, verify_index
from diml.search.store import DamagedIndexError, IndexNotFoundError
from unit.search.conftest import draw
from unit.search.contract import CONFIG, assert_equal_rows, make_rows

pytest.importorskip("lancedb")
pytest.importorskip("milvus_lite")

COLUMNS = {**CONFIG.columns, "unit price": "number", 'in "stock"?': "boolean"}


@pytest.fixture
def places(request, tmp_path):
    """Kind of database -> a place without an index; the server only where it is asked for."""
    found = {"lance": str(tmp_path / "there" / "copy.index"), "lite": str(tmp_path / "there" / "copy.db")}
    if "server" in getattr(request, "param", ""):
        found["server"] = request.getfixturevalue("collection")
    return found


@pytest.fixture
def original(tmp_path):
    return filled(str(tmp_path / "original.index"))


def filled(place, count=40):
    store = create_store(place, dataclasses.replace(CONFIG, columns=COLUMNS, named_types=("shelf",)))
    rows = make_rows(count)
    odd = {3: {"label": "it's 100%", "unit price": 5e-324}, 7: {}, 8: {'in "stock"?': False, "shelf": 2**63 - 1}}
    entries = tuple(odd.get(row, entry) for row, entry in enumerate(rows.metadata))
    store.add(dataclasses.replace(rows, metadata=entries))
    store.write_text("calibration.json", '{"what": "ü"}')
    store.write_text("notes.json", "{}")
    store.close()
    return place


def assert_same(one, other):
    first, second = open_store(one), open_store(other)
    assert first.config == second.config
    assert first.texts() == second.texts() == ("calibration.json", "notes.json")
    assert [first.read_text(name) for name in first.texts()] == [second.read_text(name) for name in first.texts()]
    ids = [name for part in first.listing() for name in part.ids]
    assert_equal_rows(second.regions(ids), first.regions(ids))
    np.testing.assert_array_equal(second.regions(ids).checksums, first.regions(ids).checksums)
    assert second.count() == len(ids)
    for near, far in zip(*(store.nearest(make_rows(5, seed=3).pooled, 7) for store in (first, second)), strict=True):
        assert near.ids == far.ids
        np.testing.assert_allclose(near.cosine, far.cosine, atol=1e-6)
    assert verify_index(second, images=False).faults == ()
    first.close()
    second.close()


def test_a_copy_is_the_original_in_every_database(original, places, monkeypatch):
    monkeypatch.setattr(module, "_PART_BYTES", 1000)  # ten rows
    steps = []
    report = copy_index(original, places["lite"], progress=steps.append)
    assert (report.rows, report.texts, report.queries) == (40, ("calibration.json", "notes.json"), 32)
    assert report.difference <= 1e-6
    assert sum(steps) == 80
    assert len(steps) >= 8
    copy_index(places["lite"], places["lance"])
    for place in places.values():
        assert_same(original, place)
    assert sorted(entry.name for entry in Path(places["lance"]).parent.iterdir()) == ["copy.db", "copy.index"]


@pytest.mark.milvus
@pytest.mark.parametrize("places", ["server"], indirect=True)
def test_a_copy_is_the_original_between_a_server_and_every_database(original, places, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_PART_BYTES", 1000)
    copy_index(original, places["server"])
    for kind in ("lance", "lite"):
        copy_index(places["server"], places[kind])
    for place in places.values():
        assert_same(original, place)
    with pytest.raises(FileExistsError, match="exists"):
        copy_index(original, places["server"])
    assert_same(original, places["server"])


@pytest.mark.milvus
@pytest.mark.parametrize("places", ["server"], indirect=True)
@pytest.mark.parametrize("stop", [KeyboardInterrupt, None])
def test_what_was_stopped_on_a_server_is_missing_and_done_again(original, places, monkeypatch, stop):
    """An error removes what was written; where a process was killed (here: it cannot remove), the next copy does."""
    from diml.search.backends.milvus import Connection, MilvusStore

    def stopped(self, **_):
        raise stop or OSError

    plain = Connection.call

    def without_drop(self, method, *args, **settings):
        return None if method == "drop_collection" and stop is None else plain(self, method, *args, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(MilvusStore, "optimize", stopped)
        patched.setattr(Connection, "call", without_drop)
        with pytest.raises(stop or OSError):
            copy_index(original, places["server"])
    with pytest.raises(IndexNotFoundError):
        open_store(places["server"])
    copy_index(original, places["server"])
    assert_same(original, places["server"])


@pytest.mark.parametrize("kind", ["lance", "lite"])
def test_what_is_there_is_left_alone(original, places, kind):
    target = Path(places[kind])
    for make in (
        lambda: target.mkdir(parents=True),
        lambda: target.write_text("years of work"),
        lambda: target.symlink_to("nowhere"),
        lambda: filled(str(target), 3),
    ):
        target.parent.mkdir(exist_ok=True)
        make()
        with pytest.raises(FileExistsError, match=r"destination: .* exists; copy to a new place"):
            copy_index(original, target)
        if target.is_symlink() or target.is_file():
            assert target.is_symlink() or target.read_text() == "years of work"
            target.unlink()
        elif any(target.iterdir()):
            store = open_store(target)
            assert store.count() == 3
            store.close()
        else:
            target.rmdir()
    with pytest.raises(FileExistsError):
        copy_index(original, original)


@pytest.mark.parametrize(
    ("kind", "at"), [("lance", "add"), ("lance", "nearest"), ("lite", "write_text"), ("lite", "optimize")]
)
def test_an_interrupted_copy_is_missing_and_its_original_untouched(original, places, monkeypatch, kind, at):
    from diml.search.backends.milvus import MilvusStore

    cls = {"lance": LanceStore, "lite": MilvusStore}[kind]
    plain = getattr(cls, at)

    def stopped(self, *args, **settings):
        if "there" in str(self.info().uri):
            raise KeyboardInterrupt
        return plain(self, *args, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(cls, at, stopped)
        with pytest.raises(KeyboardInterrupt):
            copy_index(original, places[kind])
    assert list(Path(places[kind]).parent.iterdir()) == []
    copy_index(original, places[kind])
    assert_same(original, places[kind])


def test_a_source_that_changes_meanwhile_is_not_copied(original, places, monkeypatch):
    plain = LanceStore.nearest

    def changed(self, *args, **settings):
        if self.folder == Path(original):
            open_store(original).remove(["image 0001"])
        return plain(self, *args, **settings)

    monkeypatch.setattr(LanceStore, "nearest", changed)
    with pytest.raises(ValueError, match="source: the index was changed while it was being copied"):
        copy_index(original, places["lance"])
    assert not Path(places["lance"]).exists()


def test_a_copy_that_is_another_one_is_not_kept(original, places, monkeypatch):
    plain = LanceStore.add

    def other(self, rows):
        entries = ({**rows.metadata[0], "label": "another"}, *rows.metadata[1:])
        plain(self, dataclasses.replace(rows, metadata=entries))

    with monkeypatch.context() as patched:
        patched.setattr(LanceStore, "add", other)
        with pytest.raises(OSError, match="rows came back as other than they were copied"):
            copy_index(original, places["lance"])
    plain_nearest = LanceStore.nearest

    def far(self, *args, **settings):
        found = plain_nearest(self, *args, **settings)
        return [dataclasses.replace(one, cosine=one.cosine + np.float32(2e-6)) for one in found]

    from diml.search.backends.milvus import MilvusStore

    with monkeypatch.context() as patched:
        patched.setattr(LanceStore, "nearest", far)
        with pytest.raises(OSError, match=r"searches differ by 2\.\de-06"):
            copy_index(original, places["lite"])
        patched.setattr(MilvusStore, "nearest", lambda self, pooled, *_, **__: [])
        with pytest.raises(OSError, match="searches differ by inf"):
            copy_index(original, places["lite"])
    assert not any(Path(place).exists() for place in places.values())


def test_a_damaged_source_is_not_copied(original, places):
    store = open_store(original)
    store._table.update(where="id = 'image 0002'", values={"label": "spoilt"})
    with pytest.raises(DamagedIndexError, match="image 0002"):
        copy_index(original, places["lite"])
    assert not Path(places["lite"]).exists()
    with pytest.raises(IndexNotFoundError):
        copy_index(places["lite"], places["lance"])


def test_what_milvus_cannot_hold_is_told_and_nothing_kept(original, places):
    open_store(original).write_text("head.json", "x" * 1_000_001)
    with pytest.raises(ValueError, match=r"head\.json is 1,000,001 bytes, and Milvus keeps at most"):
        copy_index(original, places["lite"])
    open_store(original).write_text("head.json", "x")
    open_store(original).add(dataclasses.replace(make_rows(1, prefix="long"), metadata=({"label": "x" * 70_000},)))
    with pytest.raises(ValueError, match="label: need at most 65535 bytes"):
        copy_index(original, places["lite"])
    assert not Path(places["lite"]).exists()


def test_an_empty_index_and_a_full_disk(tmp_path, places, original, monkeypatch):
    create_store(tmp_path / "empty", CONFIG)
    assert copy_index(tmp_path / "empty", places["lite"]).rows == 0
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="free disk space"):
        copy_index(original, places["lance"])


def test_a_copy_is_searched_and_brought_up_to_date_like_its_original(tmp_path, photos, embedder, model, places):
    """Nothing is embedded again, and the scores are those of the original."""
    build_index(photos, tmp_path / "first", embedder, model=str(model), workers=0)
    draw(7).save(tmp_path / "query.png")
    hits = []
    for place in (str(tmp_path / "first"), places["lite"], places["lance"]):
        if hits:
            copy_index(tmp_path / "first", place)
        again = build_index(photos, place, embedder, model=str(model), workers=0)
        assert (again.embedded, again.unchanged, again.total) == (0, 12, 12)
        with Searcher.open(place) as searcher:
            found = searcher.search(tmp_path / "query.png", 12, rerank_at=12)
        hits.append([(hit.id, hit.metadata, pytest.approx(hit.score, abs=1e-6)) for hit in found.hits])
    assert hits[0] == hits[1] == hits[2]
