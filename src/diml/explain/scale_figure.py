"""The score of a pair on a common scale with landmarks: typical pairs of this model, and an image against itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.patches import FancyBboxPatch, Polygon
from matplotlib.ticker import MaxNLocator

from diml.explain.canvas import INK, PIXELS_PER_INCH, QUIET, Canvas, line_height, text_width
from diml.explain.formatting import signed

SAME: Final = "#3F4B57"
DIFFERENT: Final = "#B4BCC6"

_COLOURS: Final = {"same": SAME, "different": DIFFERENT, "itself": INK}
_NAMES: Final = {"same": "the same class", "different": "different classes", "itself": "an image with itself"}

#: Name, (low, high) of a band or None, position of a mark or None, colour.
Lane = tuple[str, tuple[float, float] | None, float | None, str]


def lanes_of(summary: Mapping[str, Any]) -> list[Lane]:
    """What the scale shows below each other, each with its name: bands, marks, the threshold."""
    scale = summary["scale"]
    marks = {mark["kind"]: mark for mark in scale["marks"]}
    bands = {band["kind"]: band for band in scale["bands"]}
    lanes: list[Lane] = []
    for kind in ("different", "same", "itself"):
        mark, band = marks.get(kind), bands.get(kind)
        if mark is None and band is None:
            continue
        name = mark["label"] if mark is not None else _NAMES[kind]
        ends = None if band is None else (float(band["low"]), float(band["high"]))
        lanes.append((str(name), ends, None if mark is None else float(mark["value"]), _COLOURS[kind]))
    threshold = summary.get("threshold")
    if threshold is not None:
        name = f"threshold at {100 * threshold['false_accept_rate']:.3g} % false accepts"
        lanes.append((name, None, float(threshold["score"]), QUIET))
    return lanes


def ranking_score(summary: Mapping[str, Any]) -> float:
    """The score by which the pair is ranked, which the landmarks are for."""
    return float(summary["score"] if summary["ranked_by"] is None else summary["ranked_by"])


def scale_title(summary: Mapping[str, Any]) -> str:
    """What the scale shows, in words."""
    return "Compared with other pairs" if summary["scale"]["bands"] else "Similarity of this pair"


def scale_height(summary: Mapping[str, Any], size: float, *, named: bool = True) -> float:
    """Height of `draw_scale` in pixels: the score above, a lane for each landmark, the axis below."""
    return line_height(size) * (1.55 + _lane_height(named) * len(lanes_of(summary)) + 1.45)


def _lane_height(named: bool) -> float:
    """Of lines; lanes without names are closer."""
    return 1.0 if named else 0.55


def draw_scale(
    canvas: Canvas,
    summary: Mapping[str, Any],
    left: float,
    top: float,
    width: float,
    size: float,
    *,
    named: bool = True,
    gid: str = "scale",
) -> None:
    """Draw where the score of a pair stands.

    Args:
        canvas: to draw on.
        summary: `Summary.to_dict()`; the score by which the pair is ranked, `scale` and `threshold` are used.
        left, top, width: in pixels.
        size: font size in points.
        named: write the names of the landmarks; see `draw_scale_key` where several scales share them.
        gid: beginning of the ids of what is drawn.
    """
    scale, score, lanes = summary["scale"], ranking_score(summary), lanes_of(summary)
    step, em = line_height(size), size * PIXELS_PER_INCH / 72
    names = max((text_width(lane[0], size) for lane in lanes), default=0.0) if named else 0.0
    names = min(names, 0.46 * width)
    start = left + (names + 1.1 * em if names else 0.8 * em)
    end = left + width - 0.8 * em
    low, high = float(scale["low"]), float(scale["high"])

    def at(value: float) -> float:
        return start + (end - start) * min(1.0, max(0.0, (value - low) / (high - low)))

    lane_step = step * _lane_height(named)
    first = top + 1.55 * step
    bottom = first + len(lanes) * lane_step
    _draw_axis(canvas, low, high, at, (start, end, bottom, size))
    for number, lane in enumerate(lanes):
        y = first + (number + 0.5) * lane_step
        if named:
            canvas.text(left, y, lane[0], size=size, color=QUIET, space=names + 1).set_gid(f"{gid}-name-{number}")
        _draw_lane(canvas, lane, at, y, em)
    _draw_score(canvas, score, at(score), (top, first, bottom, left, left + width), size, gid)


def draw_scale_key(
    canvas: Canvas, summary: Mapping[str, Any], left: float, y: float, right: float, size: float
) -> None:
    """Name the landmarks of scales that are drawn without names, in one line; those that do not fit are left out."""
    em = size * PIXELS_PER_INCH / 72
    for name, band, _, colour in lanes_of(summary):
        if left + 2.2 * em + text_width(name, size) > right:
            return
        mark = (0.0, 1.4 * em) if band is not None else None
        _draw_lane(canvas, (name, mark, 0.7 * em, colour), lambda value, x=left: x + value, y, em)
        canvas.text(left + 1.9 * em, y, name, size=size, color=QUIET)
        left += 3.6 * em + text_width(name, size)


def _draw_axis(canvas: Canvas, low: float, high: float, at: Any, place: tuple[float, float, float, float]) -> None:
    start, end, bottom, size = place
    step, em = line_height(size), size * PIXELS_PER_INCH / 72
    canvas.sheet.plot([start, end], [bottom, bottom], color=QUIET, linewidth=0.8, solid_capstyle="butt")
    most = max(2, int((end - start) / (4.2 * em)))
    for value in MaxNLocator(min(most, 6), steps=[1, 2, 2.5, 5, 10]).tick_values(low, high):
        if low - 1e-9 <= value <= high + 1e-9:
            canvas.sheet.plot([at(value)] * 2, [bottom, bottom + 0.3 * em], color=QUIET, linewidth=0.8)
            text = signed(float(value), 2).rstrip("0").rstrip(".")
            canvas.text(
                at(value), bottom + 0.62 * step, text or "0", size=max(6.0, 0.9 * size), color=QUIET, ha="center"
            )


def _draw_lane(canvas: Canvas, lane: Lane, at: Any, y: float, em: float) -> None:
    _, band, mark, colour = lane
    high = 0.42 * em
    if band is not None:
        box = FancyBboxPatch(
            (at(band[0]), y - high / 2), max(1.0, at(band[1]) - at(band[0])), high,
            boxstyle=f"round,pad=0,rounding_size={0.45 * high}", facecolor=colour, edgecolor="none",
        )  # fmt: skip
        canvas.sheet.add_patch(box)
    if mark is not None:
        x = at(mark)
        if band is None:
            half = 0.3 * em
            ends = [(x - half, y), (x, y - half), (x + half, y), (x, y + half)]
            canvas.sheet.add_patch(Polygon(ends, facecolor=colour, edgecolor="white", linewidth=0.5))
        else:
            canvas.sheet.plot([x, x], [y - 0.42 * em, y + 0.42 * em], color="white", linewidth=3.0)
            canvas.sheet.plot([x, x], [y - 0.42 * em, y + 0.42 * em], color=colour, linewidth=1.6)


def _draw_score(canvas: Canvas, score: float, x: float, place: Sequence[float], size: float, gid: str) -> None:
    """The line through all lanes, with the score above it, kept within the width of the scale."""
    top, first, bottom, left, right = place
    em = size * PIXELS_PER_INCH / 72
    canvas.sheet.plot([x, x], [first - 0.1 * em, bottom], color="white", linewidth=3.0, zorder=3)
    line = canvas.sheet.plot([x, x], [first - 0.1 * em, bottom], color=INK, linewidth=1.4, zorder=3)[0]
    line.set_gid(f"{gid}-line")
    tip = first + 0.12 * em
    triangle = [(x, tip), (x - 0.36 * em, tip - 0.5 * em), (x + 0.36 * em, tip - 0.5 * em)]
    canvas.sheet.add_patch(Polygon(triangle, facecolor=INK, edgecolor="none", zorder=4))
    text = f"this pair {signed(score)}"
    half = text_width(text, size, "bold") / 2
    centre = max(min(x, right - half), left + half)
    canvas.text(centre, top + 0.5 * line_height(size), text, size=size, weight="bold", ha="center").set_gid(
        f"{gid}-score"
    )
