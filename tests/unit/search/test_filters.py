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
