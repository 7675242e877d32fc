"""`diml explain`: which region of one image matches which region of another, as table, figure, page and JSON."""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from diml.cli.options import MatcherFlags, MatcherOptions, ModelFlags, ModelOptions

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from diml.explain import Explanation, RankedHits

_STDOUT = Path("-")


@dataclass(frozen=True, kw_only=True)
class ExplainCommand:
    """Explain the similarity of two images: the score as a sum, and the matches of regions that it consists of; or why
    one hit of a query ranks above another.

    For instance:

    diml explain a.jpg b.jpg

    diml explain a.jpg b.jpg --output why.png --json why.json

    diml explain a.jpg b.jpg --html why.html

    diml explain a.jpg b.jpg --model runs/mine --grid 7 --top 12 --output why.pdf

    diml explain a.jpg b.jpg --json - | jq .top

    diml explain --query a.jpg --hits b.jpg c.jpg d.jpg --html hits.html
    """

    a: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="A")] = None
    """The query image."""

    b: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="B")] = None
    """The image that it is compared with."""

    query: Path | None = None
    """Instead of A and B: a query whose hits are ranked and compared with each other."""

    hits: tuple[Path, ...] = ()
    """The images that the query is compared with, in any order."""

    output: Path | None = None
    """Write the figure here; the ending determines the format (png, pdf, svg, jpg)."""

    html: Path | None = None
    """Write an interactive page here, in one file: regions, lines and a sortable ledger."""

    json: Path | None = None
    """Write all numbers here, as fractions; `-` prints them to standard output instead."""

    model: ModelFlags = ModelOptions()

    matcher: MatcherFlags = MatcherOptions()

    sharpen: float = 1.0
    """Show a plan that is sharpened by this factor, labelled as such; 10 puts most of the mass on the strongest
    matches. Scores do not change; for a pair only."""

    top: int = 8
    """Number of largest matches of regions to print and to draw."""

    def run(self) -> int:
        """Match, print, draw, write."""
        query, gallery = self._images()
        for image in (query, *gallery):  # before a model is loaded
            if not image.exists():
                raise FileNotFoundError(f"image {image}: no such file")
        self._check_options()
        found = self._match(query, gallery)
        written = self._write(found)
        self._print(found, written)
        return 0

    def _images(self) -> tuple[Path, tuple[Path, ...]]:
        """The query and the images that it is compared with."""
        if self.a is not None and self.b is not None and self.query is None and not self.hits:
            return self.a, (self.b,)
        if self.a is None and self.query is not None and self.hits:
            return self.query, self.hits
        raise ValueError("images: need A and B, or --query Q with --hits A B ..., and not both; see --help")

    def _check_options(self) -> None:
        """Raise for wrong file names and too many lines before a model is loaded."""
        from diml.explain.html import check_page_name
        from diml.explain.sharpening import check_sharpening

        if self.output is not None:
            from diml.explain.canvas import check_format
            from diml.explain.flows import check_lines

            check_format(self.output)
            check_lines(self.top)
        if self.html is not None:
            check_page_name(self.html)
        check_sharpening(self.sharpen)
        if self.sharpen > 1 and self.query is not None:
            raise ValueError("sharpen: need a pair, A and B; hits are compared by the plans that scored")

    def _match(self, query: Path, gallery: tuple[Path, ...]) -> Explanation | RankedHits:
        from diml.explain import rank_hits
        from diml.explain.explanation import match_query
        from diml.explain.sharpening import sharpened

        embedder = self.model.open()
        notice = self.matcher.notice(embedder.matcher)
        if notice is not None:
            print(notice, file=sys.stderr)
        matcher = self.matcher.applied_to(embedder.matcher)
        found = match_query(query, gallery, embedder=embedder, matcher=matcher)
        return sharpened(found[0], self.sharpen) if self.query is None else rank_hits(found)

    def _write(self, found: Explanation | RankedHits) -> list[Path]:
        """Write the files that were asked for; JSON may go to standard output."""
        from diml.explain import RankedHits, explanation_page
        from diml.explain.explanation import describe_match
        from diml.explain.hits import describe_hits
        from diml.files import write_text

        settings, several = self._settings(), isinstance(found, RankedHits)
        written = []
        if self.output is not None:
            from diml.explain.canvas import save_figure

            written.append(save_figure(found.draw(top=min(self.top, 8) if several else self.top), self.output))
        if self.html is not None:
            written.append(write_text(self.html, explanation_page(found, settings=settings)))
        if self.json is not None:
            if isinstance(found, RankedHits):
                numbers = describe_hits(found, top=self.top, settings=settings)
            else:
                numbers = describe_match(found, top=self.top, names=found.names, settings=settings)
            text = json_format.dumps(numbers, indent=1, allow_nan=False) + "\n"
            if self.json == _STDOUT:
                sys.stdout.write(text)
            else:
                written.append(write_text(self.json, text))
        return written

    def _settings(self) -> dict[str, Any]:
        """How the images became regions; None where the model's own setting applies."""
        return self.model.settings() | ({"sharpen": self.sharpen} if self.sharpen > 1 else {})

    def _print(self, found: Explanation | RankedHits, written: list[Path]) -> None:
        """The scores, the matches behind them and the files written; to standard error when JSON is printed."""
        from rich.console import Console

        from diml.explain import RankedHits

        console = Console(stderr=self.json == _STDOUT, highlight=False)
        if isinstance(found, RankedHits):
            _print_hits(console, found, self.top)
        else:
            for line in _score_lines(found):
                console.print(line, markup=False, soft_wrap=True)
            if self.top:
                console.print(_table(found, self.top))
        if written:
            console.print("Written: " + ", ".join(str(path) for path in written), markup=False, soft_wrap=True)
        elif self.json is None:
            console.print("Add --html why.html for an interactive page, --output why.png for a figure.", markup=False)


COMMAND = ExplainCommand


def _score_lines(found: Explanation) -> list[str]:
    from diml.explain.formatting import ledger_text

    lines = [found.note() or ledger_text(found.ledger())]
    if not bool(found.converged[0]):
        error, steps = float(found.marginal_error[0]), int(found.iterations[0])
        lines.append(
            f"Not converged: marginal error {error:.1e} after {steps} iterations; raise --max-iterations or --epsilon."
        )
    return lines


def _table(found: Explanation, top: int) -> Table:
    """The largest contributions, the rest, and their sum."""
    from rich.table import Table

    from diml.explain.formatting import cell_name

    ledger = found.ledger()
    flows = ledger.top(top)
    table = Table(title="Matches of regions", caption="Regions by column and row: A1 is the top left")
    for column in ("query", "gallery", "mass", "cosine", "contribution"):
        table.add_column(column, justify="right")
    for flow in flows:
        cells = (cell_name(flow.region_q, found.grid_q), cell_name(flow.region_g, found.grid_g))
        table.add_row(*cells, f"{flow.mass:.5f}", f"{flow.cosine:.3f}", f"{flow.contribution:.5f}")
    table.add_section()
    others = ledger.plan.numel() - len(flows)
    rest = ledger.structural - sum(flow.contribution for flow in flows)
    table.add_row(f"{others} others", "", "", "", f"{rest:.5f}")
    table.add_row("sum" if found.note() else "structural", "", "", "", f"{ledger.structural:.5f}")
    return table


def _print_hits(console: Console, hits: RankedHits, top: int) -> None:
    """The ranked hits, and why each is below the first."""
    from rich.table import Table
    from rich.text import Text

    from diml.explain.formatting import contrast_text, short_path

    table = Table(title="Hits, best first")
    for column in ("hit", "score", "pooled", "structural", "rank by pooled", "image"):
        table.add_column(column, justify="left" if column == "image" else "right", overflow="fold")
    for place, match in enumerate(hits.matches):
        ledger = match.ledger()
        numbers = (f"{value:.3f}" for value in (ledger.score, ledger.pooled, ledger.structural))
        table.add_row(str(place + 1), *numbers, str(hits.pooled_rank[place]), Text(short_path(match.names[1])))
    console.print(table)
    for place in range(1, len(hits)):
        line = f"hit 1 over hit {place + 1}: {contrast_text(hits.contrast(0, place), top)}"
        console.print(line, markup=False, soft_wrap=True)
