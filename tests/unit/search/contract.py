"""The tests that every store has to pass, whatever its database: subclass `StoreContract` and define its place.

class TestMyStore(StoreContract):
    @pytest.fixture
    def uri(self, tmp_path):
        return str(tmp_path / "index")
"""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import torch

from diml.matching import Matcher, QuantizedRegions, Regions
from diml.matching.codebooks import Codebooks
from diml.search import open_store
from diml.search.filters import parse_where, quoted_column
from diml.search.index import create_store
from diml.search.store import (
    IndexConfig,
    IndexNotFoundError,
    Rows,
    codebooks_text,
    decode_regions,
    encode_regions,
)

D, R = 8, 4
COLUMNS = {"label": "text", "shelf": "integer", "price": "number", "fresh": "boolean"}
CONFIG = IndexConfig(
    dim=D,
    num_regions=R,
    grid=(2, 2),
    columns=COLUMNS,
    embedder="e" * 64,
    model={"name": "test_resnet"},
    matcher=Matcher(epsilon=0.2, weights="uniform"),
)


def make_regions(count: int, seed: int = 0) -> Regions:
    generator = torch.Generator().manual_seed(seed)
    dense, pooled = torch.randn(count, R, D, generator=generator), torch.randn(count, D, generator=generator)
    return Regions.normalized(dense, pooled, (2, 2))


def codebooks_of(regions):
    """The text of codebooks that have the first 255 values of each channel of some regions as centroids, rounded."""
    values = (regions.dense.flatten(0, 1).T[:, :255] * 127).round().to(torch.int8)
    values = torch.nn.functional.pad(values, (1, 255 - values.shape[1]))
    return codebooks_text(Codebooks(values.unsqueeze(2).contiguous(), 1 / 127, regions.dim))


def make_rows(count: int, seed: int = 0, config: IndexConfig = CONFIG, prefix: str = "image") -> Rows:
    regions = make_regions(count, seed)
    metadata = tuple(
        {"label": f"l{row % 3}", "shelf": row, "price": row / 4, "fresh": row % 2 == 0} for row in range(count)
    )
    ids = tuple(f"{prefix} {row:04}" for row in range(count))
    return Rows(ids, regions.pooled.numpy(), encode_regions(regions, config), metadata)


def assert_equal_rows(found: Rows, expected: Rows) -> None:
    assert found.ids == expected.ids
    np.testing.assert_array_equal(found.pooled, expected.pooled)
    np.testing.assert_array_equal(found.coded, expected.coded)
    assert [dict(entry) for entry in found.metadata] == [dict(entry) for entry in expected.metadata]


def some(rows: Rows, chosen: list[int]) -> Rows:
    names, entries = (tuple(side[row] for row in chosen) for side in (rows.ids, rows.metadata))
    return Rows(names, rows.pooled[chosen], rows.coded[chosen], entries)


class StoreContract:
    """The tests; `uri` is a place without an index."""

    @pytest.fixture
    def uri(self, tmp_path):
        raise NotImplementedError

    @pytest.fixture
    def store(self, uri):
        made = create_store(uri, CONFIG)
        yield made
        made.close()

    def test_a_place_without_an_index_is_named_with_the_remedy(self, uri):
        with pytest.raises(IndexNotFoundError, match="diml index build"):
            open_store(uri)

    def test_an_index_keeps_its_settings(self, store, uri):
        assert open_store(uri).config == CONFIG

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"embedder": "f" * 64}, "another embedder"),
            ({"storage": "int8"}, "storage float16, got int8"),
        ],
    )
    def test_an_index_of_something_else_is_refused_and_left_alone(self, store, uri, change, told):
        store.add(make_rows(3))
        with pytest.raises(ValueError, match=told):
            create_store(uri, dataclasses.replace(CONFIG, **change))
        assert open_store(uri).count() == 3

    def test_the_version_is_another_one_after_every_change(self, store):
        versions = [store.version()]
        for change in (
            lambda: store.add(make_rows(3)),
            lambda: store.add(make_rows(2, seed=5)),  # in place of others: as many rows as before
            lambda: store.remove([make_rows(3).ids[2]]),
            lambda: store.set_columns({**CONFIG.columns, "size": "integer"}, ()),
        ):
            change()
            assert store.version() == store.version()
            versions.append(store.version())
        assert len(set(versions)) == len(versions)

    def test_making_an_index_that_is_there_opens_it(self, store, uri):
        store.add(make_rows(3))
        assert create_store(uri, CONFIG).count() == 3

    def test_an_empty_index_answers(self, store):
        query = make_rows(2).pooled
        assert [found.ids for found in store.nearest(query, 5)] == [(), ()]
        assert len(store.regions(["nobody"])) == 0
        assert (store.count(), store.remove(["nobody"]), list(store.listing())) == (0, 0, [])
        store.add(make_rows(0))
        store.optimize()
        assert store.info().rows == 0

    def test_rows_come_back_as_they_were_in_the_order_asked(self, store, uri):
        rows = make_rows(20)
        store.add(rows)
        for opened in (store, open_store(uri)):
            assert opened.count() == 20
            order = [7, 0, 19, 3]
            asked = [rows.ids[7], "nobody", *(rows.ids[row] for row in order[1:])]
            assert_equal_rows(opened.regions(asked), some(rows, order))

    def test_nearest_agrees_with_numpy(self, store):
        rows, queries = make_rows(60), make_rows(3, seed=1).pooled
        store.add(some(rows, list(range(25))))
        store.add(some(rows, list(range(25, 60))))
        cosine = queries @ rows.pooled.T
        for exact in (False, True):
            for found, expected in zip(store.nearest(queries, 10, exact=exact), cosine, strict=True):
                best = np.argsort(-expected)[:10]
                assert found.ids == tuple(rows.ids[row] for row in best)
                np.testing.assert_allclose(found.cosine, expected[best], atol=1e-6)

    def test_k_above_the_number_of_rows_gives_all(self, store):
        store.add(make_rows(4))
        assert len(store.nearest(make_rows(1).pooled, 100)[0].ids) == 4

    def test_an_id_that_is_there_is_replaced(self, store):
        old, new = make_rows(6), make_rows(3, seed=5)
        store.add(old)
        store.nearest(old.pooled, 6)  # what a store remembers of an answer must not bring back what was replaced
        store.add(new)
        assert store.count() == 6
        assert_equal_rows(store.regions(new.ids), new)
        assert store.nearest(new.pooled[:1], 1)[0].ids == new.ids[:1]
        assert_equal_rows(store.regions(old.ids[3:]), some(old, [3, 4, 5]))

    def test_removed_rows_are_gone(self, store):
        rows = make_rows(8)
        store.add(rows)
        store.nearest(rows.pooled, 8)
        assert store.remove([rows.ids[2], rows.ids[5], "nobody"]) == 2
        assert store.count() == 6
        assert store.regions([rows.ids[2]]).ids == ()
        assert {rows.ids[2], rows.ids[5]}.isdisjoint(store.nearest(rows.pooled[:1], 8)[0].ids)

    def test_ids_and_texts_of_any_kind(self, store):
        names = ("it's", 'a "quoted" \\ one', "päth/ü.jpg", "x' OR '1'='1", "%_`")
        rows = make_rows(5)
        odd = Rows(names, rows.pooled, rows.coded, tuple({"label": name} for name in names))
        store.add(odd)
        assert store.regions(names).ids == names
        for name in names:
            quoted = name.replace("'", "''")
            assert store.count(parse_where(f"label = '{quoted}'", COLUMNS)) == 1
        assert store.remove(names[:4]) == 4
        assert store.count() == 1

    @pytest.mark.parametrize(
        ("text", "fits"),
        [
            ("label = 'l1'", lambda e: e["label"] == "l1"),
            ("label != 'l1'", lambda e: e["label"] != "l1"),
            ("shelf >= 4 and price < 2.5", lambda e: e["shelf"] >= 4 and e["price"] < 2.5),
            ("label in ('l0', 'l2') or shelf = 4", lambda e: e["label"] in ("l0", "l2") or e["shelf"] == 4),
            ("shelf < 2.5", lambda e: e["shelf"] < 2.5),
            ("shelf != 2.5 and shelf = 4.0", lambda e: e["shelf"] == 4),
            ("shelf in (1, 2.5, 3.0)", lambda e: e["shelf"] in (1, 3)),
            ("not (shelf in (1, 2.5))", lambda e: e["shelf"] != 1),
            ("shelf not in (1, 2, 3)", lambda e: e["shelf"] not in (1, 2, 3)),
            ("not (label = 'l0' or fresh = true)", lambda e: e["label"] != "l0" and not e["fresh"]),
            ("fresh = false", lambda e: not e["fresh"]),
            ("price > -1e3", lambda e: True),
            ("label like '_1' and fresh", lambda e: e["label"] == "l1" and e["fresh"]),
            ("price not between 0.5 and 1.5", lambda e: not 0.5 <= e["price"] <= 1.5),
            ("label is not null", lambda e: True),
            ("label = 'nothing'", lambda e: False),
        ],
    )
    def test_conditions_agree_with_python(self, store, text, fits):
        rows = make_rows(12)
        store.add(rows)
        where = parse_where(text, COLUMNS)
        expected = {name for name, entry in zip(rows.ids, rows.metadata, strict=True) if fits(entry)}
        assert store.count(where) == len(expected)
        assert {name for part in store.listing(where) for name in part.ids} == expected
        cosine = rows.pooled @ rows.pooled[0]
        best = [rows.ids[row] for row in np.argsort(-cosine) if rows.ids[row] in expected][:4]
        assert list(store.nearest(rows.pooled[:1], 4, where=where)[0].ids) == best

    def test_a_missing_value_fits_no_comparison(self, store):
        rows = make_rows(3)
        entries = ({"label": "a", "price": 1.0}, {"label": "b", "price": None}, {"price": 3.0})
        store.add(dataclasses.replace(rows, metadata=entries))
        for text, count in (
            ("price < 5", 2),
            ("price != 1", 1),
            ("not price = 1", 1),
            ("label != 'a'", 1),
            ("label not like '%b'", 1),
            ("label is null", 1),
            ("price is not null", 2),
            ("fresh is null", 3),
        ):
            assert store.count(parse_where(text, COLUMNS)) == count, text
        assert store.regions([rows.ids[1]]).metadata[0].get("price") is None

    def test_a_listing_has_every_row_once_with_the_columns_asked_for(self, store):
        rows = make_rows(30)
        store.add(rows)
        listed = [
            entry for part in store.listing(columns=["shelf"]) for entry in zip(part.ids, part.metadata, strict=True)
        ]
        assert sorted((name, entry["shelf"]) for name, entry in listed) == [(rows.ids[row], row) for row in range(30)]
        assert all(set(entry) == {"shelf"} for _, entry in listed)

    def test_optimizing_changes_no_answer(self, store):
        rows, queries = make_rows(40), make_rows(4, seed=1).pooled
        for start in range(0, 40, 5):
            store.add(some(rows, list(range(start, start + 5))))
        store.remove(rows.ids[:5])
        before = [found.ids for found in store.nearest(queries, 10)]
        store.optimize()
        store.optimize()
        assert [found.ids for found in store.nearest(queries, 10)] == before
        assert_equal_rows(store.regions(rows.ids), some(rows, list(range(5, 40))))

    @pytest.mark.parametrize(
        ("spoil", "told"),
        [
            (lambda rows: dataclasses.replace(rows, pooled=rows.pooled[:, :4]), "need pooled"),
            (lambda rows: dataclasses.replace(rows, coded=rows.coded[:, :4]), "coded uint8"),
            (lambda rows: dataclasses.replace(rows, metadata=rows.metadata[:1]), "metadata of"),
            (lambda rows: dataclasses.replace(rows, ids=("a", "a", "b")), "distinct ids"),
            (lambda rows: dataclasses.replace(rows, pooled=rows.pooled * np.float32(np.nan)), "finite"),
            (lambda rows: dataclasses.replace(rows, metadata=({"colour": "red"},) * 3), "no column 'colour'"),
            (lambda rows: dataclasses.replace(rows, metadata=({"shelf": "third"},) * 3), "shelf needs integer"),
        ],
    )
    def test_rows_that_do_not_fit_are_refused_whole(self, store, spoil, told):
        with pytest.raises(ValueError, match=told):
            store.add(spoil(make_rows(3)))
        assert store.count() == 0

    def test_wrong_queries_are_refused(self, store):
        with pytest.raises(ValueError, match=r"need float32 \(Q, 8\)"):
            store.nearest(np.zeros((1, 3), np.float32), 1)
        with pytest.raises(ValueError, match="k: need at least 1"):
            store.nearest(np.zeros((1, D), np.float32), 0)

    def test_columns_become_wider_and_more_with_the_same_rows(self, store, uri):
        rows = make_rows(20)
        store.add(rows)
        store.write_text("calibration.json", "kept")
        reader = open_store(uri)
        wide = {"label": "text", "shelf": "number", "price": "text", "fresh": "boolean", "size": "integer"}
        store.set_columns(wide, ("size",))
        store.set_columns(wide, ("size",))  # nothing to do
        entries = [
            {
                "label": e["label"],
                "shelf": float(e["shelf"]),
                "price": f"{e['price']:g}",
                "fresh": e["fresh"],
                "size": None,
            }
            for e in rows.metadata
        ]
        for opened in (store, open_store(uri)):
            assert (opened.config.columns, opened.config.named_types, opened.count()) == (wide, ("size",), 20)
            found = opened.regions(rows.ids)
            assert_equal_rows(found, dataclasses.replace(rows, metadata=tuple(entries)))
            assert opened.count(parse_where("shelf < 2.5 and price != '0'", wide)) == 2
            assert opened.read_text("calibration.json") == "kept"
        new = dataclasses.replace(make_rows(1, prefix="new"), metadata=({"shelf": 0.5, "price": "n/a", "size": 3},))
        store.add(new)
        assert new.ids[0] in store.nearest(new.pooled, 2)[0].ids
        assert store.count(parse_where("size = 3", wide)) == 1
        assert reader.regions([rows.ids[0]]).ids == (rows.ids[0],)

    def test_columns_of_any_name(self, uri):
        """Also of names that the database has for itself, that differ in letter case, and of a keyword."""
        names = [
            "unit price",
            "_distance",
            "_rowid",
            "A.b",
            "a.B",
            'in "stock"`',
            "größe",
            "select",
            "10%",
            "value_a",
            "價",
        ]
        store = create_store(uri, dataclasses.replace(CONFIG, columns=dict.fromkeys(names, "integer")))
        rows = make_rows(4)
        entries = tuple({name: row * 20 + at for at, name in enumerate(names)} for row in range(4))
        rows = dataclasses.replace(rows, metadata=entries)
        store.add(rows)
        wide = {**dict.fromkeys(names, "number"), "a new one": "text"}
        for columns in (store.config.columns, wide):
            store.set_columns(columns, ())
            assert_equal_rows(
                store.regions(rows.ids),
                dataclasses.replace(rows, metadata=tuple({**dict.fromkeys(columns), **e} for e in entries)),
            )
            for at, name in enumerate(names):
                where = parse_where(f"{quoted_column(name)} = {20 + at}", columns)
                assert [part.ids for part in store.listing(where)] == [rows.ids[1:2]]
                assert store.nearest(rows.pooled[:1], 4, where=where)[0].ids == rows.ids[1:2]
        store.close()

    def test_another_reader_sees_what_was_written(self, store, uri):
        reader = open_store(uri)
        assert reader.count() == 0
        store.add(make_rows(5))
        assert reader.count() == 5
        store.remove(make_rows(5).ids[:2])
        assert reader.count() == 3

    def test_two_writers_lose_no_row_and_double_none(self, store, uri):
        """Rows of their own, and some that both write."""
        shared = make_rows(5, prefix="shared")

        def write(name: str) -> None:
            own = open_store(uri)
            for turn in range(4):
                own.add(make_rows(5, seed=turn, prefix=f"{name}{turn}"))
                own.add(shared)

        writers = [threading.Thread(target=write, args=(name,)) for name in "ab"]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(60)
        listed = [name for part in store.listing() for name in part.ids]
        some = [*reversed(listed[:3]), "nobody", listed[0]]
        found, every = (
            store.listed(some),
            {key: entry for part in store.listing() for key, entry in zip(part.ids, part.metadata, strict=True)},
        )
        assert found.ids == tuple(reversed(listed[:3]))
        assert list(found.metadata) == [every[key] for key in found.ids]
        assert store.listed([]).ids == ()
        assert len(listed) == len(set(listed)) == store.count() == 2 * 4 * 5 + 5

    def test_texts_are_kept_with_the_index(self, store, uri):
        assert store.read_text("calibration.json") is None
        store.add(make_rows(3))
        store.write_text("calibration.json", "one")
        long = "two \u00e9 '\"" * 9000
        store.write_text("calibration.json", long)
        store.write_text("other.json", "three")
        store.optimize()
        reader = open_store(uri)
        assert reader.read_text("calibration.json") == store.read_text("calibration.json") == long
        assert reader.read_text("other.json") == "three"
        assert reader.count() == 3
        assert reader.config == CONFIG

    @pytest.mark.parametrize("storage", ["float16", "int8", "1kb", "none"])
    def test_regions_survive_in_every_storage(self, uri, storage):
        regions, sizes = make_regions(5), {"num_regions": 0 if storage == "none" else R}
        known = codebooks_of(regions) if storage == "1kb" else ""
        config = dataclasses.replace(CONFIG, storage=storage, codebooks=known, **sizes)
        coded = encode_regions(regions, config)
        store = create_store(uri, config)
        store.add(Rows(tuple("abcde"), regions.pooled.numpy(), coded, ({},) * 5))
        found = open_store(uri).regions(["b", "e"])
        np.testing.assert_array_equal(found.coded, coded[[1, 4]])
        if storage == "none":
            with pytest.raises(ValueError, match="pooled vectors only"):
                decode_regions(found, config)
            return
        decoded = decode_regions(found, config)
        dense = decoded[:].dense if isinstance(decoded, QuantizedRegions) else decoded.dense.float()
        torch.testing.assert_close(dense, regions.dense[[1, 4]], atol=1e-3 if storage == "float16" else 1e-2, rtol=0)
