"""Figures of any width: sizes of letters, rows, panels."""

from __future__ import annotations

import pytest

from diml.explain.blocks import Block, Item, Style, check_panels, in_rows, stacked
from diml.explain.canvas import Canvas


@pytest.mark.parametrize("dense", [True, False])
def test_letters_grow_with_the_width_and_are_never_too_small(dense: bool) -> None:
    styles = [Style.of(width, dense=dense) for width in (2.5, 3.3, 5.0, 6.9, 12.0, 24.0)]
    assert all(style.small >= 6 for style in styles)
    assert [style.text for style in styles] == sorted(style.text for style in styles)
    assert styles[1].text == pytest.approx(7)
    assert styles[5].text == pytest.approx(2 * styles[4].text)
    assert [style.narrow for style in styles[:3]] == [True, True, False]


@pytest.mark.parametrize("width", [2.4, 24.1, float("nan")])
def test_a_width_out_of_range_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match=r"width: need 2\.5 to 24 inches, got"):
        Style.of(width)


def test_blocks_are_below_each_other() -> None:
    style, tops = Style.of(3.3), []
    blocks = [Block(30, lambda canvas, top: tops.append(top), gap) for gap in (7.0, 11.0)]
    canvas = stacked(style, blocks)
    assert tops == pytest.approx([style.margin, style.margin + 30 + 11])
    assert canvas.height == pytest.approx(2 * style.margin + 30 + 11 + 30)


def test_items_take_the_columns_that_they_need_and_the_last_the_rest() -> None:
    style, drawn = Style.of(12), []

    def item(name: str, columns: float, grows: bool = False) -> Item:
        def draw(canvas: Canvas, left: float, top: float, width: float) -> None:
            drawn.append((name, round((left - style.margin) / column, 3), round(width / column, 3)))

        return Item(columns * column, lambda width: 40.0, draw, grows)

    column = style.space / 3
    items = [item("a", 0.5), item("b", 1), item("c", 1.5), item("d", 0.9, grows=True), item("e", 9), item("f", 0.1)]
    blocks = in_rows(style, items, 3, space=0, gap=5)
    stacked(style, blocks)
    assert drawn == [("a", 0, 1), ("b", 1, 1), ("c", 0, 2), ("d", 2, 1), ("e", 0, 3), ("f", 0, 1)]
    assert len(blocks) == 4


def test_panels_are_known() -> None:
    assert check_panels(None, ("a", "b")) == ("a", "b")
    assert check_panels(["b"], ("a", "b")) == ("b",)
    with pytest.raises(ValueError, match="panels: need some of a, b, got c"):
        check_panels(["a", "c"], ("a", "b"))
    with pytest.raises(ValueError, match="panels: need some of a, b, got none"):
        check_panels([], ("a", "b"))
