"""A query with its best hits in one figure: a row a hit, with its regions, its score and whether it is correct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from diml.explain.canvas import ALARM, FAINT, INK, QUIET, Canvas, ink_on
from diml.explain.explanation import Explanation
from diml.explain.figure import WIDTH
from diml.explain.flows import SLOT, colour_of, draw_flows, drawn_flows
from diml.explain.formatting import TIMES, ScoreTerm, cell_name, decimals, score_terms, share_text, signed
from diml.explain.panels import Panel, heat_scale, sides_of
from diml.matching import Ledger
from diml.matching.ledger import Flow

TERM_COLOURS: Final = {"pooled": "#57606a", "structural": "#0072b2"}
RIGHT: Final = "#00664b"
WRONG: Final = "#b04300"
_SIDE: Final = 280.0
_QUERY: Final = 46.0
_GALLERY: Final = 462.0
_TEXT: Final = 792.0
_EDGE: Final = 28.0
_LINES: Final = 8
_ROW: Final = 20.0


@dataclass(frozen=True, eq=False)
class DrawnHit:
    """A hit of a query, as `hits_figure` draws it.

    Args:
        match: one pair, the query against the hit.
        correct: whether it has the query's class; None where this is unknown.
        rank: from 1; by default the number of the row.
        note: a few more words, such as its class.
    """

    match: Explanation
    correct: bool | None = None
    rank: int | None = None
    note: str = ""


def hits_figure(hits: Sequence[DrawnHit], *, title: str = "", top: int = 4) -> Figure:
    """Draw a query with its hits, a row each: images with lines between regions, the score as a sum, right or wrong.

    Args:
        hits: best first, at least one. The score bars of all rows share one scale, as do the heat maps of a row.
        title: of the figure; by default the name of the query.
        top: number of lines of each hit, 0 to 8.

    Returns:
        A matplotlib figure, 1200 px wide at its own resolution.

    Raises:
        ValueError: no hits, or `top` is out of range.

    Example:
        >>> hits_figure([DrawnHit(found, correct=True) for found in best]).savefig("query.png")
    """
    if not hits:
        raise ValueError("hits: need at least one, got none")
    if not 0 <= top <= _LINES:
        raise ValueError(f"top: need 0 to {_LINES} lines a hit, got {top}")
    bands = [_band(hit, top) for hit in hits]
    canvas = Canvas(WIDTH, 84 + sum(band + 86 for band in bands))
    canvas.text(_EDGE, 30, title or hits[0].match.names[0], size=16, weight="bold", space=WIDTH - 2 * _EDGE).set_gid(
        "title"
    )
    about = "Query on the left, a hit in each row. Bright cells weigh more; boxes: rank · contribution to structural."
    canvas.text(_EDGE, 58, about, size=10, color=QUIET)
    longest = max(1e-6, *(sum(abs(term.value) for term in _terms(hit.match.ledger())) for hit in hits))
    y = 84.0
    for number, (hit, band) in enumerate(zip(hits, bands, strict=True)):
        if number:
            canvas.sheet.plot([_EDGE, WIDTH - _EDGE], [y, y], color=FAINT, linewidth=1)
        _draw_row(canvas, hit, hit.rank or number + 1, top, longest, y + 58, band)
        y += band + 86
    return canvas.figure


def _band(hit: DrawnHit, top: int) -> float:
    """Height of the images of a row, at least that of its text."""
    aspects = [side.aspect for side in sides_of(hit.match, 0, hit.match.images, hit.match.names)]
    return max(top * SLOT, 132 + top * _ROW, 180.0, *(min(_SIDE, _SIDE / aspect) for aspect in aspects))


def _draw_row(canvas: Canvas, hit: DrawnHit, rank: int, top: int, longest: float, y: float, band: float) -> None:
    match, ledger = hit.match, hit.match.ledger()
    sides = sides_of(match, 0, match.images, match.names)
    flows = drawn_flows(ledger, top)
    scale = heat_scale(sides)
    panels = []
    for side, left, rows_at in zip(sides, (_QUERY, _GALLERY), ("left", "right"), strict=True):
        panel = Panel.fit(side, left, y, _SIDE, band)
        panel.draw(canvas, scale, rows_at=rows_at)
        canvas.text(left, y - 32, side.name, size=9.5, color=QUIET, space=_SIDE)
        panels.append(panel)
    draw_flows(canvas, panels[0], panels[1], flows, y, y + band)
    _draw_verdict(canvas, hit, rank, y)
    _draw_score(canvas, ledger, longest, y + 46)
    _draw_list(canvas, ledger, flows, y + 116)
    warning = "" if bool(match.converged[0]) else "not converged"
    canvas.text(_TEXT, y + band - 6, warning, size=9.5, color=ALARM, weight="bold")


def _draw_verdict(canvas: Canvas, hit: DrawnHit, rank: int, y: float) -> None:
    """`hit 1   ✓ right   note`."""
    name = f"hit {rank}"
    canvas.text(_TEXT, y + 8, name, size=13, weight="bold")
    x = _TEXT + canvas.text_width(name, 13, "bold") + 18
    if hit.correct is not None:
        verdict, colour = ("✓ right", RIGHT) if hit.correct else ("✗ wrong", WRONG)
        box = {"boxstyle": "round,pad=0.3,rounding_size=0.4", "facecolor": colour, "edgecolor": "none"}
        canvas.text(x, y + 8, verdict, size=10.5, color="white", weight="bold", bbox=box).set_gid(f"verdict-{rank}")
        x += canvas.text_width(verdict, 10.5, "bold") + 16
    canvas.text(x, y + 8, hit.note, size=10.5, color=QUIET, space=WIDTH - _EDGE - x)


def _terms(ledger: Ledger) -> list[ScoreTerm]:
    return score_terms(ledger.pooled, ledger.structural, ledger.structural_weight)


def _draw_score(canvas: Canvas, ledger: Ledger, longest: float, y: float) -> None:
    """The score as a bar of its terms, with the sum in words above it."""
    space, words = WIDTH - _EDGE - _TEXT, [(f"score {signed(ledger.score)}", INK)]
    for number, term in enumerate(_terms(ledger)):
        words += [("+" if number else "=", QUIET), (term.text, TERM_COLOURS[term.name])]
    gap = 7
    size = canvas.fitting_size([text for text, _ in words], 10.0, space, gap=gap)
    x = _TEXT
    for text, colour in words:
        canvas.text(x, y, text, size=size, color=colour, weight="bold")
        x += canvas.text_width(text, size, "bold") + gap
    start = _TEXT
    for term in _terms(ledger):
        wide = space * max(term.value, 0.0) / longest
        bar = Rectangle((start, y + 14), wide, 12, facecolor=TERM_COLOURS[term.name], edgecolor="white")
        bar.set_gid(f"bar-{term.name}")
        canvas.sheet.add_patch(bar)
        start += wide


def _draw_list(canvas: Canvas, ledger: Ledger, flows: Sequence[Flow], y: float) -> None:
    canvas.text(_TEXT, y - 26, f"{share_text(ledger, flows)}.", size=9.5, color=QUIET, space=WIDTH - _EDGE - _TEXT)
    digits = decimals(flows[0].contribution) if flows else 3
    for rank, flow in enumerate(flows):
        colour = colour_of(rank)
        chip = {"boxstyle": "round,pad=0.2,rounding_size=0.3", "facecolor": colour, "edgecolor": "none"}
        line = y + rank * _ROW
        canvas.text(_TEXT + 8, line, str(rank + 1), size=9, color=ink_on(colour), weight="bold", ha="center", bbox=chip)
        cells = f"{cell_name(flow.region_q, ledger.grid_q)} → {cell_name(flow.region_g, ledger.grid_g)}"
        canvas.text(_TEXT + 30, line, cells, size=9.5, color=INK)
        product = f"mass {flow.mass:.{digits}f} {TIMES} cosine {flow.cosine:.3f}"
        canvas.text(_TEXT + 108, line, product, size=9.5, color=QUIET)
        value = canvas.text(WIDTH - _EDGE, line, f"{flow.contribution:.{digits}f}", size=9.5, ha="right", weight="bold")
        value.set_gid(f"contribution-{rank}")
