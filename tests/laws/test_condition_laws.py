"""Whatever the condition, every back end finds the images that Python does: LanceDB, Milvus Lite, a Milvus server."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from diml.search.filters import (
    And,
    ColumnComparison,
    ColumnMembership,
    ColumnMissing,
    ColumnPattern,
    Or,
    Where,
    like_regex,
    parse_where,
    quoted_column,
)
from diml.search.index import create_store
from unit.search.contract import CONFIG, make_rows

EDGE = 2**63 - 1
COLUMNS = {
    "label": "text",
    "shelf": "integer",
    "unit price": "number",
    'in "stock"?': "boolean",
    "größe`%'": "text",
    "like": "integer",
}
TEXTS = (
    "l0",
    "l1",
    "L1",
    'a "b" \\',
    "it's",
    "ü\n",
    "",
    "100%",
    "a_b",
    "\\%",
    "😀",
    "ÜİΑΣ",
    "a\U0010ffff",
    "l0 OR 1=1 --",
)
WHOLE = (0, 1, -1, 3, 2**53 + 1, EDGE, -EDGE, EDGE - 1)
NUMBERS = (0.0, -0.0, 1.0, 0.1, -2.5, 1e308, -1.7976931348623157e308, 5e-324, 9007199254740993.0, 1e16)


def entry_of(row: int) -> dict[str, Any]:
    """Values at the limits, and None in every column, in many combinations."""
    pick: Callable[..., Any] = lambda values, step: None if row % step == step - 1 else values[row % len(values)]  # noqa: E731
    return {
        "label": pick(TEXTS, 7),
        "shelf": pick(WHOLE, 5),
        "unit price": pick(NUMBERS, 6),
        'in "stock"?': None if row % 3 == 2 else row % 2 == 0,
        "größe`%'": pick(TEXTS[::-1], 4),
        "like": None if row % 2 else row,
    }


ENTRIES = tuple(entry_of(row) for row in range(60))
ROWS = dataclasses.replace(make_rows(len(ENTRIES)), metadata=ENTRIES)
COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def in_quotes(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


CONSTANTS = {
    "text": st.sampled_from(TEXTS).map(in_quotes) | st.text("al01%_\\'üA\U0010ffff", max_size=3).map(in_quotes),
    "integer": st.sampled_from([*map(str, WHOLE), "0.5", "-2.5", "1e30", "-1e30", "1.0", "9007199254740993.0", "1e-9"]),
    "number": st.sampled_from([*map(repr, NUMBERS), "2", str(EDGE), "1" + "0" * 30, ".1", "5e-325"]),
    "boolean": st.sampled_from(["true", "False"]),
}
PIECES = st.sampled_from(
    ["%", "_", r"\%", r"\_", r"\\", "a", "L", "l", "İ", "0", "1", '"', "''", "ü", "\n", "😀", "\U0010ffff"]
)
PATTERNS = st.lists(PIECES, max_size=4).map(lambda pieces: f"'{''.join(pieces)}'")


@st.composite
def comparisons(draw: st.DrawFn) -> str:
    column = draw(st.sampled_from(sorted(COLUMNS)))
    kind, name = COLUMNS[column], quoted_column(column)
    value = CONSTANTS[kind]
    forms = [
        st.tuples(st.sampled_from(["=", "!=", "<>"]), value).map(" ".join),
        st.lists(value, min_size=1, max_size=3).map(lambda values: f"in ({', '.join(values)})"),
        st.lists(value, min_size=1, max_size=3).map(lambda values: f"NOT IN ({', '.join(values)})"),
        st.sampled_from(["is null", "IS NOT NULL"]),
    ]
    if kind == "boolean":
        forms.append(st.just(""))
    else:
        forms.append(st.tuples(st.sampled_from(["<", "<=", ">", ">="]), value).map(" ".join))
        forms.append(
            st.tuples(st.sampled_from(["between", "not between"]), value, value).map(
                lambda t: f"{t[0]} {t[1]} and {t[2]}"
            )
        )
    if kind == "text":
        forms += [st.tuples(st.sampled_from(["like", "not like", "ilike", "not ILIKE"]), PATTERNS).map(" ".join)] * 3
    return f"{name} {draw(st.one_of(forms))}"


CONDITIONS = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        inner.map(lambda text: f"not ({text})"),
        st.tuples(inner, st.sampled_from([" and ", " or "]), inner).map(lambda parts: f"({''.join(parts)})"),
    ),
    max_leaves=4,
)


def is_like(text: str, pattern: str) -> bool:
    """By recursion over text and pattern, one character at a time."""

    @cache
    def fits_from(at: int, of: int) -> bool:
        if of == len(pattern):
            return at == len(text)
        if pattern[of] == "%":
            return fits_from(at, of + 1) or (at < len(text) and fits_from(at + 1, of))
        escaped = pattern[of] == "\\"
        wanted = pattern[of + escaped]
        one = at < len(text) and ((wanted == "_" and not escaped) or text[at] == wanted)
        return one and fits_from(at + 1, of + 1 + escaped)

    return fits_from(0, 0)


def fits(where: Where, entry: Mapping[str, Any]) -> bool:
    match where:
        case ColumnComparison(column, sign, value):
            return entry[column] is not None and COMPARE[sign](entry[column], value)
        case ColumnMembership(column, chosen, negated):
            return entry[column] is not None and (entry[column] in chosen) != negated
        case ColumnPattern(column, pattern, negated, any_case):
            if entry[column] is None:
                return False
            return is_like(*(text.lower() if any_case else text for text in (entry[column], pattern))) != negated
        case ColumnMissing(column, negated):
            return (entry[column] is None) != negated
        case And(left, right):
            return fits(left, entry) and fits(right, entry)
        case Or(left, right):
            return fits(left, entry) or fits(right, entry)


@pytest.fixture(scope="module", params=["lance", "lite", pytest.param("server", marks=pytest.mark.milvus)])
def store(request, tmp_path_factory):
    pytest.importorskip("lancedb" if request.param == "lance" else "pymilvus")
    folder = tmp_path_factory.mktemp(request.param)
    config = dataclasses.replace(CONFIG, columns=COLUMNS)
    if request.param == "server":
        yield filled(f"{request.getfixturevalue('milvus_server')}/conditions", config)
        return
    yield filled(folder / ("index.db" if request.param == "lite" else "index"), config)


def filled(place, config):
    made = create_store(place, config)
    made.add(ROWS)
    return made


@example(text='"like" not in (0) or "like" not in (2)')  # which the optimizer of LanceDB 0.40 takes for true
@given(text=CONDITIONS)
def test_every_back_end_finds_what_python_finds(store, text):
    where = parse_where(text, COLUMNS)
    expected = [name for name, entry in zip(ROWS.ids, ENTRIES, strict=True) if fits(where, entry)]
    assert [name for part in store.listing(where, columns=[]) for name in part.ids] == expected
    assert store.count(where) == len(expected)


@given(text=st.text("ab%_\\\n", max_size=12), pattern=st.lists(PIECES | st.sampled_from("ab"), max_size=8).map("".join))
def test_a_pattern_matches_what_it_matches_by_recursion(text, pattern):
    assert (like_regex(pattern).fullmatch(text) is not None) == is_like(text, pattern)


def test_metadata_at_the_limits_comes_back(store):
    """Of columns with odd names too; a negative zero comes back as zero."""
    found = store.regions(ROWS.ids).metadata
    assert [dict(entry) for entry in found] == [dict(entry) for entry in ENTRIES]
    assert all(math.copysign(1, entry["unit price"] or 1) > 0 for entry in found if entry["unit price"] == 0)
    listed = [dict(entry) for part in store.listing(columns=["größe`%'", "like"]) for entry in part.metadata]
    assert listed == [{name: entry[name] for name in ("größe`%'", "like")} for entry in ENTRIES]
    assert [dict(entry) for entry in store.listed(ROWS.ids[:3]).metadata] == [dict(entry) for entry in ENTRIES[:3]]
