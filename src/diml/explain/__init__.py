"""Explanations: which region of an image matches which region of another, as figures, interactive pages and numbers.

Read in this order: `explanation` (two images compared) and `shown_plan` (which plan is shown); `summary` (what there is
to say to everybody), made of `places`, `scale` and `wording`; `description` (all numbers of a pair), `hits` (a query
with its hits), `formatting` (how numbers are written). Figures: `pair_figure` chooses between `parts_figure` (for
everybody) and `regions_figure` (for experts), `hits_figure` is that of a query with its hits; they are `blocks` of
`panels`, `flows`, `part_marks`, `outlines` and the `scale_figure` on a `canvas`. Pages: `html` (interactive, their
viewer is in `page/`) and `report` (of an evaluation). `drawings`: a pair of images to try it on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from diml.explain.explanation import Explanation
from diml.explain.hits import RankedHits, rank_hits
from diml.explain.html import explanation_page
from diml.explain.report import evaluation_page
from diml.extras import require

if TYPE_CHECKING:
    from diml.explain.regions_figure import draw_match

__all__ = [
    "Explanation",
    "RankedHits",
    "draw_match",
    "evaluation_page",
    "explanation_page",
    "rank_hits",
]


def __getattr__(name: str) -> Any:
    if name != "draw_match":  # which needs matplotlib, imported on first use
        raise AttributeError(f"module 'diml.explain' has no attribute {name!r}")
    require("plot", "figures")
    return importlib.import_module("diml.explain.regions_figure").draw_match


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
