"""A CSV file is read completely, or refused with the number of the line."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diml.data import load_dataset
from diml.data.csv_table import read_csv
from diml.search.sources import list_source

HEAD = "path,label,split,note\n"
ROWS = [f"{name}.png,x,test,small one" for name in "abcdefghijklmnop"]


def written(folder: Path, text: str) -> Path:
    file = folder / "shop.csv"
    file.write_text(text, encoding="utf-8", newline="")
    return file


def with_row(number: int, line: str, *, more: dict[int, str] | None = None) -> str:
    """The file of 16 images, with another line (from 1) in place of one row."""
    rows = list(ROWS)
    for place, text in {number: line, **(more or {})}.items():
        rows[place - 1] = text
    return HEAD + "\n".join(rows) + "\n"


MALFORMED = {
    "quote without an end": (with_row(3, 'c.png,x,test,"small one'), "line 4: has a quote that is not closed"),
    "quote that a later row ends": (
        with_row(3, 'c.png,x,test,"small one', more={10: 'j.png,x,test,big"'}),
        "line 4: the cell of 'note' has line ends",
    ),
    "quote in the first column": (
        with_row(3, '"c.png,x,test,small', more={4: 'd.png",x,test,one'}),
        "line 4: the cell of 'path' has line ends",
    ),
    "two such quotes": (
        with_row(
            3, 'c.png,x,test,"one', more={5: 'e.png,x,test,two"', 8: 'h.png,x,test,"three', 9: 'i.png,x,test,four"'}
        ),
        "line 9: the cell of 'note' has line ends, and its lines read like rows",
    ),
    "text after a quote": (with_row(3, 'c.png,x,test,"small" one'), "line 4: has text after a closing quote"),
    "too few cells": (with_row(3, "c.png,x,test"), "line 4: has 3 cells, and the first line has 4 columns"),
    "too many cells": (with_row(3, "c.png,x,test,1,50"), "line 4: has 5 cells"),
    "a line end in one row only": (with_row(3, 'c.png,x,test,"small\none"'), "line 4: .*no other row has any"),
    "a column twice": (HEAD.replace("note", "label") + ROWS[0] + "\n", "line 1: need distinct columns, got 'label'"),
    "a zero byte": (with_row(3, "c.png,x,test,sm\0all"), "line 4: .*zero byte"),
    "a quote in the first line": (f'path,"label,split,note\n{ROWS[0]}\n', "line 1"),
}


@pytest.mark.filterwarnings("ignore::diml.data.csv_file.UnusedColumnsWarning")
@pytest.mark.parametrize("reader", ["data set", "index"])
@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_files_are_refused_with_the_line(tmp_path, reader, kind):
    text, told = MALFORMED[kind]
    for name in "abcdefghijklmnop":
        (tmp_path / f"{name}.png").touch()
    file = written(tmp_path, text)
    with pytest.raises(ValueError, match=told):
        load_dataset("csv", file) if reader == "data set" else list_source(file)


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path):
    (tmp_path / "shop.csv").write_bytes(HEAD.encode() + b"a.png,x,test,\nb.png,caf\xe9,test,\n")
    with pytest.raises(ValueError, match=r"UTF-8 \(line 3: .*0xe9"):
        read_csv(tmp_path / "shop.csv")


def test_cells_with_line_ends_are_read_where_several_rows_have_them(tmp_path):
    text = 'path,note\na.png,"one\ntwo, three"\nb.png,plain\nc.png,"four\nfive"\n'
    table = read_csv(written(tmp_path, text))
    table.require_sound()
    assert [(row.line, row.cells["note"]) for row in table.rows] == [
        (2, "one\ntwo, three"),
        (4, "plain"),
        (5, "four\nfive"),
    ]


def test_special_files_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ValueError, match="no regular file"):
        read_csv(tmp_path / "pipe.csv")
    with pytest.raises(ValueError, match="a folder"):
        read_csv(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_csv(tmp_path / "nowhere.csv")


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(CELL, min_size=3, max_size=3), min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]))
def test_what_python_writes_comes_back_with_its_lines(tmp_path_factory, rows, end):
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows([["path", "a", "b"], *rows])
    table = read_csv(written(tmp_path_factory.mktemp("csv"), text.getvalue()))
    table.require_sound()
    assert [row.line for row in table.rows] == list(range(2, len(rows) + 2))
    assert [list(row.cells.values()) for row in table.rows] == [[cell.strip() for cell in row] for row in rows]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 16), st.integers(0, 60), st.sampled_from(['"', '""', '"x', ',"', '\n"']))
def test_a_stray_quote_anywhere_loses_no_row_silently(tmp_path_factory, number, place, quote):
    """Either every image is there, or the file is refused."""
    line = ROWS[number - 1]
    text = with_row(number, line[: place % len(line)] + quote + line[place % len(line) :])
    told, rows = "", ()
    try:
        table = read_csv(written(tmp_path_factory.mktemp("csv"), text))
        rows = table.rows
        table.require_sound()
    except ValueError as error:
        told = str(error)
    assert "line " in told if told else len(rows) == 16
