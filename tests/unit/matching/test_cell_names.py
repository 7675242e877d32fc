"""Names of regions: columns by letter, rows by number."""

import pytest

from diml.matching.cell_names import cell_name, column_letters


@pytest.mark.parametrize(
    ("column", "letters"), [(0, "A"), (25, "Z"), (26, "AA"), (27, "AB"), (701, "ZZ"), (702, "AAA")]
)
def test_columns_are_lettered_like_a_spreadsheet(column: int, letters: str) -> None:
    assert column_letters(column) == letters


def test_a_region_is_named_by_column_and_row() -> None:
    assert [cell_name(region, (2, 3)) for region in range(6)] == ["A1", "B1", "C1", "A2", "B2", "C2"]


def test_without_a_grid_a_region_is_its_number() -> None:
    assert cell_name(5, None) == "#5"
