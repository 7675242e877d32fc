"""The type of a column is one that loses nothing of its cells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diml.search.cells import WIDER, cell_value, guessed_type, is_exact, is_value, read_types, widened_value
from diml.search.store import printed

_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=12)
_NUMBERS = st.one_of(st.integers(-(10**25), 10**25).map(str), st.floats().map(repr), st.decimals().map(str))
_LIKE_NUMBERS = st.from_regex(r"[-+]?0{0,2}[0-9_]{1,4}(\.[0-9]{0,3})?([eE][-+]?[0-9]{1,3})?", fullmatch=True)
CELLS = st.one_of(_TEXTS, _NUMBERS, _LIKE_NUMBERS, st.sampled_from(["true", "false", "True", "nan", "inf", "-0", ""]))


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["0021_1", "002_11"], "text"),
        (["007", "7"], "text"),
        (["1234567890123456789", "1234567890123456788"], "integer"),
        (["12345678901234567890", "12345678901234567891"], "text"),
        (["9223372036854775807"], "integer"),
        (["9223372036854775808"], "text"),
        (["1e6"], "text"),
        (["nan"], "text"),
        (["inf", "1.5"], "text"),
        (["-inf"], "text"),
        (["True", "False"], "text"),
        (["true", "false"], "boolean"),
        (["true", ""], "boolean"),
        (["1", "2", ""], "integer"),
        (["-3", "0"], "integer"),
        (["+3"], "text"),
        (["1", "2.5"], "number"),
        (["1", "1.0"], "text"),
        (["1.50"], "text"),
        (["1.5", "-0.25"], "number"),
        (["9007199254740993", "0.5"], "text"),
        (["1,5"], "text"),
        (["\u0661\u0662"], "text"),
        (["1", "x"], "text"),
        (["", ""], None),
        ([], None),
    ],
)
def test_a_column_is_of_numbers_only_if_all_of_it_prints_back(cells, kind):
    assert guessed_type(cells) == kind


@given(st.lists(CELLS, max_size=6))
def test_no_cell_is_lost_and_no_two_become_one(cells):
    kind = guessed_type(cells)
    filled = [cell for cell in cells if cell]
    assert (kind is None) == (not filled)
    if kind is not None:
        values = [cell_value(cell, kind) for cell in filled]
        assert len(set(values)) == len(set(filled))
        for cell, value in zip(filled, values, strict=True):
            whole = kind == "number" and "." not in cell and "e" not in cell
            assert (str(int(value)) if whole else printed(value) if kind in ("text", "boolean") else str(value)) == cell


@given(CELLS, st.sampled_from(["text", "integer", "number", "boolean"]))
def test_what_is_exact_can_be_read_and_nothing_else_raises(cell, kind):
    if cell and is_exact(cell, kind):
        assert is_value(cell, kind)
    if cell and is_value(cell, kind):
        assert isinstance(cell_value(cell, kind), str | int | float)


@given(st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.booleans()))
def test_a_wider_value_prints_as_before(value):
    kind = "boolean" if isinstance(value, bool) else "integer" if isinstance(value, int) else "number"
    for wider in WIDER[kind]:
        assert printed(widened_value(value, wider)) == printed(value)
    assert widened_value(None, "text") is None


def test_types_are_named_by_the_user():
    assert read_types(("price=float", "stock=int", " code = TEXT", "new=bool", "label=text")) == {
        "price": "number",
        "stock": "integer",
        "code": "text",
        "new": "boolean",
        "label": "text",
    }
    for word, told in (("price", "COLUMN=TYPE"), ("price=decimal", "one of text"), ("label=int", "always text")):
        with pytest.raises(ValueError, match=told):
            read_types((word,))
