"""Laws of search: a store is a dictionary; a condition has one meaning in every translation."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diml.search import open_store
from diml.search.filters import parse_where, to_sql
from diml.search.index import create_store
from diml.search.store import Rows
from unit.search.contract import COLUMNS, CONFIG, make_rows

NAMES = st.sampled_from("abcdefgh")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(NAMES, unique=True, max_size=4), st.integers(0, 99)),
        st.tuples(st.just("remove"), st.lists(NAMES, unique=True, max_size=4)),
        st.tuples(st.just("optimize")),
    ),
    max_size=6,
)


@pytest.mark.parametrize("name", ["index", "index.db"])
@settings(max_examples=8)
@given(steps=STEPS)
def test_a_store_is_a_dictionary(name, steps):
    with tempfile.TemporaryDirectory() as folder:
        store, expected = create_store(Path(folder) / name, CONFIG), {}
        for kind, *rest in steps:
            if kind == "add":
                made = make_rows(len(rest[0]), seed=rest[1])
                store.add(Rows(tuple(rest[0]), made.pooled, made.coded, made.metadata))
                for row, key in enumerate(rest[0]):
                    expected[key] = (made.pooled[row], made.coded[row], made.metadata[row])
            elif kind == "remove":
                assert store.remove(rest[0]) == sum(expected.pop(key, None) is not None for key in rest[0])
            else:
                store.optimize()
        for opened in (store, open_store(Path(folder) / name)):
            found = opened.regions(list("abcdefgh"))
            assert list(found.ids) == sorted(expected)
            assert opened.count() == len(expected)
            for row, key in enumerate(found.ids):
                np.testing.assert_array_equal(found.pooled[row], expected[key][0])
                np.testing.assert_array_equal(found.coded[row], expected[key][1])
                assert dict(found.metadata[row]) == dict(expected[key][2])
            opened.close()


TEXTS = st.text("a'%_\\ \"ü", max_size=3).map(lambda text: "'" + text.replace("'", "''") + "'")
NUMBERS = st.sampled_from(["-1", "0", "2", "0.5", "1e2"])
COMPARISON = st.one_of(
    st.tuples(st.just("label"), st.sampled_from(["=", "!=", "<", ">="]), TEXTS).map(" ".join),
    st.tuples(st.sampled_from(["shelf", "price"]), st.sampled_from(["=", "<>", "<=", ">"]), NUMBERS).map(" ".join),
    st.sampled_from(
        ["fresh = true", "fresh != true", "fresh", "label is null", "label is not null", "\"label\" <= 'b'"]
    ),
    st.text("a'%_ü", max_size=4).map(lambda text: "label like '" + text.replace("'", "''") + "'"),
    st.tuples(st.sampled_from(["shelf", "price not"]), NUMBERS, NUMBERS).map(
        lambda t: f"{t[0]} between {t[1]} and {t[2]}"
    ),
    st.lists(NUMBERS, min_size=1, max_size=3).map(lambda values: f"shelf in ({', '.join(values)})"),
    st.lists(TEXTS, min_size=1, max_size=3).map(lambda values: f"label not in ({', '.join(values)})"),
)
CONDITION = st.recursive(
    COMPARISON,
    lambda inner: st.one_of(
        inner.map(lambda text: f"not ({text})"),
        st.tuples(inner, st.sampled_from([" and ", " or "]), inner).map(lambda parts: f"({''.join(parts)})"),
        st.tuples(inner, st.sampled_from([" and ", " or "]), inner).map("".join),
    ),
    max_leaves=5,
)


@given(text=CONDITION)
def test_a_condition_means_what_it_means_to_sqlite(text):
    """The text itself is SQL, with `not`; its translation is without, and has to select the same rows."""
    base = sqlite3.connect(":memory:")
    base.execute("pragma case_sensitive_like = on")
    base.execute("create table t (id integer, label text, shelf integer, price real, fresh integer)")
    rows = [
        (None if number % 7 == 0 else ["a", "a'", "", "ü"][number % 4], number % 4 - 1, number / 4, number % 2)
        for number in range(24)
    ]
    base.executemany("insert into t values (?, ?, ?, ?, ?)", [(number, *row) for number, row in enumerate(rows)])
    translated = to_sql(parse_where(text, COLUMNS))
    by_text, by_tree = (
        base.execute(f"select id from t where {condition} order by id").fetchall() for condition in (text, translated)
    )
    base.close()
    assert by_tree == by_text
