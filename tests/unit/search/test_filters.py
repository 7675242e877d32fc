"""Conditions: read, carried to the comparisons, and told in SQL."""

from __future__ import annotations

import pytest

from diml.search.filters import And, ColumnComparison, ColumnMembership, Or, parse_where, to_sql

COLUMNS = {"label": "text", "shelf": "integer", "price": "number", "fresh": "boolean"}


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
        ("label", "need an operator"),
        ("label = milk", "'text' in single quotes"),
        ("label = 'milk", "single quotes"),
        ("label = 'a' label = 'b'", "need 'and', 'or' or the end, got \"label = 'b'\""),
        ("(shelf = 1", r"need '\)', got the end"),
        ("colour = 'red'", "no column 'colour'; there are fresh, label, price, shelf"),
        ("shelf = 'three'", "of the type of shelf, integer"),
        ("shelf = true", "of the type of shelf, integer"),
        ("label = 3", "of the type of label, text"),
        ("fresh > false", "= or != for fresh"),
        ("label in ()", "need a value"),
        ("label not 'a'", "'in' after 'not'"),
        ("label = 'a'; drop table", "need a column, a value"),
        ("(" * 200 + "shelf = 1" + ")" * 200, "nested more than 100 deep"),
    ],
)
def test_what_cannot_be_read_is_told_where(text, told):
    with pytest.raises(ValueError, match=told):
        parse_where(text, COLUMNS)


def test_sql_quotes_names_and_values():
    where = parse_where("label = 'o''clock' and (fresh = false or shelf not in (1, 2))", COLUMNS)
    assert to_sql(where) == "(`label` = 'o''clock' AND (`fresh` = FALSE OR `shelf` NOT IN (1, 2)))"


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


def test_whole_numbers_at_the_edge_are_exact_and_larger_ones_become_fractions_where_the_column_has_them():
    assert parse_where("shelf = 9223372036854775807", COLUMNS) == ColumnComparison("shelf", "=", 2**63 - 1)
    assert parse_where("price < 100000000000000000000", COLUMNS) == ColumnComparison("price", "<", 1e20)


def test_accents_are_compared_in_one_form_but_in_names_of_files():
    columns = {"label": "text", "path": "text"}
    assert parse_where("label = 'cafe\u0301'", columns) == ColumnComparison("label", "=", "caf\u00e9")
    assert parse_where("path = 'cafe\u0301'", columns) == ColumnComparison("path", "=", "cafe\u0301")
