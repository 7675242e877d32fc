"""How the time per query grows with N, K, R and D, one at a time around the defaults: the plain side and ours.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --embeddings hard --plot runs/scaling.png --json runs/scaling.json
    python benchmarks/scaling.py --axes K R --vary-rerank-at 10 100 1000 --vary-regions 4 16 64

Along N the time is that of a whole evaluation (ranking, re-ranking, metrics; no intervals) of randomly drawn queries,
along K, R and D that of re-ranking given candidates.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import measure
import plain
import regimes
import rerank
from diml.evaluation import evaluate_regions
from diml.matching import ConvergenceWarning, Matcher

#: Axis -> the flag that it varies.
AXES = {"N": "images", "K": "rerank_at", "R": "regions", "D": "dim"}
SIZES = {
    "N": [1000, 4000, 16000, 64000],
    "K": [10, 30, 100, 300, 1000],
    "R": [4, 9, 16, 25, 49, 64],
    "D": [32, 64, 128, 256, 512, 1280],
}
SIDES = ("plain", "diml")


def main() -> None:
    made = measure.parser(__doc__, runs=3)
    regimes.add_arguments(made, images=3000)
    made.add_argument("--rerank-at", type=int, default=100, help="K; default: %(default)s")
    made.add_argument("--queries", type=int, default=100, help="queries of our side; default: %(default)s")
    made.add_argument("--plain-queries", type=int, default=20, help="queries of the plain side; default: %(default)s")
    measure.add_tolerance(made)
    made.add_argument("--axes", choices=tuple(AXES), nargs="+", default=list(AXES), help="default: N K R D")
    for axis, flag in AXES.items():
        shown, name = " ".join(map(str, SIZES[axis])), flag.replace("_", "-")
        made.add_argument(f"--vary-{name}", type=int, nargs="+", default=SIZES[axis], help=f"{axis}; default: {shown}")
    made.add_argument("--plot", type=Path, help="file of the figure, one panel per axis")
    options = measure.read(made)
    unreal = [name for name in options.embeddings if name in regimes.REAL]
    if unreal:
        made.error(f"--embeddings: need generated embeddings, whose sizes can be chosen, got {' '.join(unreal)}")
    results = [
        point(name, axis, size, options)
        for name in options.embeddings
        for axis in options.axes
        for size in getattr(options, f"vary_{AXES[axis]}")
    ]
    if options.plot:
        draw(results, options.plot)
    measure.finish("scaling", options, results, table(results))


def point(name: str, axis: str, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per query of both sides at one size, the others at their defaults."""
    chosen = argparse.Namespace(**vars(options) | {AXES[axis]: size})
    if axis == "K":
        chosen.images = max(chosen.images, size + 1)
    found = regimes.load(name, chosen)
    sides, counts = evaluations(found, chosen) if axis == "N" else rerankings(found, chosen)
    seconds = measure.alternate(sides, options.runs, options.warmup)
    return {
        "embeddings": name,
        "axis": axis,
        "size": size,
        "what": "evaluation" if axis == "N" else "re-ranking",
        **{flag: getattr(chosen, flag) for flag in AXES.values()},
        "ms_per_query": {side: measure.spread(seconds[side], 1000 / counts[side]) for side in SIDES},
        "ratio": measure.ratios(seconds["plain"], seconds["diml"], counts["diml"] / counts["plain"]),
    }


Sides = dict[str, Callable[[], object]]


def rerankings(found: regimes.Labelled, chosen: argparse.Namespace) -> tuple[Sides, dict[str, int]]:
    """Re-ranking of given candidates by both sides, and the number of queries of each."""
    regions = found.regions
    queries = regimes.drawn_queries(chosen.queries, len(regions), chosen.seed)
    order, best = regimes.candidates(regions, queries, chosen.rerank_at)
    few = slice(chosen.plain_queries)
    slow, query, gallery = regions.to(torch.float32), regions[queries], regimes.stored(found, chosen)
    sides: Sides = {
        "plain": lambda: rerank.by_plain(slow, queries[few], order[few], best[few]),
        "diml": lambda: rerank.by_diml(query, gallery, order, chosen.tolerance),
    }
    return sides, {"plain": len(queries[few]), "diml": len(queries)}


def evaluations(found: regimes.Labelled, chosen: argparse.Namespace) -> tuple[Sides, dict[str, int]]:
    """Evaluation of drawn queries against all images by both sides, and the number of queries of each."""
    queries = regimes.drawn_queries(chosen.queries, len(found.regions), chosen.seed)
    few, slow = queries[: chosen.plain_queries], found.regions.to(torch.float32)
    gallery = regimes.stored(found, chosen)

    def by_diml() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return evaluate_regions(
                gallery,
                found.labels,
                rerank_at=(0, chosen.rerank_at),
                matcher=Matcher(tolerance=chosen.tolerance),
                queries=queries,
                without_relevant="miss",
                resamples=1,
            )

    sides: Sides = {
        "plain": lambda: plain.evaluate(slow, found.labels, chosen.rerank_at, few),
        "diml": by_diml,
    }
    return sides, {"plain": len(few), "diml": len(queries)}


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """One panel per axis: milliseconds per query of both sides over the size, on logarithmic scales."""
    from matplotlib.figure import Figure

    chosen = list(dict.fromkeys(result["axis"] for result in results))
    columns = min(2, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(4.6 * columns, 3 * rows + 0.4), layout="constrained")
    for panel, axis in zip(figure.subplots(rows, columns, squeeze=False).flat, chosen, strict=False):
        draw_axis(panel, axis, [result for result in results if result["axis"] == axis])
    for panel in figure.axes[len(chosen) :]:
        panel.remove()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def draw_axis(panel: Any, axis: str, results: list[dict[str, Any]]) -> None:
    """Both sides over one axis, with the range of their runs."""
    sizes = list(dict.fromkeys(result["size"] for result in results))
    for name in dict.fromkeys(result["embeddings"] for result in results):
        for side in SIDES:
            times = [result["ms_per_query"][side] for result in results if result["embeddings"] == name]
            style = {"marker": "o", "markersize": 4, "linestyle": "--" if side == "plain" else "-"}
            (line,) = panel.plot(sizes, [time["median"] for time in times], label=f"{side}, {name}", **style)
            spread = [[time[end] for time in times] for end in ("low", "high")]
            panel.fill_between(sizes, *spread, color=line.get_color(), alpha=0.2)
    fixed = ", ".join(f"{other} {results[0][flag]:,}" for other, flag in AXES.items() if other != axis)
    panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=f"{results[0]['what']}, ms per query")
    panel.set_title(fixed, fontsize="small")
    panel.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize="small")
    panel.minorticks_off()
    panel.grid(alpha=0.3)


def table(results: list[dict[str, Any]]) -> measure.Table:
    rows = []
    for result in results:
        sides = [measure.shown(result["ms_per_query"][side]) for side in SIDES]
        where = f"{result['axis']} = {result['size']:,}"
        rows.append([f"{where}, {result['embeddings']}", result["what"], *sides, measure.shown(result["ratio"])])
    columns = ("size", "what", "plain, ms", "diml, ms", "plain / diml")
    return measure.table("Milliseconds per query: median, min..max", columns, rows)


if __name__ == "__main__":
    main()
