"""What `diml explain` prints: parts for everybody, regions for experts, or the hits of a query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from diml.explain.formatting import contrast_text, percent, score_text, signed
from diml.explain.scale import plural
from diml.explain.summary import Summary, summarise
from diml.matching.cell_names import cell_name

if TYPE_CHECKING:
    from rich.console import Console

    from diml.explain import Explanation, RankedHits

_PLAIN: dict[str, Any] = {"markup": False, "soft_wrap": True}


def print_parts(console: Console, found: Explanation, parts: int | None) -> None:
    """What there is to say to somebody who does not know the method, and the score as a sum."""
    summary = summarise(found, parts=parts)
    console.print(summary.headline, style="bold", **_PLAIN)
    console.print(summary.sentence, **_PLAIN)
    for text in summary.warnings:
        console.print(f"Warning: {text}", style="yellow", **_PLAIN)
    console.print(_parts_table(found, summary))
    for line in _unmatched_lines(found, summary):
        console.print(line, **_PLAIN)
    if summary.background is not None:
        shares = summary.background
        console.print(
            f"Of the similarity, {percent(shares.object)} is from object to object, {percent(shares.mixed)} between "
            f"object and background, {percent(shares.background)} from background to background.",
            **_PLAIN,
        )
    for line in (*_scale_lines(found, summary), *_score_lines(found), *summary.hints):
        console.print(line, **_PLAIN)


def _parts_table(found: Explanation, summary: Summary) -> Table:
    """The parts, the rest, and their sum."""

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
    others = "overall look" if summary.overall else "others"
    table.add_row(others, *cells(summary.between.value, summary.between.share), "all other pairs of regions", "")
    if summary.pooled is not None:
        table.add_row("pooled", *cells(summary.pooled.value, summary.pooled.share), "the images as a whole", "")
    table.add_row("sum", "", signed(summary.score, 4))
    return table


def _cells(regions: Sequence[int], grid: tuple[int, int] | None) -> str:
    """The names of regions."""
    return " ".join(cell_name(region, grid) for region in regions)


def _unmatched_lines(found: Explanation, summary: Summary) -> list[str]:
    """What of either image is not transported; none where all is."""
    if summary.unmatched is None:
        return []
    query, gallery = summary.unmatched.query, summary.unmatched.gallery
    lines = []
    for name, side, grid in (("query", query, found.grid_q), ("gallery image", gallery, found.grid_g)):
        mostly = f", most of {_cells(side.regions, grid)}" if side.regions else ""
        lines.append(f"Unmatched: {percent(side.mass)} of the {name}{mostly}")
    return lines


def _scale_lines(found: Explanation, summary: Summary) -> list[str]:
    """Where the score is on the scale of the model, and on which side of the threshold."""
    bands = {band.kind: f" ({signed(band.low, 2)} to {signed(band.high, 2)})" for band in summary.scale.bands}
    marks = [f"{mark.label}, {signed(mark.value, 2)}{bands.get(mark.kind, '')}" for mark in summary.scale.marks]
    lines = [f"Scale: this pair, {signed(summary.ranking, 2)}; {'; '.join(marks)}"]
    if summary.threshold is not None:
        at = summary.threshold
        lines.append(
            f"Threshold: {signed(at.score, 3)}, which at most {100 * at.false_accept_rate:.3g} % of pairs of different "
            f"{plural(found.noun)} reach; this pair is {'above' if at.above else 'below'}."
        )
    return lines


def print_regions(console: Console, found: Explanation, top: int) -> None:
    """The score as a sum, warnings, and the largest matches of regions."""
    for line in _score_lines(found):
        console.print(line, **_PLAIN)
    summary = summarise(found)
    for text in summary.warnings:
        console.print(f"Warning: {text}", style="yellow", **_PLAIN)
    for line in _unmatched_lines(found, summary):
        console.print(line, **_PLAIN)
    if top:
        console.print(_table(found, top))


def _score_lines(found: Explanation) -> list[str]:
    """The score by which the pair is ranked, as a sum, and how the plan shown differs."""
    structural = float((found.structural if found.scored is None else found.scored)[0])
    line = score_text(found.ranked_by(), float(found.pooled[0]), structural, found.matcher.structural_weight)
    return [line[0].upper() + line[1:], *([found.note()] if found.note() else [])]


def _table(found: Explanation, top: int) -> Table:
    """The largest contributions, the rest, and their sum."""
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


def print_hits(console: Console, hits: RankedHits, top: int) -> None:
    """The ranked hits, and why each is below the first."""
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
