"""A figure for each measure: additivity, deletion and insertion, correspondence, stability."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diml.explain.canvas import INK, PALETTE, QUIET, save_figure
from diml.faithfulness.report import MODEL, RANDOM, Estimate, FaithfulnessReport
from diml.faithfulness.tables import NAMES

#: The colours of the methods, the same in every figure.
_COLOURS: Final = {
    "credit": PALETTE[0],
    "plan": PALETTE[0],
    "ledger": PALETTE[0],
    "sharpened": PALETTE[5],
    "argmax": PALETTE[1],
    "weights": PALETTE[2],
    "grad-cam": PALETTE[3],
    "randomised": PALETTE[4],
    "identity": PALETTE[4],
    "random": PALETTE[7],
    "chance": INK,
    "overlap": PALETTE[2],
    "ceiling": QUIET,
    "random_gallery": PALETTE[3],
}


def write_plots(found: FaithfulnessReport, folder: Path) -> list[Path]:
    """Write additivity.png, deletion.png, correspondence.png and stability.png to a folder; returns their paths."""
    drawn = {
        "additivity": additivity_plot(found),
        "deletion": deletion_plot(found),
        "correspondence": correspondence_plot(found),
        "stability": stability_plot(found),
    }
    return [save_figure(figure, folder / f"{name}.png") for name, figure in drawn.items()]


def additivity_plot(found: FaithfulnessReport) -> Figure:
    """Histogram of the errors of the sum of contributions, on a logarithmic scale."""
    figure, (axes,) = _figure(1)
    edges = np.arange(-12.0, -3.5, 0.5)
    lines = {
        "ledger": ("against the structural score of match", PALETTE[0]),
        "ranking": ("against the structural score of rerank", PALETTE[1]),
    }
    for method, (label, colour) in lines.items():
        errors = found.measurements[MODEL].values["additivity", "", method, "error"]
        counts, _ = np.histogram(np.log10(np.clip(errors, 1e-12, 1e-4)), edges)
        axes.stairs(counts / len(errors), edges, color=colour, label=label, linewidth=2)
    axes.axvline(-6, color=QUIET, linewidth=1, linestyle="--", label="tolerance")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xticks(range(-12, -3, 2), ["-12 or less", "-10", "-8", "-6", "-4 or more"])
    axes.set_xlabel("error of the sum of contributions, power of ten")
    axes.set_ylabel("share of pairs")
    axes.legend(frameon=False, loc="upper left")
    axes.set_title("Additivity: does the ledger sum to the score?", loc="left")
    return figure


def deletion_plot(found: FaithfulnessReport) -> Figure:
    """Mean score while regions are blurred, and while they are restored, in the order of each method."""
    figure, axes = _figure(2)
    measured = found.measurements[MODEL]
    for (kind, method), rows in measured.curves.items():
        at = axes[0] if kind == "deletion" else axes[1]
        style = "--" if method in ("random", "randomised") else "-"
        at.plot(measured.shares, rows.mean(0), style, color=_COLOURS[method], label=NAMES[method], linewidth=1.8)
    for at, title, label in zip(
        axes,
        ("Deletion: lower is better", "Insertion: higher is better"),
        ("share of regions blurred", "share of regions restored"),
        strict=True,
    ):
        at.set_title(title, loc="left")
        at.set_xlabel(label)
        at.set_ylabel("mean score of the pair")
    lines, words = axes[0].get_legend_handles_labels()
    figure.legend(
        lines, words, frameon=False, fontsize=8, ncols=3, loc="outside lower center"
    )  # curves may be anywhere
    return figure


def correspondence_plot(found: FaithfulnessReport) -> Figure:
    """Mass on the true cell by warp and method; triangles: share of mass whose strongest match is correct."""
    estimates = _correspondence(found, MODEL)
    methods = [
        m
        for m in ("plan", "sharpened", "argmax", "identity", "random_gallery", "overlap", "ceiling")
        if _has(estimates, m)
    ]
    cases = list(dict.fromkeys(f.case for f in estimates))
    figure, (axes,) = _figure(1)
    masses = [f for f in estimates if f.quantity == "mass"]
    _bars(axes, masses, cases, methods)
    at = _offset(methods, "plan")
    for network, fill, label in (
        (MODEL, INK, "strongest match of the plan"),
        (RANDOM, "none", "the same, random weights"),
    ):
        strongest = {
            f.case: f.value for f in _correspondence(found, network) if (f.quantity, f.method) == ("strongest", "plan")
        }
        places = [cases.index(case) + at for case in strongest]
        if places:
            axes.plot(places, list(strongest.values()), "v", color=INK, mfc=fill, ms=5, label=label)
    _draw_chance(axes, [f.value for f in masses if f.method == "uniform"])
    _label_shares(axes, "Correspondence: a photo under a known warp", "share of mass on the true cell", top=1.35)
    return figure


def stability_plot(found: FaithfulnessReport) -> Figure:
    """Share of the largest pairs that stay, by perturbation."""
    estimates = [f for f in found.estimates[MODEL] if f.measure == "stability"]
    figure, (axes,) = _figure(1)
    _bars(axes, estimates, list(dict.fromkeys(f.case for f in estimates)), ["ledger", "argmax"])
    _draw_chance(axes, [f.value for f in estimates if f.method == "chance"])
    _label_shares(axes, "Stability: the query perturbed", "share of top pairs unchanged", top=1.2)
    return figure


def _correspondence(found: FaithfulnessReport, network: str) -> list[Estimate]:
    """Estimates of the correspondence for one network; none where it was not measured."""
    return [f for f in found.estimates.get(network, ()) if f.measure == "correspondence"]


def _draw_chance(axes: Any, values: list[float]) -> None:
    """A line at chance level, where a bar would be invisible."""
    axes.axhline(float(np.mean(values)), color=_COLOURS["chance"], linewidth=1, linestyle="--", label="chance")


def _has(estimates: Iterable[Estimate], method: str) -> bool:
    return any(estimate.method == method for estimate in estimates)


def _offset(methods: list[str], method: str) -> float:
    return 0.8 * ((methods.index(method) + 0.5) / len(methods) - 0.5)


def _bars(axes: Any, estimates: Iterable[Estimate], cases: list[str], methods: list[str]) -> None:
    """Bars with intervals: a group for each case, a bar for each method."""
    by_name = {(f.case, f.method): f for f in estimates}
    for method in methods:
        measured = [case for case in cases if (case, method) in by_name]
        at = [cases.index(case) + _offset(methods, method) for case in measured]
        values = np.array([by_name[case, method].value for case in measured])
        low, high = (np.array([getattr(by_name[case, method], end) for case in measured]) for end in ("low", "high"))
        spread = np.clip(np.stack([values - low, high - values]), 0, None)
        axes.bar(
            at,
            values,
            0.8 / len(methods),
            yerr=spread,
            color=_COLOURS[method],
            label=NAMES[method],
            error_kw={"ecolor": QUIET, "elinewidth": 1},
        )
    axes.set_xticks(range(len(cases)), cases)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(cases) - 0.5)


def _label_shares(axes: Any, title: str, what: str, top: float) -> None:
    """An axis of shares, with space for the legend above 1."""
    axes.set_ylabel(what)
    axes.set_ylim(0, top)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    lines, words = axes.get_legend_handles_labels()
    bars_first = sorted(range(len(words)), key=lambda at: hasattr(lines[at], "get_marker"))
    order = {"handles": [lines[at] for at in bars_first], "labels": [words[at] for at in bars_first]}
    axes.legend(**order, frameon=False, fontsize=8, ncols=3, loc="upper left")
    axes.set_title(title, loc="left")


def _figure(panels: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(9, 4), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)  # without a canvas, constrained layout runs only when the figure is saved
    axes = list(np.atleast_1d(np.asarray(figure.subplots(1, panels), dtype=object)))
    for at in axes:
        at.spines[["top", "right"]].set_visible(False)
        at.tick_params(colors=QUIET)
    return figure, axes
