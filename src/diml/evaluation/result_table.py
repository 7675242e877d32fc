"""A table of results: percent with intervals, printed, or written as Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, get_args

from rich.table import Table
from rich.text import Text

from diml.extras import require

#: How a table is written: for the terminal, or for documents and programs.
TableFormat = Literal["table", "markdown", "latex", "csv"]
#: Their names in tabulate.
_TABULATE: Final = {"markdown": "pipe", "latex": "latex_booktabs"}


class Cell(NamedTuple):
    """A cell: what it says, and the ends of an interval, both as shown."""

    text: str
    low: str = ""
    high: str = ""

    @classmethod
    def of(cls, value: float, bounds: tuple[float, float] | None, form: str, bounds_form: str) -> Cell:
        """A fraction in percent, with its interval where there is one."""
        ends = () if bounds is None else (format(100 * end, bounds_form) for end in bounds)
        return cls(format(100 * value, form), *ends)


@dataclass(frozen=True)
class ResultTable:
    """Rows of cells below named columns; `print` of rich shows it.

    Args:
        columns: headings; the first `words` columns are text, the others numbers.
        title, caption: above and below, in the terminal and in Markdown.
        words: number of columns of text.
        rows: cells, as many as columns.
        sections: numbers of rows that a line separates from the next, in the terminal.
    """

    columns: Sequence[str]
    title: str | None = None
    caption: str | None = None
    words: int = 1
    rows: list[list[Cell]] = field(default_factory=list)
    sections: set[int] = field(default_factory=set)

    def add(self, *cells: Cell | str) -> None:
        """Append a row."""
        self.rows.append([cell if isinstance(cell, Cell) else Cell(cell) for cell in cells])

    def end_section(self) -> None:
        """Separate the rows so far from the next."""
        self.sections.add(len(self.rows) - 1)

    def written(self, form: TableFormat) -> str:
        """The table as text in one of the formats but "table".

        Raises:
            ValueError: another format.
            MissingExtraError: Markdown and LaTeX need the package tabulate.
        """
        if form == "csv":
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([self.columns, *self._texts("{} to {}")])
            return text.getvalue()
        if form not in _TABULATE:
            raise ValueError(f"format: need one of {', '.join(get_args(TableFormat)[1:])}, got {form!r}")
        require("tables", f"tables in {form}")
        from tabulate import tabulate

        align = ["left"] * self.words + ["right"] * (len(self.columns) - self.words)
        between = "{}--{}" if form == "latex" else "{} to {}"
        made: str = tabulate(self._texts(between), self.columns, _TABULATE[form], disable_numparse=True, colalign=align)
        if form == "latex":
            return made + "\n"
        return "\n\n".join(part for part in (self.title, made, self.caption) if part) + "\n"

    def _texts(self, between: str) -> list[list[str]]:
        """The cells with their intervals in parentheses."""
        return [
            [cell.text + (f" ({between.format(cell.low, cell.high)})" if cell.low else "") for cell in row]
            for row in self.rows
        ]

    def __rich__(self) -> Table:
        """For the terminal: intervals below their values, so that tables fit 80 columns."""
        table = Table(title=self.title, title_justify="left", caption=self.caption, caption_justify="left")
        for place, column in enumerate(self.columns):
            words = place < self.words
            table.add_column(
                column,
                justify="left" if words else "right",
                no_wrap=not words,
                min_width=15 if place == 0 else None,
                overflow="fold",
            )
        for number, row in enumerate(self.rows):
            shown = [
                Text.assemble(cell.text, "\n", (f"{cell.low}..{cell.high}", "dim")) if cell.low else Text(cell.text)
                for cell in row
            ]
            table.add_row(*shown, end_section=number in self.sections)
        return table
