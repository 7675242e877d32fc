"""The figure of a comparison: differences to the baseline with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from diml.evaluation.metrics import METRICS
from diml.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from diml.evaluation.compare import MatcherComparison

_BETTER, _WORSE, _UNDECIDED = "#0072B2", "#D55E00", "#8A8F98"
#: How metrics are written.
_LABELS: Final = {"recall@1": "R@1", "r_precision": "RP", "map@r": "MAP@R"}


def draw_comparison(found: MatcherComparison, metric: str) -> Figure:
    """A row for each matcher: the mean difference of a metric to the baseline and its 95 % interval.

    Raises:
        ValueError: an unknown metric.
        MissingExtraError: matplotlib is missing.
    """
    if metric not in METRICS:
        raise ValueError(f"metric: need one of {METRICS}, got {metric!r}")
    require("plot", "figures")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in found.per_query if name != found.baseline]
    figure = Figure(figsize=(7.5, 1.1 + 0.38 * max(1, len(names))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, name in enumerate(names):
        value, low, high = (100 * part for part in found.difference(name, metric))
        colour = _BETTER if low > 0 else _WORSE if high < 0 else _UNDECIDED
        axes.plot([low, high], [row, row], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot([value], [row], marker="o", color=colour, markersize=6)
        axes.annotate(f"{value:+.2f}", (value, row), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.axvline(0, color="#22252A", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.7)
    label = _LABELS.get(metric, metric)
    axes.set_xlabel(f"{label} minus {found.baseline}, percentage points (95 % interval, paired by query)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure
