"""`diml explain`: which part of one picture matched which part of another, as a table, a page, a picture and JSON."""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from diml.cli.evaluate import open_embedder

if TYPE_CHECKING:
    from diml.explain import PictureMatch

_STDOUT = Path("-")


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Explain how alike two pictures are: score = pooled + structural, and the part-to-part matches behind it.

    For instance:

    diml explain a.jpg b.jpg

    diml explain a.jpg b.jpg --output why.png --json why.json

    diml explain a.jpg b.jpg --html why.html

    diml explain a.jpg b.jpg --model runs/mine --grid 7 --top 12 --output why.pdf

    diml explain a.jpg b.jpg --json - | jq .top
    """

    a: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """The query picture."""

    b: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """The picture that it is compared with."""

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
    """Mass of each region: by its agreement with the other picture, or the same for all."""

    epsilon: float = 0.05
    """Entropy of the transport plan, in units of cosine; smaller is sharper and takes more iterations."""

    tolerance: float = 1e-4
    """Marginal error at which the plan is done."""

    max_iterations: int = 1000
    """Iterations after which an unfinished plan is taken as it is, and flagged."""

    top: int = 8
    """Part-to-part matches to print and to draw, largest first."""

    device: str = "cpu"
    """Where to compute, for instance cuda."""

    def run(self) -> int:
        """Match, print, draw, write."""
        from diml.explain import (
            check_format,
            check_lines,
            check_page_name,
            describe_match,
            explanation_page,
            save_figure,
        )
        from diml.files import write_text

        for picture in (self.a, self.b):  # before a model is loaded
            if not picture.exists():
                raise FileNotFoundError(f"picture {picture}: no such file")
        if self.output is not None:
            check_format(self.output)
            check_lines(self.top)
        if self.html is not None:
            check_page_name(self.html)
        found = self._match()
        written = []
        if self.output is not None:
            written.append(save_figure(found.draw(self.top), self.output))
        if self.html is not None:
            written.append(write_text(self.html, explanation_page(found, settings=self._settings())))
        if self.json is not None:
            explained = describe_match(found, top=self.top, names=found.names, settings=self._settings())
            text = json_format.dumps(explained, indent=1, allow_nan=False) + "\n"
            if self.json == _STDOUT:
                sys.stdout.write(text)
            else:
                written.append(write_text(self.json, text))
        self._print(found, written)
        return 0

    def _match(self) -> PictureMatch:
        from diml.explain import match_pictures

        embedder = open_embedder(self.model, self.grid, self.resize, architecture=self.architecture)
        return match_pictures(
            self.a,
            self.b,
            embedder=embedder.to(self.device),
            marginals=self.marginals,
            epsilon=self.epsilon,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )

    def _settings(self) -> dict[str, Any]:
        """The options that the numbers depend on; None where the model's own was taken."""
        names = ("model", "architecture", "grid", "resize", "marginals", "epsilon", "tolerance", "max_iterations")
        return {name: getattr(self, name) for name in names}

    def _print(self, found: PictureMatch, written: list[Path]) -> None:
        """The score, the largest contributions and where files went; to standard error when JSON goes to output."""
        from rich.console import Console

        console = Console(stderr=self.json == _STDOUT, highlight=False)
        for line in _score_lines(found):
            console.print(line, markup=False, soft_wrap=True)
        if self.top:
            console.print(_table(found, self.top))
        if written:
            console.print("Written: " + ", ".join(str(path) for path in written), markup=False, soft_wrap=True)
        elif self.json is None:
            console.print("Add --html why.html to see and touch it, --output why.png for a picture.", markup=False)


def _score_lines(found: PictureMatch) -> list[str]:
    ledger = found.ledger()
    lines = [f"score {ledger.score:.3f} = pooled {ledger.pooled:.3f} + structural {ledger.structural:.3f}"]
    if not bool(found.converged[0]):
        error, steps = float(found.marginal_error[0]), int(found.iterations[0])
        lines.append(
            f"Not converged: marginal error {error:.1e} after {steps} iterations; raise --max-iterations or --epsilon."
        )
    return lines


def _table(found: PictureMatch, top: int) -> Any:
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
    table.add_row("structural", "", "", "", f"{ledger.structural:.5f}")
    return table
