"""A whole evaluation, with rankings and metrics: the authors' algorithm against `diml.evaluation.evaluate_regions`.

    python benchmarks/evaluate.py --size cub
    python benchmarks/evaluate.py --size sop --plain-queries 500 --runs 3 --json runs/evaluate_sop.json
    python benchmarks/evaluate.py --size cub --dtype int16 --tolerance 2e-4
    python benchmarks/evaluate.py --images 2000 --classes 40 --embeddings hard

Both evaluate the ranking by pooled cosine and its best K re-ranked, leave-one-out, in the authors' metrics; ours also
the standard metrics, 95 % intervals and paired comparisons by 1,000 resamples. With --plain-queries the plain side,
which works query by query, evaluates a random sample of the queries; its time is scaled up in proportion, and table and
JSON say so.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch

import measure
import plain
import regimes
from diml.evaluation import Report, evaluate_regions
from diml.matching import ConvergenceWarning, Matcher

#: Names of the columns in tables; starred ones count the query among its own positives.
SHORT = dict(zip(plain.COLUMNS, ("R@1", "RP*", "MAP@R*"), strict=True))

#: Test images and classes.
SIZES = {"cub": (5924, 100), "sop": (60502, 11316)}


def main() -> None:
    made = measure.parser(__doc__, runs=3)
    regimes.add_arguments(made, images=SIZES["cub"][0], classes=SIZES["cub"][1])
    made.add_argument("--size", choices=SIZES, help="images and classes of a known test set, in place of those flags")
    made.add_argument("--rerank-at", type=int, default=100, help="K; default: %(default)s")
    measure.add_tolerance(made)
    made.add_argument("--plain-queries", type=int, help="queries that the plain side evaluates; default: all")
    options = measure.read(made)
    if options.size:
        options.images, options.classes = SIZES[options.size]
    results = [one(regimes.load(name, options), options) for name in options.embeddings]
    measure.finish("evaluate", options, results, times(results), agreement(results))


def one(found: regimes.Labelled, options: argparse.Namespace) -> dict[str, Any]:
    """Time both sides on the same embeddings."""
    images = len(found.regions)
    sample = min(options.plain_queries or images, images)
    queries = regimes.drawn_queries(sample, images, options.seed).sort().values
    slow = found.regions.to(torch.float32)
    kept: dict[str, Any] = {}  # results of the last run of each side, so that none is computed again
    sides = {
        "plain": lambda: kept.update(plain=plain.evaluate(slow, found.labels, options.rerank_at, queries)),
        "diml": lambda: kept.update(diml=by_diml(found, options)),
    }
    seconds = measure.alternate(sides, options.runs, 0 if options.warmup == 0 else small_warmup(found, options))
    return {
        "embeddings": found.name,
        "dtype": options.dtype,
        "tolerance": options.tolerance,
        "images": images,
        "classes": int(found.labels.max()) + 1,
        "regions": slow.num_regions,
        "dim": slow.dim,
        "rerank_at": options.rerank_at,
        "plain_queries": sample,
        "plain_scaled": sample < images,
        "seconds": {
            "plain": measure.spread(seconds["plain"], images / sample),
            "diml": measure.spread(seconds["diml"]),
        },
        "ratio": measure.ratios(seconds["plain"], seconds["diml"], images / sample),
        "plain_mean_iterations": kept["plain"].mean_iterations,
        "diml_unconverged_pairs": kept["diml"].unconverged_pairs,
        "metrics": compared(kept["plain"], kept["diml"], queries),
    }


def small_warmup(found: regimes.Labelled, options: argparse.Namespace) -> int:
    """Warm up on a few hundred images rather than by a whole evaluation; returns the warm-up runs that remain, 0."""
    few = regimes.Labelled(found.name, found.regions[:300], found.labels[:300] % 10)
    for _ in range(options.warmup):
        queries = torch.arange(20).clamp(max=len(few.labels) - 1)
        plain.evaluate(few.regions.to(torch.float32), few.labels, options.rerank_at, queries)
        by_diml(few, options)
    return 0


def by_diml(found: regimes.Labelled, options: argparse.Namespace) -> Report:
    """Our side, including the conversion to the type of storage."""
    gallery = regimes.stored(found, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return evaluate_regions(
            gallery,
            found.labels,
            rerank_at=(0, options.rerank_at),
            matcher=Matcher(tolerance=options.tolerance),
            without_relevant="miss",
        )


def compared(released: plain.Evaluation, report: Report, queries: torch.Tensor) -> list[dict[str, Any]]:
    """Percent of both sides on the queries that both evaluated, and how many of those differ."""
    rows = []
    for k, columns in released.per_query.items():
        for name, values in columns.items():
            ours = report.per_query[k][name][queries.numpy()]
            differ = int((abs(values - ours) > 1e-9).sum())
            sides = {"plain": 100 * float(values.mean()), "diml": 100 * float(ours.mean())}
            rows.append(
                {"rerank_at": k, "metric": name, **sides, "queries_that_differ": differ, "queries": len(values)}
            )
    return rows


def times(results: list[dict[str, Any]]) -> measure.Table:
    rows = []
    for result in results:
        sizes = [f"{result[size]:,}" for size in ("images", "classes", "rerank_at")]
        sides = [measure.shown(result["seconds"][side]) for side in ("plain", "diml")]
        if result["plain_scaled"]:
            sides[0] += f"\nscaled from\n{result['plain_queries']:,} queries"
        rows.append([result["embeddings"], result["dtype"], *sizes, *sides, measure.shown(result["ratio"])])
    columns = ("embeddings", "stored", "N", "classes", "K", "plain, s", "diml, s", "plain / diml")
    return measure.table("Whole evaluation, seconds: median, min..max", columns, rows)


def agreement(results: list[dict[str, Any]]) -> measure.Table:
    rows = []
    for result in results:
        for row in result["metrics"]:
            difference = f"{row['diml'] - row['plain']:+.3f}"
            differ = f"{row['queries_that_differ']} of {row['queries']:,}"
            numbers = [f"{row[side]:.3f}" for side in ("plain", "diml")]
            rows.append(
                [result["embeddings"], str(row["rerank_at"]), SHORT[row["metric"]], *numbers, difference, differ]
            )
    columns = ("embeddings", "K", "metric", "plain, %", "diml, %", "difference", "queries differ")
    caption = "At K = 0 only ties may differ; when re-ranked, the plain solver stops before it has converged."
    return measure.table("Agreement, under the authors' protocol", columns, rows, caption)


if __name__ == "__main__":
    main()
