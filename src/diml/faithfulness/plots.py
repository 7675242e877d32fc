"""One image a measure: additivity, deletion and insertion, correspondence, stability."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diml.explain.canvas import INK, PALETTE, QUIET, save_figure
from diml.faithfulness.findings import MODEL, RANDOM, Finding, Judgement
from diml.faithfulness.tables import NAMES

#: The methods' colours, the same on every image.
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
    "strangers": PALETTE[3],
}


def write_plots(found: Judgement, folder: Path) -> list[Path]:
    """Draw additivity.png, deletion.png, correspondence.png and stability.png; returns their paths."""
    drawn = {
        "additivity": additivity_plot(found),
        "deletion": deletion_plot(found),
        "correspondence": correspondence_plot(found),
        "stability": stability_plot(found),
    }
    return [save_figure(figure, folder / f"{name}.png") for name, figure in drawn.items()]


def additivity_plot(found: Judgement) -> Figure:
    """How large the errors of the sum are, as shares of pairs on a scale of powers of ten."""
    figure, (axes,) = _figure(1)
    edges = np.arange(-12.0, -3.5, 0.5)
    lines = {
        "ledger": ("against the structural score of match", PALETTE[0]),
        "ranking": ("against the structural score of rerank", PALETTE[1]),
    }
    for method, (label, colour) in lines.items():
        errors = found.studies[MODEL].values["additivity", "", method, "error"]
        counts, _ = np.histogram(np.log10(np.clip(errors, 1e-12, 1e-4)), edges)
        axes.stairs(counts / len(errors), edges, color=colour, label=label, linewidth=2)
    axes.axvline(-6, color=QUIET, linewidth=1, linestyle="--", label="what is allowed")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xticks(range(-12, -3, 2), ["-12 or less", "-10", "-8", "-6", "-4 or more"])
    axes.set_xlabel("error of the sum of contributions, power of ten")
    axes.set_ylabel("share of pairs")
    axes.legend(frameon=False, loc="upper left")
    axes.set_title("Additivity: does the ledger sum to the score?", loc="left")
    return figure


def deletion_plot(found: Judgement) -> Figure:
    """Mean score while regions go, and while they come back, in the order of each method."""
    figure, axes = _figure(2)
    study = found.studies[MODEL]
    for (kind, method), rows in study.curves.items():
        at = axes[0] if kind == "deletion" else axes[1]
        style = "--" if method in ("random", "randomised") else "-"
        at.plot(study.shares, rows.mean(0), style, color=_COLOURS[method], label=NAMES[method], linewidth=1.8)
    for at, title, label in zip(
        axes,
        ("Deletion: lower is better", "Insertion: higher is better"),
        ("share of regions blurred", "share of regions put back"),
        strict=True,
    ):
        at.set_title(title, loc="left")
        at.set_xlabel(label)
        at.set_ylabel("mean score of the pair, embedded again")
    lines, words = axes[0].get_legend_handles_labels()
    figure.legend(
        lines, words, frameon=False, fontsize=8, ncols=3, loc="outside lower center"
    )  # curves may be anywhere
    return figure


def correspondence_plot(found: Judgement) -> Figure:
    """Mass on the true cell by warp and method; triangles are the share of mass whose strongest match is right."""
    findings = _of(found, MODEL)
    methods = [
        m for m in ("plan", "sharpened", "argmax", "identity", "strangers", "overlap", "ceiling") if _has(findings, m)
    ]
    cases = list(dict.fromkeys(f.case for f in findings))
    figure, (axes,) = _figure(1)
    masses = [f for f in findings if f.quantity == "mass"]
    _bars(axes, masses, cases, methods)
    at = _offset(methods, "plan")
    for study, fill, label in (
        (MODEL, INK, "strongest match of the plan"),
        (RANDOM, "none", "the same, random weights"),
    ):
        strongest = {f.case: f.value for f in _of(found, study) if (f.quantity, f.method) == ("strongest", "plan")}
        places = [cases.index(case) + at for case in strongest]
        if places:
            axes.plot(places, list(strongest.values()), "v", color=INK, mfc=fill, ms=5, label=label)
    _draw_chance(axes, [f.value for f in masses if f.method == "uniform"])
    _label_shares(axes, "Correspondence: one photo under a known warp", "share of mass on the true cell", top=1.35)
    return figure


def stability_plot(found: Judgement) -> Figure:
    """Share of the largest pairs that stay, by disturbance."""
    findings = [f for f in found.findings[MODEL] if f.measure == "stability"]
    figure, (axes,) = _figure(1)
    _bars(axes, findings, list(dict.fromkeys(f.case for f in findings)), ["ledger", "argmax"])
    _draw_chance(axes, [f.value for f in findings if f.method == "chance"])
    _label_shares(axes, "Stability: the query disturbed", "share of top pairs unchanged", top=1.2)
    return figure


def _of(found: Judgement, study: str) -> list[Finding]:
    """Findings of the correspondence of one study; none where it was not made."""
    return [f for f in found.findings.get(study, ()) if f.measure == "correspondence"]


def _draw_chance(axes: Any, values: list[float]) -> None:
    """A line where chance is: a bar of that height could not be seen."""
    axes.axhline(float(np.mean(values)), color=_COLOURS["chance"], linewidth=1, linestyle="--", label="chance")


def _has(findings: Iterable[Finding], method: str) -> bool:
    return any(finding.method == method for finding in findings)


def _offset(methods: list[str], method: str) -> float:
    return 0.8 * ((methods.index(method) + 0.5) / len(methods) - 0.5)


def _bars(axes: Any, findings: Iterable[Finding], cases: list[str], methods: list[str]) -> None:
    """Groups of bars with intervals: a group a case, a bar a method."""
    by_name = {(f.case, f.method): f for f in findings}
    for method in methods:
        there = [case for case in cases if (case, method) in by_name]
        at = [cases.index(case) + _offset(methods, method) for case in there]
        values = np.array([by_name[case, method].value for case in there])
        low, high = (np.array([getattr(by_name[case, method], end) for case in there]) for end in ("low", "high"))
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
    """An axis of shares, with room for the legend above 1."""
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
    FigureCanvasAgg(figure)  # without it the layout is made only when the figure is saved
    axes = list(np.atleast_1d(np.asarray(figure.subplots(1, panels), dtype=object)))
    for at in axes:
        at.spines[["top", "right"]].set_visible(False)
        at.tick_params(colors=QUIET)
    return figure, axes
