"""Where regions are, in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diml.explain.places import place_of, placed


def cells(*rows: str) -> tuple[list[int], tuple[int, int]]:
    """Regions marked by `#` in a drawing of the grid."""
    marked = [mark == "#" for row in rows for mark in row]
    return [region for region, one in enumerate(marked) if one], (len(rows), len(rows[0]))


@pytest.mark.parametrize(
    ("drawing", "name"),
    [
        (("####", "####", "####", "####"), "whole image"),
        (("####", "####", "####", "###."), "whole image"),
        (("####", "####", "####", "#..."), "most of the image"),
        (("....", ".##.", ".##.", "...."), "centre"),
        (("####", "####", "....", "...."), "upper half"),
        (("....", "....", "####", "####"), "lower half"),
        (("##..", "##..", "##..", "##.."), "left half"),
        (("..##", "..##", "..##", "..##"), "right half"),
        (("##..", "##..", "....", "...."), "top left"),
        (("...#", "..##", "....", "...."), "top right"),
        (("....", "....", "#...", "##.."), "bottom left"),
        (("....", "....", "..##", "..##"), "bottom right"),
        (("####", "....", "....", "...."), "top"),
        ((".##.", ".##.", "....", "...."), "top"),
        (("....", "....", "....", "####"), "bottom"),
        (("#...", "#...", "#...", "#..."), "left"),
        (("....", "..##", "..##", "...."), "right"),
        (("####", "#..#", "#..#", "####"), "edges"),
        ((".......", ".......", ".......", "...#...", ".......", ".......", "......."), "centre"),
        (("#......", ".......", ".......", ".......", ".......", ".......", "......."), "top left"),
        (("##",), "whole image"),
        (("#.",), "left half"),
    ],
)
def test_the_area_that_agrees_best_is_named(drawing: tuple[str, ...], name: str) -> None:
    assert place_of(*cells(*drawing)) == name


def test_without_a_grid_or_regions_there_is_no_place() -> None:
    assert place_of([0, 1], None) == place_of([], (4, 4)) == ""


SIDES = {"left": "right", "top": "bottom", "upper": "lower"}
SWAPPED = SIDES | {after: before for before, after in SIDES.items()}


@given(st.integers(1, 7), st.integers(1, 7), st.data())
def test_upside_down_the_place_is_too(rows: int, columns: int, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, rows * columns - 1), min_size=1))
    place = place_of(sorted(chosen), (rows, columns))
    turned = place_of(sorted(rows * columns - 1 - region for region in chosen), (rows, columns))
    swapped = " ".join(SWAPPED.get(word, word) for word in place.split())
    assert turned in (swapped, place)  # of areas that agree equally well, the first is named in both cases


@given(st.integers(2, 7), st.integers(2, 7))
def test_all_regions_are_the_whole_image(rows: int, columns: int) -> None:
    assert place_of(range(rows * columns), (rows, columns)) == "whole image"


def test_places_stand_in_sentences() -> None:
    assert placed("lower half", 8, "gallery image") == "the lower half of the gallery image"
    assert placed("whole image", 16, "gallery image") == "the whole gallery image"
    assert placed("most of the image", 12, "query") == "most of the query"
    assert placed("scattered regions", 3, "query") == "scattered regions of the query"
    assert placed("", 1, "query") == "one region of the query"
    assert placed("", 3, "query") == "3 regions of the query"
