"""`diml explain`: which part of one image matched which part of another, as a table, a page, a image and JSON."""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from diml.cli.evaluate import open_embedder

if TYPE_CHECKING:
    from rich.console import Console

    from diml.explain import Explanation, RankedHits

_STDOUT = Path("-")


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Explain how alike two images are: score = pooled + structural, and the part-to-part matches behind it; or why
    one hit of a query stands above another.

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
    """In place of A and B: a query whose hits are put in order and compared with each other."""

    hits: tuple[Path, ...] = ()
    """The images that the query is compared with, in any order."""

    output: Path | None = None
    """Draw the explanation here; the ending chooses the format (png, pdf, svg, jpg)."""

    html: Path | None = None
    """Write a page for the browser here, in one file: regions, lines and ledger to touch, sort and read."""

    json: Path | None = None
    """Write all numbers here, as fractions; `-` prints them to standard output instead."""

    model: str = "mobilenetv2_100"
    """A timm name, the folder of a saved embedder, or a checkpoint file of the released code."""

    architecture: str | None = None
    """Backbone of a checkpoint file, for instance resnet50."""

    grid: int | None = None
    """Regions a side: G x G. By default 4, or what the model was saved with."""

    resize: Literal["crop", "square"] | None = None
    """`crop`: short side to 256, centre 224; `square`: all of it to 224 x 224. By default the model's own."""

    marginals: Literal["cross_correlation", "uniform"] = "cross_correlation"
    """Mass of each region: by its agreement with the other image, or the same for all."""

    epsilon: float = 0.05
    """Entropy of the transport plan, in units of cosine; smaller is sharper and takes more iterations."""

    tolerance: float = 4e-6
    """Marginal error at which the plan is done."""

    max_iterations: int = 1000
    """Iterations after which an unfinished plan is taken as it is, and flagged."""

    sharpen: float = 1.0
    """Show a plan that is so many times sharper than the one that scored, and say so; 10 puts most of the mass on the
    strongest matches. Scores stay; for a pair only."""

    top: int = 8
    """Part-to-part matches to print and to draw, largest first."""

    device: str = "cpu"
    """Where to compute, for instance cuda."""

    def run(self) -> int:
        """Match, print, draw, write."""
        query, gallery = self._images()
        for image in (query, *gallery):  # before a model is loaded
            if not image.exists():
                raise FileNotFoundError(f"image {image}: no such file")
        self._check_names()
        found = self._match(query, gallery)
        written = self._write(found)
        self._print(found, written)
        return 0

    def _images(self) -> tuple[Path, tuple[Path, ...]]:
        """The query and what it is compared with."""
        if self.a is not None and self.b is not None and self.query is None and not self.hits:
            return self.a, (self.b,)
        if self.a is None and self.query is not None and self.hits:
            return self.query, self.hits
        raise ValueError("images: need A and B, or --query Q with --hits A B ..., and not both; see --help")

    def _check_names(self) -> None:
        """Refuse wrong names of files, and more lines than can be drawn, before a model is loaded."""
        from diml.explain import check_format, check_lines, check_page_name, check_sharpening

        if self.output is not None:
            check_format(self.output)
            check_lines(self.top)
        if self.html is not None:
            check_page_name(self.html)
        check_sharpening(self.sharpen)
        if self.sharpen > 1 and self.query is not None:
            raise ValueError("sharpen: shows a pair, A and B; hits are compared by the plans that scored")

    def _match(self, query: Path, gallery: tuple[Path, ...]) -> Explanation | RankedHits:
        from diml.explain import match_query, rank_hits, sharpened

        embedder = open_embedder(self.model, self.grid, self.resize, architecture=self.architecture)
        found = match_query(
            query,
            gallery,
            embedder=embedder.to(self.device),
            marginals=self.marginals,
            epsilon=self.epsilon,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )
        return sharpened(found[0], self.sharpen) if self.query is None else rank_hits(found)

    def _write(self, found: Explanation | RankedHits) -> list[Path]:
        """Write what was asked for; JSON may go to standard output."""
        from diml.explain import RankedHits, describe_hits, describe_match, explanation_page, save_figure
        from diml.files import write_text

        settings, several = self._settings(), isinstance(found, RankedHits)
        written = []
        if self.output is not None:
            figure = found.draw(min(self.top, 8)) if several else found.draw(self.top)
            written.append(save_figure(figure, self.output))
        if self.html is not None:
            written.append(write_text(self.html, explanation_page(found, settings=settings)))
        if self.json is not None:
            if isinstance(found, RankedHits):
                told = describe_hits(found, top=self.top, settings=settings)
            else:
                told = describe_match(found, top=self.top, names=found.names, settings=settings)
            text = json_format.dumps(told, indent=1, allow_nan=False) + "\n"
            if self.json == _STDOUT:
                sys.stdout.write(text)
            else:
                written.append(write_text(self.json, text))
        return written

    def _settings(self) -> dict[str, Any]:
        """The options that the numbers depend on; None where the model's own was taken."""
        names = ("model", "architecture", "grid", "resize", "marginals", "epsilon", "tolerance", "max_iterations")
        sharper = {"sharpen": self.sharpen} if self.sharpen > 1 else {}
        return {name: getattr(self, name) for name in names} | sharper

    def _print(self, found: Explanation | RankedHits, written: list[Path]) -> None:
        """The scores, what makes them and where files went; to standard error when JSON goes to output."""
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
            console.print("Add --html why.html to see and touch it, --output why.png for a image.", markup=False)


def _score_lines(found: Explanation) -> list[str]:
    ledger = found.ledger()
    lines = [f"score {ledger.score:.3f} = pooled {ledger.pooled:.3f} + structural {ledger.structural:.3f}"]
    if found.note:
        lines = [found.note]
    if not bool(found.converged[0]):
        error, steps = float(found.marginal_error[0]), int(found.iterations[0])
        lines.append(
            f"Not converged: marginal error {error:.1e} after {steps} iterations; raise --max-iterations or --epsilon."
        )
    return lines


def _table(found: Explanation, top: int) -> Any:
    """The largest contributions, the rest, and their sum, as a rich table."""
    from rich.table import Table

    from diml.explain import cell_name

    ledger = found.ledger()
    flows = ledger.top(top)
    table = Table(title="Part by part", caption="Cells by column and row: A1 is the top left")
    for column in ("query", "gallery", "mass", "cosine", "contribution"):
        table.add_column(column, justify="right")
    for flow in flows:
        cells = (cell_name(flow.region_q, found.grid_q), cell_name(flow.region_g, found.grid_g))
        table.add_row(*cells, f"{flow.mass:.5f}", f"{flow.cosine:.3f}", f"{flow.contribution:.5f}")
    table.add_section()
    others = ledger.plan.numel() - len(flows)
    rest = ledger.structural - sum(flow.contribution for flow in flows)
    table.add_row(f"{others} others", "", "", "", f"{rest:.5f}")
    table.add_row("sum" if found.note else "structural", "", "", "", f"{ledger.structural:.5f}")
    return table


def _print_hits(console: Console, hits: RankedHits, top: int) -> None:
    """The hits in order, and why each stands below the first."""
    from rich.table import Table
    from rich.text import Text

    from diml.explain import cell_name

    table = Table(title="Hits, best first")
    for column in ("hit", "score", "pooled", "structural", "rank by pooled", "image"):
        table.add_column(column, justify="left" if column == "image" else "right", overflow="fold")
    for place, match in enumerate(hits.matches):
        ledger = match.ledger()
        numbers = (f"{value:.3f}" for value in (ledger.score, ledger.pooled, ledger.structural))
        table.add_row(
            str(place + 1), *numbers, str(hits.pooled_rank[place]), Text("/".join(Path(match.names[1]).parts[-2:]))
        )
    console.print(table)
    grid = hits.matches[0].grid_q
    for place in range(1, len(hits)):
        contrast = hits.contrast(0, place)
        parts = ", ".join(f"{cell_name(at, grid)} {float(contrast.regions[at]):+.4f}" for at in contrast.top(top))
        line = f"hit 1 over hit {place + 1}: {contrast.score:+.4f} = pooled {contrast.pooled:+.4f}"
        line += f" + structural {contrast.structural:+.4f}" + (f", most by {parts}" if parts else "")
        console.print(line, markup=False, soft_wrap=True)
