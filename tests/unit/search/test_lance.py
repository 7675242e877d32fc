"""LanceDB satisfies the contract; and its own behaviour."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from diml.extras import MissingExtraError
from diml.search import open_store
from diml.search.backends import lance
from diml.search.filters import parse_where
from diml.search.index import create_store
from diml.search.store import DamagedIndexError, IndexNotFoundError
from unit.search.contract import CONFIG, StoreContract, make_rows


class TestLanceStore(StoreContract):
    @pytest.fixture
    def uri(self, tmp_path):
        return str(tmp_path / "index")


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        create_store(tmp_path, CONFIG)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_place_for_an_index(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        create_store(tmp_path / "file", CONFIG)


def test_a_foreign_lance_folder_is_named_as_such(tmp_path):
    lancedb = pytest.importorskip("lancedb")
    lancedb.connect(tmp_path).create_table("images", data=[{"id": "a"}])
    with pytest.raises(ValueError, match="diml did not create"):
        open_store(tmp_path)


def test_a_missing_extra_is_named_with_the_remedy(tmp_path, monkeypatch):
    create_store(tmp_path / "index", CONFIG).add(make_rows(1))
    monkeypatch.setitem(__import__("sys").modules, "lancedb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'diml\[search\]'"):
        open_store(tmp_path / "index")


@pytest.mark.parametrize("left", ["images.lance", "images.lance/_versions", "images.lance/data"])
def test_what_a_killed_creation_left_is_no_index_and_no_hindrance(tmp_path, left):
    (tmp_path / "index" / left).mkdir(parents=True)
    with pytest.raises(IndexNotFoundError):
        open_store(tmp_path / "index")
    store = create_store(tmp_path / "index", CONFIG)
    store.add(make_rows(3))
    assert store.count() == 3


def test_removing_very_many_at_once(tmp_path):
    store = create_store(tmp_path / "index", CONFIG)
    rows = make_rows(10)
    store.add(rows)
    assert store.remove([*rows.ids[:9], *(f"nobody {number}" for number in range(20_000))]) == 9
    assert store.count() == 1


@pytest.fixture
def indexed(tmp_path, monkeypatch):
    """A store with an index over pooled vectors, as large ones have; rows of it."""
    monkeypatch.setattr(lance, "INDEX_FROM", 1000)
    store = create_store(tmp_path / "index", CONFIG)
    rows = make_rows(3000)
    store.add(rows)
    store.optimize()
    assert (store.info().index, store.info().indexed) == ("IvfFlat", 3000)
    return store, rows


def test_an_index_misses_next_to_nothing(indexed):
    store, rows = indexed
    queries = make_rows(20, seed=1).pooled
    shares = []
    for found, cosine in zip(store.nearest(queries, 50), queries @ rows.pooled.T, strict=True):
        best = {rows.ids[row] for row in np.argsort(-cosine)[:50]}
        shares.append(len(best & set(found.ids)) / 50)
        np.testing.assert_allclose(found.cosine, np.sort(found.cosine)[::-1])
    assert np.mean(shares) >= 0.99


def test_rows_written_after_the_index_are_found_and_removed_ones_are_not(indexed):
    store, rows = indexed
    late = make_rows(5, seed=8, prefix="late")
    store.add(late)
    store.remove(rows.ids[:2])
    found = store.nearest(np.concatenate([late.pooled, rows.pooled[:2]]), 1)
    assert [near.ids[0] for near in found[:5]] == list(late.ids)
    assert {near.ids[0] for near in found[5:]}.isdisjoint(rows.ids[:2])
    assert (store.info().rows, store.info().indexed) == (3003, 2998)
    store.optimize()
    assert store.info().indexed == 3003
    assert [near.ids[0] for near in store.nearest(late.pooled, 1)] == list(late.ids)


def test_a_rare_condition_still_finds_k_rows(indexed):
    """They lie in cells of the index that the query would not look into."""
    store, rows = indexed
    where = parse_where("shelf >= 2990", CONFIG.columns)
    best = [rows.ids[2990 + row] for row in np.argsort(-(rows.pooled[2990:] @ rows.pooled[0]))]
    assert list(store.nearest(rows.pooled[:1], 10, where=where)[0].ids) == best
    assert store.nearest(rows.pooled[:1], 10, where=where, exact=True)[0].ids == tuple(best)


def test_more_than_the_cells_of_a_query_hold_is_found(indexed):
    store, rows = indexed
    order = [rows.ids[row] for row in np.argsort(-(rows.pooled @ rows.pooled[0]), kind="stable")]
    for k in (2900, 3000, 5000):
        assert set(store.nearest(rows.pooled[:1], k)[0].ids) == set(order[:k])


def test_what_a_query_remembered_does_not_outlive_what_happened_since(indexed):
    """Fetching goes by row numbers of the last query where they still hold: after compaction they do not."""
    store, rows = indexed
    near = store.nearest(rows.pooled[:1], 30)[0].ids
    other = open_store(store.info().uri)
    other.remove(rows.ids[:1000])
    replaced = make_rows(1500, seed=4)
    other.add(dataclasses.replace(replaced, ids=rows.ids[1000:2500]))
    other.optimize()
    found = store.regions(near)
    assert found.ids == tuple(name for name in near if name >= rows.ids[1000])
    for row, name in enumerate(found.ids):
        number = int(name.split()[1])
        expected = replaced.pooled[number - 1000] if number < 2500 else rows.pooled[number]
        np.testing.assert_array_equal(found.pooled[row], expected)


@pytest.mark.parametrize("what", ["all", "id", "pooled"])
def test_deleted_files_of_indexes_are_told_and_made_again(indexed, what):
    store, rows = indexed
    queries = make_rows(3, seed=1).pooled
    before = [found.ids for found in store.nearest(queries, 10)]
    for index in store._table.list_indices():
        if what in ("all", index.columns[0]):
            shutil.rmtree(store.folder / "images.lance" / "_indices" / index.index_uuid)
    again = open_store(store.info().uri)
    assert len(again.faults()) == (2 if what == "all" else 1)
    with pytest.raises(DamagedIndexError, match="diml index optimize"):
        again.regions(rows.ids[:3]) if what == "id" else again.nearest(queries, 10)
    again.optimize()
    assert again.faults() == ()
    assert [found.ids for found in again.nearest(queries, 10)] == before
    assert again.regions(rows.ids[:3]).ids == rows.ids[:3]
    assert again.info().indexed == 3000


def test_how_many_cells_a_query_searches_is_measured_and_kept(indexed):
    store, _ = indexed
    kept = json.loads((store.folder / lance.CELLS_FILE).read_text())
    assert lance.LEAST_PROBED <= kept["probed"] <= kept["cells"]
    assert kept["recall"] >= lance.RECALL
    assert f"{kept['probed']} of {kept['cells']} cells a query" in store.info().searched
    assert store._probed(3000, 200) == kept["probed"]
    # further away than what was measured: a third of 64 cells
    assert store._probed(3000, 201) == 22
    assert lance.CELLS_FILE not in store.texts()


def test_the_number_of_cells_is_measured_again_where_the_index_has_grown(indexed):
    store, _ = indexed
    file = store.folder / lance.CELLS_FILE
    before = file.read_text()
    for more, rows in ((1000, 3000), (1000, 5000)):
        store.add(make_rows(more, seed=rows, prefix=f"later {rows}"))
        store.optimize()
        assert json.loads(file.read_text())["rows"] == rows
    assert file.read_text() != before


@pytest.mark.parametrize("change", [lambda text: text[:-9], lambda text: text.replace("3000", "3001")])
def test_a_damaged_number_of_cells_is_told_and_measured_again(indexed, change):
    store, rows = indexed
    file = store.folder / lance.CELLS_FILE
    good = file.read_text()
    file.write_text(change(good))
    assert [lance.CELLS_FILE in fault and "diml index optimize" in fault for fault in store.faults()] == [True]
    assert store.info().searched is None
    assert store.nearest(rows.pooled[:1], 1)[0].ids == (rows.ids[0],)
    store.optimize()
    assert (store.faults(), file.read_text()) == ((), good)


def test_names_that_differ_only_in_letter_case_and_numbers_at_the_edges(tmp_path):
    columns = {"Price": "integer", "price": "integer", "ID": "text"}
    store = create_store(tmp_path / "index", dataclasses.replace(CONFIG, columns=columns))
    edge = 2**63 - 1
    store.add(dataclasses.replace(make_rows(2), metadata=({"Price": edge, "price": 1, "ID": "x"}, {"price": -edge})))
    for text, count in ((f"Price = {edge}", 1), (f"price = -{edge}", 1), ("price < 1e22", 2), ("ID = 'x'", 1)):
        assert store.count(parse_where(text, columns)) == count, text
