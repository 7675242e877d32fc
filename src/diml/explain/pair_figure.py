"""The figure of one pair in either view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from matplotlib.figure import Figure

from diml.explain.canvas import PALETTE, PARTS_PALETTE
from diml.explain.explanation import Explanation, Plan, View
from diml.explain.panels import sides_of
from diml.explain.parts_figure import draw_parts
from diml.explain.regions_figure import draw_match
from diml.explain.shown_plan import shown_plan
from diml.explain.summary import summarise


def draw_pair(
    found: Explanation,
    *,
    view: View,
    plan: Plan,
    overlay: bool | None,
    parts: int | None,
    top: int,
    flows: Sequence[tuple[int, int]] | None,
    colours: Sequence[str] | None,
    width: float | None,
    panels: Sequence[str] | None,
) -> Figure:
    """Draw one pair; arguments as of `Explanation.draw`."""
    if view not in get_args(View):
        raise ValueError(f"view: need one of {', '.join(get_args(View))}, got {view!r}")
    for name, given, of in (("flows", flows, "regions"), ("parts", parts, "parts")):
        if given is not None and view != of:
            raise ValueError(f"{name}: need view={of!r}, got {view!r}")
    shown = shown_plan(found, 0, plan)
    if view == "parts":
        sides = sides_of(shown, 0, shown.images, shown.names)
        summary = summarise(shown, parts=parts).to_dict()
        chosen = PARTS_PALETTE if colours is None else colours
        return draw_parts(summary, sides, overlay=bool(overlay), colours=chosen, width=width, panels=panels)
    return draw_match(
        shown,
        images=shown.images,
        names=shown.names,
        top=top,
        note=shown.note(),
        overlay=overlay is not False,
        colours=PALETTE if colours is None else colours,
        width=width,
        panels=panels,
        flows=flows,
    )
