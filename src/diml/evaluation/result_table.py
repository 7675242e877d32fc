"""A table of results: percent with intervals, printed, or written as Markdown or LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from rich.table import Table
from rich.text import Text

from diml.extras import require

#: Names of the formats in tabulate.
_TABULATE: Final = {"markdown": "pipe", "latex": "latex_booktabs"}


class Cell(NamedTuple):
    """A cell: what it says, and what stands below it, a note or the two ends of an interval, as shown."""

    text: str
    below: tuple[str, ...] = ()

    @classmethod
    def of(cls, value: float, bounds: tuple[float, float] | None, form: str, bounds_form: str = "") -> Cell:
        """A fraction in percent, with its interval where there is one."""
        return cls(format(100 * value, form), tuple(format(100 * end, bounds_form) for end in bounds or ()))

    def in_line(self) -> str:
        """All in one line."""
        return f"{self.text} ({' to '.join(self.below)})" if self.below else self.text


@dataclass(frozen=True)
class ResultTable:
    """Rows of cells below named columns; `print` of rich shows it.

    Args:
        columns: headings, which may have several lines; the first `words` columns are text, the others numbers.
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

    def written(self, form: Literal["markdown", "latex"]) -> str:
        """The table as text for a document; LaTeX in the style of booktabs, without title and caption.

        Raises:
            ValueError: another format.
            MissingExtraError: the package tabulate is not installed.
        """
        if form not in _TABULATE:
            raise ValueError(f"format: need one of {', '.join(_TABULATE)}, got {form!r}")
        require("tables", f"tables in {form}")
        from tabulate import tabulate

        headings = [column.replace("\n", " ") for column in self.columns]
        lines = [headings, *([cell.in_line() for cell in row] for row in self.rows)]
        if form == "markdown":
            lines = [[text.replace("|", "\\|") for text in line] for line in lines]
        align = ["left"] * self.words + ["right"] * (len(self.columns) - self.words)
        made: str = tabulate(lines[1:], lines[0], _TABULATE[form], disable_numparse=True, colalign=align)
        if form == "latex":
            return made + "\n"
        return "\n\n".join(part for part in (self.title, made, self.caption) if part) + "\n"

    def __rich__(self) -> Table:
        """For the terminal: intervals and notes below, so that tables fit 80 columns."""
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
                Text.assemble(cell.text, "\n", ("..".join(cell.below), "dim")) if cell.below else Text(cell.text)
                for cell in row
            ]
            table.add_row(*shown, end_section=number in self.sections)
        return table
