"""Names of regions, numbers and scores as text."""

import math
from dataclasses import replace

import pytest
import torch

from diml.explain.formatting import (
    TIMES,
    cell_of,
    contrast_text,
    decimals,
    ledger_text,
    score_terms,
    score_text,
    share_text,
    short_path,
    signed,
)
from diml.matching import Ledger


def test_a_region_of_a_grid_has_a_row_and_a_column() -> None:
    assert cell_of(5, (2, 3)) == (1, 2)
    assert cell_of(5, None) is None


@pytest.mark.parametrize(("largest", "digits"), [(0.9, 3), (0.011, 3), (0.0096, 4), (0.00009, 6), (1e-9, 6), (0.0, 3)])
def test_values_are_printed_with_two_significant_digits(largest: float, digits: int) -> None:
    assert decimals(largest) == digits


def test_minus_signs_are_true_ones_and_never_before_zero() -> None:
    assert [signed(value) for value in (0.5, -0.5, -0.0001)] == ["0.500", "\N{MINUS SIGN}0.500", "0.000"]


def test_a_path_is_shortened_to_its_last_folder_and_name() -> None:
    assert [short_path(path) for path in ("/a/b/c.jpg", "a\\b\\c.jpg", "c.jpg")] == ["b/c.jpg", "b/c.jpg", "c.jpg"]


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (1.0, "score 1.030 = pooled 0.610 + structural 0.420"),
        (4.0, f"score 2.290 = pooled 0.610 + 4 {TIMES} structural 0.420"),
        (0.25, f"score 0.715 = pooled 0.610 + 0.25 {TIMES} structural 0.420"),
        (0.0, f"score 0.610 = pooled 0.610 + 0 {TIMES} structural 0.420"),
        (math.inf, "score 0.420 = structural 0.420 (pooled 0.610 not counted)"),
    ],
)
def test_the_score_is_written_as_a_sum_with_its_weight(weight: float, text: str) -> None:
    ledger = Ledger(torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[0.42]]), 0.61, structural_weight=weight)
    assert ledger_text(ledger) == text
    assert score_text(ledger.score, 0.61, 0.42, weight) == text
    assert sum(term.value for term in score_terms(0.61, 0.42, weight)) == pytest.approx(ledger.score)


def test_a_contrast_is_written_as_a_sum_with_its_weight() -> None:
    plan = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    sides = [
        Ledger(plan, torch.full((2, 2), cosine), pooled, (1, 2), (1, 2), 4.0)
        for cosine, pooled in ((0.5, 0.6), (0.25, 0.7))
    ]
    text = contrast_text(sides[0].contrast(sides[1]), top=1)
    assert text == f"+0.9000 = pooled -0.1000 + 4 {TIMES} structural +0.2500, mainly by A1 +0.1250 (structural)"
    parts = torch.tensor([[0.1, -0.2], [0.3, 0.4]], dtype=torch.float64)
    whole = [replace(side, pooled_parts=parts * side.pooled / 0.6, undivided="") for side in sides]
    difference = float((whole[0].whole - whole[1].whole).sum(dim=1)[0])
    text = contrast_text(whole[0].contrast(whole[1]), top=1)
    assert text.endswith(f", mainly by A1 {difference:+.4f}")
    alone = [Ledger(side.plan, side.cosine, side.pooled, structural_weight=math.inf) for side in sides]
    assert contrast_text(alone[0].contrast(alone[1]), top=0) == "+0.2500 = structural +0.2500"


def test_the_share_of_the_lines_is_of_the_structural_score() -> None:
    ledger = Ledger(torch.full((2, 2), 0.25), torch.tensor([[0.8, 0.0], [0.0, 0.2]]), 0.5, structural_weight=4.0)
    assert share_text(ledger, ledger.top(1)) == "The line accounts for 0.200 of structural 0.250 (80 %)"
