"""`diml explain`: why two images match, for everybody and in detail: in words, as table, figure, page and JSON."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from diml.cli.options import (
    ForegroundFlags,
    ForegroundOptions,
    MatcherFlags,
    MatcherOptions,
    ModelFlags,
    ModelOptions,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from diml.audit import Foregrounds
    from diml.calibration.finding import FoundCalibration
    from diml.explain import Explanation, RankedHits
    from diml.explain.summary import Summary
    from diml.matching import Matcher
    from diml.models import Embedder

_STDOUT = Path("-")


@dataclass(frozen=True, kw_only=True)
class ExplainCommand:
    """Explain the similarity of two images: how sure it is that they show the same, which parts match and what share of
    the similarity each carries; with --view regions, the matches of single regions. Or why one hit of a query ranks
    above another.

    For instance:

    diml explain a.jpg b.jpg

    diml explain a.jpg b.jpg --output why.png --json why.json

    diml explain a.jpg b.jpg --html why.html

    diml explain a.jpg b.jpg --model runs/mine --kind product --masks masks

    diml explain a.jpg b.jpg --view regions --grid 7 --top 12

    diml explain a.jpg b.jpg --output why.pdf --width 3.3

    diml explain a.jpg b.jpg --json - | jq .summary

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

    view: Literal["parts", "regions"] = "parts"
    """`parts`: groups of regions that match, for everybody; `regions`: single regions, for experts. Of the figure and
    of what is printed; page and JSON have both."""

    plan: Literal["exact", "scored"] = "exact"
    """Plan to show: `exact`, in which a region sends its mass to few others; or `scored`, the plan of the matcher, by
    which pairs are ranked. What is printed says where their sums differ."""

    parts: int | None = None
    """Largest number of parts; 3 to 6 by default."""

    top: int = 8
    """With --view regions: number of largest matches of regions to print and to draw."""

    output: Path | None = None
    """Write the figure here; the ending determines the format (png, pdf, svg, jpg)."""

    width: float | None = None
    """Width of the figure in inches; 3.3 and 6.9 fit one and two columns of a paper."""

    overlay: bool = False
    """Tint the parts in the figure in their colours, which changes how the images look."""

    html: Path | None = None
    """Write an interactive page here, in one file: parts, regions, lines and a sortable ledger."""

    json: Path | None = None
    """Write all numbers here, as fractions; `-` prints them to standard output instead."""

    model: ModelFlags = ModelOptions()

    matcher: MatcherFlags = MatcherOptions()

    calibration: Path | None = None
    """Folder with a calibration.json of `diml calibrate`, from which probabilities are read; by default that of the
    model, if it has one for these settings."""

    kind: str | None = None
    """What images of one class have in common, for the sentences: product, person. By default as calibrated, else
    class."""

    foregrounds: ForegroundFlags = ForegroundOptions()

    def run(self) -> int:
        """Match, print, draw, write."""
        query, gallery = self._images()
        for image in (query, *gallery):  # before a model is loaded
            if not image.exists():
                raise FileNotFoundError(f"image {image}: no such file")
        self._check_options()
        foregrounds = self._foregrounds((query, *gallery)) if self.foregrounds.given else None
        found = self._match(query, gallery, foregrounds)
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
        """Raise for wrong file names and numbers before a model is loaded."""
        from diml.explain.html import check_page_name

        if self.parts is not None and self.parts < 1:
            raise ValueError(f"parts: need at least 1, got {self.parts}")
        if self.top < 0:
            raise ValueError(f"top: need 0 or more, got {self.top}")
        if self.output is not None:
            from diml.explain.canvas import check_format
            from diml.explain.flows import check_lines

            check_format(self.output)
            check_lines(self.top)
        if self.html is not None:
            check_page_name(self.html)
        of_pairs = {"plan": self.plan != "exact", "parts": self.parts is not None}
        given = [f"--{name}" for name, value in of_pairs.items() if value]
        if self.query is not None and given:
            raise ValueError(f"{', '.join(given)}: need a pair, A and B; hits are ranked by the plan of the matcher")

    def _foregrounds(self, images: tuple[Path, ...]) -> list[Foregrounds]:
        """Where the object is in each image, by its own path: query and hits may lie in different folders."""
        from diml.data import ImageSet

        return [self.foregrounds.open(ImageSet([image], ["image"])) for image in images]

    def _match(
        self, query: Path, gallery: tuple[Path, ...], foregrounds: list[Foregrounds] | None
    ) -> Explanation | RankedHits:
        from diml.explain import rank_hits
        from diml.explain.explanation import match_query
        from diml.explain.shown_plan import shown_plan

        embedder = self.model.open()
        notice = self.matcher.notice(embedder.matcher)
        if notice is not None:
            print(notice, file=sys.stderr)
        matcher = self.matcher.applied_to(embedder.matcher)
        calibration = self._calibration(embedder, matcher)
        if calibration.notice:
            print(calibration.notice, file=sys.stderr)
        found = match_query(query, gallery, embedder=embedder, matcher=matcher, calibrator=calibration.calibrator)
        found = [replace(match, kind=self.kind or "") for match in found]
        if foregrounds is not None:
            found = _with_foregrounds(found, foregrounds, embedder)
        return shown_plan(found[0], plan=self.plan) if self.query is None else rank_hits(found)

    def _calibration(self, embedder: Embedder, matcher: Matcher) -> FoundCalibration:
        """The calibration that was named, or that of the model."""
        from diml.calibration.calibrator import FILE
        from diml.calibration.finding import FoundCalibration, find_calibration

        folder = Path(self.model.model or "")
        if self.calibration is None and (not self.model.model or not (folder / FILE).is_file()):
            return FoundCalibration()  # without reading all weights for a fingerprint
        return find_calibration([folder], fingerprint=embedder.fingerprint(), matcher=matcher, named=self.calibration)

    def _write(self, found: Explanation | RankedHits) -> list[Path]:
        """Write the files that were asked for; JSON may go to standard output."""
        from diml.explain import RankedHits, explanation_page
        from diml.explain.description import describe_match
        from diml.explain.hits import describe_hits
        from diml.files import write_text

        settings = self._settings()
        written = []
        if self.output is not None:
            from diml.explain.canvas import save_figure

            written.append(save_figure(self._draw(found), self.output))
        if self.html is not None:
            page = explanation_page(found, settings=settings, plan=self.plan, parts=self.parts)
            written.append(write_text(self.html, page))
        if self.json is not None:
            if isinstance(found, RankedHits):
                numbers = describe_hits(found, top=self.top, settings=settings)
            else:
                numbers = describe_match(found, top=self.top, names=found.names, settings=settings, parts=self.parts)
            text = json_format.dumps(numbers, indent=1, allow_nan=False) + "\n"
            if self.json == _STDOUT:
                sys.stdout.write(text)
            else:
                written.append(write_text(self.json, text))
        return written

    def _draw(self, found: Explanation | RankedHits) -> Any:
        """The figure of a pair, or of hits."""
        from diml.explain import RankedHits

        if isinstance(found, RankedHits):
            return found.draw(top=min(self.top, 8))
        return found.draw(
            view=self.view,
            plan=self.plan,
            overlay=self.overlay or None,
            top=self.top,
            width=self.width,
            parts=self.parts,
        )

    def _settings(self) -> dict[str, Any]:
        """How the images became regions; None where the model's own setting applies."""
        return self.model.settings() | self.foregrounds.settings()

    def _print(self, found: Explanation | RankedHits, written: list[Path]) -> None:
        """What there is to say, and the files written; to standard error when JSON is printed."""
        from rich.console import Console

        from diml.explain import RankedHits

        console = Console(stderr=self.json == _STDOUT, highlight=False)
        if isinstance(found, RankedHits):
            _print_hits(console, found, self.top)
        elif self.view == "parts":
            _print_parts(console, found, self.parts)
        else:
            _print_regions(console, found, self.top)
        if written:
            console.print("Written: " + ", ".join(str(path) for path in written), markup=False, soft_wrap=True)
        elif self.json is None:
            console.print("Add --html why.html for an interactive page, --output why.png for a figure.", markup=False)


COMMAND = ExplainCommand


def _with_foregrounds(
    found: list[Explanation], foregrounds: list[Foregrounds], embedder: Embedder
) -> list[Explanation]:
    """The matches with the fraction of each region that is object."""
    grids = [found[0].grid_q, *(match.grid_g for match in found)]
    if None in grids:
        raise ValueError("foregrounds: need regions on a known grid, got a model without; choose one with --grid")
    covered = [
        one.cover(embedder.preprocess, grid).values[0]
        for one, grid in zip(foregrounds, grids, strict=True)
        if grid is not None
    ]
    return [replace(match, foregrounds=(covered[0], hit)) for match, hit in zip(found, covered[1:], strict=True)]


def _print_parts(console: Console, found: Explanation, parts: int | None) -> None:
    """What there is to say to somebody who does not know the method, and the score as a sum."""
    from diml.explain.formatting import percent
    from diml.explain.summary import summarise

    plain: dict[str, Any] = {"markup": False, "soft_wrap": True}
    summary = summarise(found, parts=parts)
    console.print(summary.headline, style="bold", **plain)
    console.print(summary.sentence, **plain)
    for text in summary.warnings:
        console.print(f"Warning: {text}", style="yellow", **plain)
    console.print(_parts_table(found, summary))
    if summary.unmatched is not None:
        for name, side, grid in (
            ("query", summary.unmatched.query, found.grid_q),
            ("gallery image", summary.unmatched.gallery, found.grid_g),
        ):
            mostly = f", mostly of {_cells(side.regions, grid)}" if side.regions else ""
            console.print(f"Unmatched: {percent(side.mass)} of the {name}{mostly}", **plain)
    if summary.background is not None:
        shares = summary.background
        console.print(
            f"Of the similarity, {percent(shares.object)} is from object to object, {percent(shares.mixed)} between "
            f"object and background, {percent(shares.background)} from background to background.",
            **plain,
        )
    for line in (*_scale_lines(summary), *_score_lines(found), *summary.hints):
        console.print(line, **plain)


def _parts_table(found: Explanation, summary: Summary) -> Table:
    """The parts, the rest, and their sum."""
    from rich.table import Table

    from diml.explain.formatting import percent, signed

    def cells(value: float, share: float | None) -> tuple[str, str]:
        return ("" if share is None else percent(share)), signed(value, 4)

    table = Table(
        caption=f"Regions by column and row: A1 is the top left. Plan: {summary.plan}", caption_justify="left"
    )
    for column in ("part", "share", "value", "query", "gallery"):
        table.add_column(column, justify="right" if column in ("share", "value") else "left", overflow="fold")
    for row in summary.parts:
        query, gallery = (
            f"{place + ': ' if place else ''}{_cells(regions, grid)}"
            for place, regions, grid in (
                (row.place_q, row.regions_q, found.grid_q),
                (row.place_g, row.regions_g, found.grid_g),
            )
        )
        table.add_row(str(row.part), *cells(row.value, row.share), query, gallery)
    table.add_section()
    table.add_row("others", *cells(summary.between.value, summary.between.share), "regions of different parts", "")
    if summary.pooled is not None:
        table.add_row("pooled", *cells(summary.pooled.value, summary.pooled.share), "the images as a whole", "")
    table.add_row("sum", "", signed(summary.score, 4))
    return table


def _cells(regions: Sequence[int], grid: tuple[int, int] | None) -> str:
    from diml.explain.formatting import cell_name

    return " ".join(cell_name(region, grid) for region in regions)


def _scale_lines(summary: Summary) -> list[str]:
    """Where the score is on the scale of the model, and on which side of the threshold."""
    from diml.explain.formatting import signed

    bands = {band.kind: f" ({signed(band.low, 2)} to {signed(band.high, 2)})" for band in summary.scale.bands}
    marks = [f"{mark.label}, {signed(mark.value, 2)}{bands.get(mark.kind, '')}" for mark in summary.scale.marks]
    lines = [f"Scale: this pair, {signed(summary.ranking, 2)}; {'; '.join(marks)}"]
    if summary.threshold is not None:
        at = summary.threshold
        side = "above" if at.above else "below"
        lines.append(
            f"This pair is {side} {signed(at.score, 3)}, from where on at most {100 * at.false_accept_rate:.3g} % of "
            "different pairs are accepted."
        )
    return lines


def _print_regions(console: Console, found: Explanation, top: int) -> None:
    """The score as a sum, warnings, and the largest matches of regions."""
    from diml.explain.summary import summarise

    plain: dict[str, Any] = {"markup": False, "soft_wrap": True}
    for line in _score_lines(found):
        console.print(line, **plain)
    for text in summarise(found).warnings:
        console.print(f"Warning: {text}", style="yellow", **plain)
    if top:
        console.print(_table(found, top))


def _score_lines(found: Explanation) -> list[str]:
    """The score by which the pair is ranked, as a sum, and how the plan shown differs."""
    from diml.explain.formatting import score_text

    structural = float((found.structural if found.scored is None else found.scored)[0])
    line = score_text(found.ranked_by(), float(found.pooled[0]), structural, found.matcher.structural_weight)
    return [line[0].upper() + line[1:], *([found.note()] if found.note() else [])]


def _table(found: Explanation, top: int) -> Table:
    """The largest contributions, the rest, and their sum."""
    from rich.table import Table

    from diml.explain.formatting import cell_name

    ledger = found.ledger()
    flows = ledger.top(top)
    caption = f"Regions by column and row: A1 is the top left. Plan: {found.plan_shown}"
    table = Table(title="Matches of regions", caption=caption, title_justify="left", caption_justify="left")
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


def _print_hits(console: Console, hits: RankedHits, top: int) -> None:
    """The ranked hits, and why each is below the first."""
    from rich.table import Table
    from rich.text import Text

    from diml.explain.formatting import contrast_text

    head, *rows = hits.table()
    title = f"Hits, best first; likely the same {hits.matches[0].noun}" if "likely" in head else "Hits, best first"
    table = Table(title=title, title_justify="left")
    for column in head:
        table.add_column(column, justify="left" if column == "image" else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    for place in range(1, len(hits)):
        line = f"hit 1 over hit {place + 1}: {contrast_text(hits.contrast(0, place), top)}"
        console.print(line, markup=False, soft_wrap=True)
