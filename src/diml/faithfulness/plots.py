"""A figure for each measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diml.explain.canvas import INK, PALETTE, QUIET, save_figure
from diml.faithfulness.ledgers import LEDGERS
from diml.faithfulness.report import MODEL, RANDOM, Estimate, FaithfulnessReport
from diml.faithfulness.tables import CONTROLS, NAMES, PARTS_BY, UNMATCHED, UNMATCHED_BY, orders_of_regions

#: The colours of the methods, the same in every figure.
_COLOURS: Final = {
    "credit": PALETTE[0],
    "plan": PALETTE[0],
    "ledger": PALETTE[0],
    "exact": PALETTE[5],
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
    "whole": PALETTE[5],
    "parts": PALETTE[0],
    "k-means": PALETTE[2],
    "division": QUIET,
    "unmatched": PALETTE[0],
    "cosine": PALETTE[1],
}
#: Colour of a control, the same for all ledgers, which have figures of their own.
_CONTROL_COLOURS: Final = {
    "shifted": PALETTE[1],
    "mirrored": PALETTE[2],
    "rotated": PALETTE[3],
    "connected": PALETTE[5],
    "other pair": PALETTE[4],
    "reversed": QUIET,
    "permuted": PALETTE[2],
    "same place": PALETTE[3],
    "random": PALETTE[7],
}


def write_plots(found: FaithfulnessReport, folder: Path) -> list[Path]:
    """Write a figure for each measure to a folder, and return their paths.

    additivity.png, deletion.png, correspondence.png and stability.png; where they were measured also controls.png and
    interaction.png, for further ledgers controls-LEDGER.png and interaction-LEDGER.png, parts.png and unmatched.png.
    """
    drawn = {"additivity": additivity_plot(found), "deletion": deletion_plot(found), "stability": stability_plot(found)}
    if _correspondence(found, MODEL):
        drawn["correspondence"] = correspondence_plot(found)
    curves = found.measurements[MODEL].curves
    for ledger in LEDGERS:
        ending = "" if ledger == "credit" else f"-{ledger}"
        if ("deletion", f"{ledger}/shifted") in curves:
            drawn["controls" + ending] = controls_plot(found, ledger)
        if ("interaction_deletion", ledger) in curves:
            drawn["interaction" + ending] = interaction_plot(found, ledger)
    if any(f.measure == "parts" and f.quantity == "landing" for f in found.estimates[MODEL]):
        drawn["parts"] = parts_plot(found)
    if any(f.measure == "unmatched" for f in found.estimates[MODEL]):
        drawn["unmatched"] = unmatched_plot(found)
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
    curves = found.measurements[MODEL].curves
    methods = orders_of_regions(method for kind, method in curves if kind == "deletion")
    return _curves_plot(found, ("deletion", "insertion"), {method: NAMES[method] for method in methods})


def controls_plot(found: FaithfulnessReport, ledger: str = "credit") -> Figure:
    """The curves of a ledger's credit and of its controls of the same spatial structure, and of random orders."""
    names = {ledger: NAMES[ledger]} | ({} if LEDGERS[ledger].of_parts else {"random": NAMES["random"]})
    return _curves_plot(
        found, ("deletion", "insertion"), names | {f"{ledger}/{name}": label for name, label in CONTROLS.items()}
    )


def interaction_plot(found: FaithfulnessReport, ledger: str = "credit") -> Figure:
    """Mean score while matched regions of both images are removed, or restored, and while unmatched ones are."""
    names = {ledger: f"matched by {NAMES[ledger]}"}
    return _curves_plot(
        found,
        ("interaction_deletion", "interaction_insertion"),
        names | {f"{ledger}/{name}": label for name, label in UNMATCHED.items()},
    )


def _curves_plot(found: FaithfulnessReport, kinds: tuple[str, str], names: Mapping[str, str]) -> Figure:
    """Curves of a measure of deletion and one of insertion, for those methods (method -> label) that were measured."""
    figure, axes = _figure(2)
    measured = found.measurements[MODEL]
    for at, kind in zip(axes, kinds, strict=True):
        for method, label in names.items():
            if (kind, method) in measured.curves:
                rows = measured.curves[kind, method]
                control = method.partition("/")[2]
                style = "--" if control or method in ("random", "randomised") else "-"
                colour = _CONTROL_COLOURS[control] if control else _COLOURS.get(method, QUIET)
                at.plot(measured.shares, rows.mean(0), style, color=colour, label=label, linewidth=1.8)
    both = kinds[0] != "deletion"
    titles = ("Deletion in both images: higher is better", "Insertion in both images: higher is better")
    for at, title, label in zip(
        axes,
        titles if both else ("Deletion: lower is better", "Insertion: higher is better"),
        ("share of regions removed", "share of regions restored"),
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
        m for m in ("plan", "exact", "argmax", "identity", "random_gallery", "overlap", "ceiling") if _has(estimates, m)
    ]
    cases = list(dict.fromkeys(f.case for f in estimates))
    figure, (axes,) = _figure(1)
    masses = [f for f in estimates if f.quantity == "mass"]
    _bars(axes, masses, cases, methods)
    at = _offset(methods, "plan")
    for network, fill, label in (
        (MODEL, INK, "strongest match of the plan that scores"),
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


def parts_plot(found: FaithfulnessReport) -> Figure:
    """Share of the mass of parts that arrives in their true images, by warp and way of grouping."""
    estimates = [f for f in found.estimates[MODEL] if (f.measure, f.quantity) == ("parts", "landing")]
    figure, (axes,) = _figure(1)
    _bars(
        axes,
        estimates,
        list(dict.fromkeys(f.case for f in estimates)),
        [m for m in PARTS_BY if _has(estimates, m)],
        PARTS_BY,
    )
    _label_shares(axes, "Parts: a photo under a known warp", "share of mass inside the part that lands", top=1.25)
    return figure


def unmatched_plot(found: FaithfulnessReport) -> Figure:
    """Area under ROC of the unmatched mass of occluded regions, by kind of occlusion."""
    estimates = [f for f in found.estimates[MODEL] if f.measure == "unmatched"]
    methods = [m for m in UNMATCHED_BY if _has(estimates, m)]
    figure, (axes,) = _figure(1)
    _bars(axes, estimates, list(dict.fromkeys(f.case for f in estimates)), methods, UNMATCHED_BY)
    _draw_chance(axes, [0.5])
    _label_shares(axes, "Occluded regions stay unmatched", "area under ROC", top=1.25)
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


def _bars(
    axes: Any,
    estimates: Iterable[Estimate],
    cases: list[str],
    methods: list[str],
    names: Mapping[str, str] = NAMES,
) -> None:
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
            color=_COLOURS.get(method, QUIET),
            label=names[method],
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
