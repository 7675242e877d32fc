"""Text fits whatever the name of a file, and figures are saved atomically."""

import io
import re
import zlib
from pathlib import Path

import matplotlib
import pytest
from fontTools.ttLib import TTFont
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image

from diml.explain.canvas import (
    PALETTE,
    PARTS_PALETTE,
    Canvas,
    displayable,
    ink_on,
    save_figure,
    text_width,
    wrapped,
)


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


@pytest.mark.parametrize("dpi", [100, 200])
@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_text_is_not_wider_than_it_is_measured(dpi: float, weight: str) -> None:
    canvas = Canvas(900, 60, dpi=dpi)
    text = canvas.text(10, 30, "31 % of the similarity \N{LEFT RIGHT ARROW} top left", size=9, weight=weight)
    drawn = text.get_window_extent().width * 100 / dpi
    assert 0.93 < drawn / text_width(text.get_text(), 9, weight) < 1.002


@given(st.text(st.characters(codec="latin-1"), max_size=60), st.floats(30, 300))
def test_a_wrapped_paragraph_keeps_its_letters_within_the_space(text: str, space: float) -> None:
    lines = wrapped(text, 9, space)
    assert "".join("".join(lines).split()) == "".join(displayable(text).split())
    assert all(len(line) == 1 or text_width(line, 9) <= space for line in lines)


def written(way: str, ending: str, folder: Path) -> bytes:
    """A figure with text as a file, saved by us or by `Figure.savefig` as users do."""
    canvas = Canvas(300, 120)
    canvas.text(20, 60, "similarity 1.394")
    path = folder / f"why.{ending}"
    if way == "save_figure":
        save_figure(canvas.figure, path)
    elif way == "path":
        canvas.figure.savefig(path)
    else:
        with path.open("wb") as file:
            canvas.figure.savefig(file, format=ending)
    return path.read_bytes()


@pytest.mark.parametrize("way", ["save_figure", "path", "file"])
def test_a_pdf_has_embedded_truetype_fonts_and_no_type_3(way: str, tmp_path: Path) -> None:
    content = written(way, "pdf", tmp_path)
    assert b"/Type3" not in content
    assert b"/CIDFontType2" in content
    fonts = []
    for start in (match.end() for match in re.finditer(rb"stream\r?\n", content)):
        try:
            stream = zlib.decompressobj().decompress(content[start:])
        except zlib.error:
            continue
        if stream[:4] == b"\x00\x01\x00\x00":
            fonts.append(TTFont(io.BytesIO(stream)))
    assert len(fonts) == 1
    assert {"glyf", "loca", "head"} <= set(fonts[0].keys())


@pytest.mark.parametrize("way", ["save_figure", "path", "file"])
def test_an_svg_has_its_text_as_text(way: str, tmp_path: Path) -> None:
    content = written(way, "svg", tmp_path).decode("utf-8")
    assert ">similarity 1.394</text>" in content
    assert "DejaVu Sans" in content
    assert "sans-serif" in content


def test_saving_leaves_the_global_settings_as_they_were(tmp_path: Path) -> None:
    before = matplotlib.rcParams.copy()
    written("path", "pdf", tmp_path)
    with pytest.raises(FileNotFoundError):
        Canvas(100, 100).figure.savefig(tmp_path / "missing" / "why.pdf")
    assert matplotlib.rcParams.copy() == before


def test_parts_have_the_first_six_colours() -> None:
    assert PARTS_PALETTE == ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
