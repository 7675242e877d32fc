"""Whatever the condition, Milvus Lite counts the images that Python does."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diml.search.filters import And, ColumnComparison, ColumnMembership, Or, Where
from diml.search.index import create_store
from unit.search.contract import CONFIG, make_rows

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
TEXTS = ("l0", "l1", "l2", 'a "b" \\', "it's", "ü\n", "")
ENTRIES = tuple(
    {
        "label": None if row % 5 == 4 else TEXTS[row % 7],
        "shelf": None if row % 6 == 5 else row % 4 - 1,
        "price": None if row % 4 == 3 else (row % 9) / 2 - 1,
        "fresh": None if row % 3 == 2 else row % 2 == 0,
    }
    for row in range(60)
)
values = {
    "label": st.sampled_from(TEXTS),
    "shelf": st.one_of(st.integers(-3, 4), st.sampled_from([-0.5, 0.5, 1.0, 2.5])),
    "price": st.one_of(st.integers(-2, 4), st.sampled_from([-0.5, 0.5, 1.25, 1e300])),
    "fresh": st.booleans(),
}


@st.composite
def leaves(draw: st.DrawFn) -> Where:
    column = draw(st.sampled_from(sorted(values)))
    if draw(st.booleans()):
        chosen = draw(st.lists(values[column], min_size=1, max_size=3))
        return ColumnMembership(column, tuple(chosen), draw(st.booleans()))
    signs = ("=", "!=") if column == "fresh" else tuple(COMPARE)
    return ColumnComparison(column, draw(st.sampled_from(signs)), draw(values[column]))


conditions = st.recursive(
    leaves(), lambda inner: st.builds(And, inner, inner) | st.builds(Or, inner, inner), max_leaves=6
)


def fits(where: Where, entry: Mapping[str, Any]) -> bool:
    match where:
        case ColumnComparison(column, sign, value):
            return entry[column] is not None and COMPARE[sign](entry[column], value)
        case ColumnMembership(column, chosen, negated):
            return entry[column] is not None and (entry[column] in chosen) != negated
        case And(left, right):
            return fits(left, entry) and fits(right, entry)
        case Or(left, right):
            return fits(left, entry) or fits(right, entry)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = create_store(tmp_path_factory.mktemp("milvus") / "index.db", CONFIG)
    made.add(dataclasses.replace(make_rows(len(ENTRIES)), metadata=ENTRIES))
    yield made
    made.close()


@given(where=conditions)
def test_milvus_counts_as_python_does(store, where):
    assert store.count(where) == sum(fits(where, entry) for entry in ENTRIES)
