"""Text fits whatever the name of a file, and figures are saved atomically."""

from pathlib import Path

import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from diml.explain.canvas import PALETTE, Canvas, displayable, ink_on, save_figure


def test_a_long_path_keeps_its_end_within_the_space() -> None:
    canvas = Canvas(400, 100)
    cut = canvas.cut("/data/" + "x" * 300 + "/class/photo_001.jpg", 10, 200)
    assert cut == "…/class/photo_001.jpg"
    long_name = canvas.cut("y" * 300 + ".jpg", 10, 200)
    assert long_name.startswith("…y")
    assert long_name.endswith(".jpg")
    assert 180 < canvas.text_width(long_name, 10) <= 200


def test_what_fits_stays_unchanged() -> None:
    assert Canvas(400, 100).cut("a/b.jpg", 10, 200) == "a/b.jpg"


def test_signs_without_a_glyph_and_line_breaks_become_harmless() -> None:
    assert displayable("a\nb\t中 é \udcff.jpg") == "a b ? é ?.jpg"


def test_dollar_signs_are_not_formulas() -> None:
    canvas = Canvas(200, 60)
    canvas.text(10, 30, "$x^2$ and $ {")
    canvas.figure.canvas.draw()  # a formula would raise on the lone sign


@pytest.mark.parametrize("colour", PALETTE)
def test_writing_on_each_colour_has_contrast(colour: str) -> None:
    def light(value: str) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(value)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, bright = sorted((light(colour), light(ink_on(colour))))
    assert (bright + 0.05) / (dark + 0.05) > 4.5


@pytest.mark.parametrize("ending", ["png", "JPG", "pdf", "svg"])
def test_a_figure_is_saved_at_its_own_resolution(ending: str, tmp_path: Path) -> None:
    path = save_figure(Canvas(300, 120).figure, tmp_path / "deep" / f"why.{ending}")
    assert path.stat().st_size > 0
    assert [entry.name for entry in path.parent.iterdir()] == [f"why.{ending}"]
    if ending in ("png", "JPG"):
        with Image.open(path) as saved:
            assert saved.size == (300, 120)


@pytest.mark.parametrize("name", ["why", "why.txt"])
def test_an_unknown_format_is_refused_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"output: need a file name ending in one of .*png"):
        save_figure(Canvas(300, 120).figure, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
