"""Conditions translated to expressions of Milvus."""

from __future__ import annotations

import pytest

from diml.search.backends.milvus import quoted, to_expression
from diml.search.filters import parse_where
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
    assert to_expression(parse_where(text, COLUMNS), COLUMNS) == expected


def test_numbers_that_milvus_cannot_hold_are_named():
    with pytest.raises(ValueError, match=r"where: shelf needs a whole number"):
        to_expression(parse_where("shelf in (1, 1e30)", COLUMNS), COLUMNS)


def test_texts_are_escaped():
    assert quoted('a "b" \\ c\n\t\r') == '"a \\"b\\" \\\\ c\\n\\t\\r"'
