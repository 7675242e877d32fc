"""Conditions translated to expressions of Milvus."""

from __future__ import annotations

import pytest

from diml.search.backends.milvus_conditions import prefix_of, quoted, to_expression
from diml.search.filters import And, ColumnComparison, ColumnMembership, ColumnMissing, Or, parse_where
from unit.search.contract import COLUMNS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("label = 'it''s'", '(has_label == true and value_label == "it\'s")'),
        ("price < 3", "(has_price == true and value_price < 3.0)"),
        ("price >= -1e3", "(has_price == true and value_price >= -1000.0)"),
        ("shelf < 2.5", "(has_shelf == true and value_shelf <= 2)"),
        ("shelf <= -2.5", "(has_shelf == true and value_shelf <= -3)"),
        ("shelf > 2.5", "(has_shelf == true and value_shelf >= 3)"),
        ("shelf >= -2.5", "(has_shelf == true and value_shelf >= -2)"),
        ("shelf = 2.0", "(has_shelf == true and value_shelf == 2)"),
        ("shelf = 2.5", "(has_shelf == true and has_shelf == false)"),
        ("shelf is null", "has_shelf == false"),
        ("fresh", "(has_fresh == true and value_fresh == true)"),
        ('"unit price" > 1', "(has__unit_price_ddf02bda9a625948 == true and value__unit_price_ddf02bda9a625948 > 1.0)"),
        ("shelf != 2.5", "has_shelf == true"),
        ("shelf in (1, 2.5, 3.0)", "(has_shelf == true and value_shelf in [1, 3])"),
        ("shelf in (2.5)", "(has_shelf == true and has_shelf == false)"),
        ("shelf not in (2.5)", "has_shelf == true"),
        ("not fresh = true", "(has_fresh == true and value_fresh != true)"),
        (
            "label in ('a') or (fresh = true and shelf != 1)",
            '((has_label == true and value_label in ["a"]) or '
            "((has_fresh == true and value_fresh == true) and (has_shelf == true and value_shelf != 1)))",
        ),
    ],
)
def test_conditions_in_milvus(text, expected):
    assert to_expression(parse_where(text, COLUMNS | {"unit price": "number"})) == expected


@pytest.mark.parametrize(
    ("pattern", "expected", "opposite"),
    [
        ("milk", "= milk", "!= milk"),
        (r"100\%", "= 100%", "!= 100%"),
        ("", "= ", "!= "),
        ("%", "not null", "never"),
        ("mil%", ">= mil and < mim", "< mil or >= mim"),
        (r"a\_%%", ">= a_ and < a`", "< a_ or >= a`"),
        ("\U0010ffff%", ">= \U0010ffff", "< \U0010ffff"),
        ("a\U0010ffff%", ">= a\U0010ffff and < b", "< a\U0010ffff or >= b"),
        ("\ud7ff%", ">= \ud7ff and < \ue000", "< \ud7ff or >= \ue000"),
        ("a_%", None, None),
        ("%a", None, None),
    ],
)
def test_patterns_that_are_comparisons(pattern, expected, opposite):
    def told(where):
        match where:
            case ColumnComparison(_, operator, value):
                return f"{operator} {value}"
            case And(left, right):
                return f"{told(left)} and {told(right)}"
            case Or(left, right):
                return f"{told(left)} or {told(right)}"
            case ColumnMembership(_, ()):
                return "never"
            case ColumnMissing(_, True):
                return "not null"
        raise AssertionError(where)

    found = prefix_of("label", pattern)[1]
    assert (None if found is None else told(found.positive), None if found is None else told(found.negative)) == (
        expected,
        opposite,
    )


def test_texts_are_escaped():
    assert quoted('a "b" \\ c\n\t\r') == '"a \\"b\\" \\\\ c\\n\\t\\r"'
