"""Conditions: read, carried to the comparisons, and told in SQL."""

from __future__ import annotations

import pytest

from diml.search.filters import (
    And,
    ColumnComparison,
    ColumnMembership,
    ColumnMissing,
    ColumnPattern,
    Or,
    like_regex,
    parse_where,
    quoted_column,
    to_sql,
)

PLAIN = {"label": "text", "shelf": "integer", "price": "number", "fresh": "boolean"}
COLUMNS = {**PLAIN, "unit price": "number", "in": "boolean", '5" pipes': "integer", "größe": "integer"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("label = 'milk'", ColumnComparison("label", "=", "milk")),
        ("label == 'it''s'", ColumnComparison("label", "=", "it's")),
        ("shelf<>-3", ColumnComparison("shelf", "!=", -3)),
        ("price <= 1.5e2", ColumnComparison("price", "<=", 150.0)),
        ("fresh = TRUE", ColumnComparison("fresh", "=", True)),
        ("label IN ('a', 'b')", ColumnMembership("label", ("a", "b"))),
        ("label not in ('a')", ColumnMembership("label", ("a",), negated=True)),
        ("not shelf < 3", ColumnComparison("shelf", ">=", 3)),
        ("not not shelf < 3", ColumnComparison("shelf", "<", 3)),
        ("not label in ('a')", ColumnMembership("label", ("a",), negated=True)),
        ("label like '50\\%%'", ColumnPattern("label", "50\\%%")),
        ("not label like 'a_' ", ColumnPattern("label", "a_", negated=True)),
        ("label NOT LIKE 'a'", ColumnPattern("label", "a", negated=True)),
        ("not label not like 'a'", ColumnPattern("label", "a")),
        ("label ilike 'A%'", ColumnPattern("label", "A%", any_case=True)),
        ("not label ILIKE 'A%'", ColumnPattern("label", "A%", negated=True, any_case=True)),
        ("label is null", ColumnMissing("label")),
        ("not label is null", ColumnMissing("label", negated=True)),
        ("shelf Is Not Null", ColumnMissing("shelf", negated=True)),
        ("fresh", ColumnComparison("fresh", "=", True)),
        ("(not fresh)", ColumnComparison("fresh", "=", False)),
        ("price between .5 and 2", And(ColumnComparison("price", ">=", 0.5), ColumnComparison("price", "<=", 2.0))),
        (
            "price not between 1 and 2 and fresh",
            And(
                Or(ColumnComparison("price", "<", 1.0), ColumnComparison("price", ">", 2.0)),
                ColumnComparison("fresh", "=", True),
            ),
        ),
        ("not shelf between 1.5 and 2.5", Or(ColumnComparison("shelf", "<=", 1), ColumnComparison("shelf", ">=", 3))),
        ('"unit price" = 3', ColumnComparison("unit price", "=", 3.0)),
        ("\"label\"='x'", ColumnComparison("label", "=", "x")),
        (
            '"in" in (true) or "5"" pipes" > 1',
            Or(ColumnMembership("in", (True,)), ColumnComparison('5" pipes', ">", 1)),
        ),
        (
            "gr\u00f6\u00dfe = 1 and gro\u0308\u00dfe = 1",
            And(ColumnComparison("größe", "=", 1), ColumnComparison("größe", "=", 1)),
        ),
        (
            "shelf = 1 or shelf = 2 and fresh = true",
            Or(
                ColumnComparison("shelf", "=", 1),
                And(ColumnComparison("shelf", "=", 2), ColumnComparison("fresh", "=", True)),
            ),
        ),
        (
            "not (shelf = 1 or fresh = true)",
            And(ColumnComparison("shelf", "!=", 1), ColumnComparison("fresh", "!=", True)),
        ),
        (
            "not (shelf = 1 and fresh = true)",
            Or(ColumnComparison("shelf", "!=", 1), ColumnComparison("fresh", "!=", True)),
        ),
    ],
)
def test_conditions_are_read(text, found):
    assert parse_where(text, COLUMNS) == found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "need a column, got the end"),
        ("label = milk", "'text' in single quotes"),
        ("label = 'milk", "single quotes"),
        ("label = 'a' label = 'b'", "need 'and', 'or' or the end, got \"label = 'b'\""),
        ("(shelf = 1", r"need '\)', got the end"),
        ("shelf = 'three'", "of the type of shelf, integer"),
        ("shelf = true", "of the type of shelf, integer"),
        ("label = 3", "of the type of label, text"),
        ("fresh > false", "= or != for fresh"),
        ("label in ()", "need a value"),
        ("label not 'a'", "'in', 'like', 'ilike' or 'between' after 'not'"),
        ('label = "milk"', "double quotes are for columns"),
        ("label = null", "label is null finds images without one"),
        ("label is 'a'", "need 'null'"),
        ("label is not true", "need 'null'"),
        ("like = 'a'", "in double quotes where it is a keyword"),
        ("'label' = 'a'", "need a column"),
        ("label", "an operator such as ="),
        ("fresh fresh", "an operator such as ="),
        ("shelf like '1%'", "a text column before like, and shelf is integer"),
        ("fresh between false and true", "= or != for fresh"),
        ("price between 1, 2", "need 'and'"),
        ("price between 'a' and 'b'", "of the type of price, number"),
        ("label like 3", "of the type of label, text"),
        ("label like 'a\\b'", r"need \\%, \\_ or"),
        ("label like '50\\'", r"need \\%, \\_ or"),
        ("label like 'a' escape '!'", "need 'and', 'or' or the end"),
        ('"unit  price" = 3', "no column 'unit  price'; there are "),
        ("label = 'a'; drop table", "need a column, a value"),
        ("(" * 200 + "shelf = 1" + ")" * 200, "nested more than 100 deep"),
    ],
)
def test_what_cannot_be_read_is_told_where(text, told):
    with pytest.raises(ValueError, match=told):
        parse_where(text, COLUMNS)


def test_columns_are_told_as_they_are_written():
    with pytest.raises(
        ValueError, match=r'no column \'colour\'; there are "5"" pipes", "in", "unit price", fresh, größe,'
    ):
        parse_where("colour = 'red'", COLUMNS)
    for name in COLUMNS:
        assert parse_where(f"{quoted_column(name)} is null", COLUMNS) == ColumnMissing(name)


def test_sql_quotes_names_and_values():
    where = parse_where("label = 'o''clock' and (fresh = false or shelf not in (1, 2))", COLUMNS)
    assert to_sql(where) == (
        "(`label` = 'o''clock' AND (`fresh` = FALSE OR (`shelf` IS NOT NULL AND `shelf` NOT IN (1, 2))))"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("shelf = 9223372036854775808", "a whole number of 64 bits"),
        ("shelf = -9223372036854775808", "a whole number of 64 bits"),
        ("shelf in (1, 100000000000000000000)", "a whole number of 64 bits"),
        (f"shelf < 1{'0' * 5000}", "a whole number of 64 bits"),
        ("price < 1e999", "at most 1.8e308"),
        ("shelf > 1e999", "at most 1.8e308"),
        (f"price < 1{'0' * 5000}", "at most 1.8e308"),
    ],
)
def test_numbers_that_no_database_holds_are_told(text, told):
    with pytest.raises(ValueError, match=told):
        parse_where(text, COLUMNS)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("shelf = 2.0", ColumnComparison("shelf", "=", 2)),
        ("shelf = 2.5", ColumnMembership("shelf", ())),
        ("shelf != 2.5", ColumnMembership("shelf", (), negated=True)),
        ("shelf < -2.5", ColumnComparison("shelf", "<=", -3)),
        ("shelf >= -2.5", ColumnComparison("shelf", ">=", -2)),
        ("shelf in (1, 2.5, 3e0, 1e30)", ColumnMembership("shelf", (1, 3))),
        ("shelf < 1e30", ColumnMembership("shelf", (), negated=True)),
        ("shelf < -1e30", ColumnMembership("shelf", ())),
        ("shelf >= -1e30", ColumnMembership("shelf", (), negated=True)),
        ("shelf > 9007199254740993.0", ColumnComparison("shelf", ">", 9007199254740993)),
        ("shelf > 1e-999999999", ColumnComparison("shelf", ">=", 1)),
    ],
)
def test_integer_columns_are_compared_with_whole_numbers_only(text, found):
    assert parse_where(text, COLUMNS) == found


@pytest.mark.parametrize("pattern", ["%a%a%a%a%a%a%a%a%a%b", "%_a%_a%_a%_a%_a%b", "a%" * 50 + "b"])
def test_no_pattern_takes_long(pattern):
    assert like_regex(pattern).fullmatch("a" * 50_000) is None
    assert like_regex(pattern).fullmatch("a" * 50_000 + "b") is not None


def test_whole_numbers_at_the_edge_are_exact_and_larger_ones_become_fractions_where_the_column_has_them():
    assert parse_where("shelf = 9223372036854775807", COLUMNS) == ColumnComparison("shelf", "=", 2**63 - 1)
    assert parse_where("price < 100000000000000000000", COLUMNS) == ColumnComparison("price", "<", 1e20)


def test_accents_are_compared_in_one_form_but_in_names_of_files():
    columns = {"label": "text", "path": "text"}
    assert parse_where("label = 'cafe\u0301'", columns) == ColumnComparison("label", "=", "caf\u00e9")
    assert parse_where("path = 'cafe\u0301'", columns) == ColumnComparison("path", "=", "cafe\u0301")
