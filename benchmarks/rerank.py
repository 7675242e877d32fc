"""Time per query of structural re-ranking: the authors' algorithm against `diml.matching.Matcher.score`.

    python benchmarks/rerank.py
    python benchmarks/rerank.py --embeddings hard --regions 49 --rerank-at 50 --queries 50
    python benchmarks/rerank.py --embeddings orl orl-whitened --json runs/rerank.json
    python benchmarks/rerank.py --dtype int16 --tolerance 2e-4

Both sides are given the candidates. Besides times: how far the scores of each are from the solution in float64
(marginal error 1e-10) on a sample of pairs, and how many iterations each needed.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch
from torch import Tensor

import measure
import plain
import regimes
from diml.matching import ConvergenceWarning, Matcher, QuantizedRegions, Regions

SIDES = ("plain", "diml")


def main() -> None:
    made = measure.parser(__doc__)
    regimes.add_arguments(made)
    made.add_argument("--queries", type=int, default=200, help="Q, drawn at random; default: %(default)s")
    made.add_argument("--rerank-at", type=int, default=100, help="K; default: %(default)s")
    measure.add_tolerance(made)
    made.add_argument("--pairs", type=int, default=1000, help="pairs solved in float64; default: %(default)s")
    options = measure.read(made)
    results = [one(regimes.load(name, options), options) for name in options.embeddings]
    measure.finish("rerank", options, results, times(results), accuracy(results))


def one(found: regimes.Labelled, options: argparse.Namespace) -> dict[str, Any]:
    """Time both sides on the same queries and candidates."""
    queries = regimes.drawn_queries(options.queries, len(found.regions), options.seed)
    order, best = regimes.candidates(found.regions, queries, options.rerank_at)
    slow, query, gallery = found.regions.to(torch.float32), found.regions[queries], regimes.stored(found, options)
    sides = {
        "plain": lambda: by_plain(slow, queries, order, best),
        "diml": lambda: by_diml(query, gallery, order, options.tolerance),
    }
    seconds = measure.alternate(sides, options.runs, options.warmup)
    released, iterations = by_plain(slow, queries, order, best)
    scores = {"plain": released, "diml": sides["diml"]()}
    return {
        "embeddings": found.name,
        "dtype": options.dtype,
        "tolerance": options.tolerance,
        "images": len(slow),
        "regions": slow.num_regions,
        "dim": slow.dim,
        "queries": len(queries),
        "rerank_at": order.shape[1],
        "ms_per_query": {side: measure.spread(seconds[side], 1000 / len(queries)) for side in SIDES},
        "ratio": measure.ratios(seconds["plain"], seconds["diml"]),
        **against_float64(found.regions, queries, order, scores, options),
        "plain_iterations": regimes.about(torch.tensor(iterations)),
    }


def by_plain(regions: Regions, queries: Tensor, order: Tensor, best: Tensor) -> tuple[Tensor, list[int]]:
    """Scores (Q, K) and iterations of each query, query by query."""
    found = [plain.rerank(regions, *each) for each in zip(queries.tolist(), order, best, strict=True)]
    return torch.stack([scores for scores, _ in found]), [iterations for _, iterations in found]


def by_diml(query: Regions, gallery: Regions | QuantizedRegions, order: Tensor, tolerance: float) -> Tensor:
    """Scores (Q, K), each pair converged to a marginal error of `tolerance`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return Matcher(tolerance=tolerance).score(query, gallery, order)


def against_float64(
    regions: Regions, queries: Tensor, order: Tensor, scores: dict[str, Tensor], options: argparse.Namespace
) -> dict[str, Any]:
    """Largest and mean error of the scores of both sides against the converged solution, on a sample of pairs."""
    generator = torch.Generator().manual_seed(options.seed)
    chosen = torch.randperm(order.numel(), generator=generator)[: options.pairs]
    left, right = queries[chosen // order.shape[1]], order.flatten()[chosen]
    with measure.progress.status(f"solving {len(chosen)} pairs in float64"):
        exact = regions[left].to(torch.float64), regions[right].to(torch.float64)
        converged = Matcher(tolerance=1e-10, max_iterations=100_000).match(*exact)
    compared = Matcher(tolerance=options.tolerance).match(regions[left], regions[right])
    errors = {side: (scores[side].flatten()[chosen].double() - converged.score).abs() for side in SIDES}
    return {
        "pairs": len(chosen),
        "float64_unconverged": int((~converged.converged).sum()),
        "diml_iterations": regimes.about(compared.iterations),
        "diml_unconverged": int((~compared.converged).sum()),
        "error": {side: {"max": float(e.max()), "mean": float(e.mean())} for side, e in errors.items()},
    }


def times(results: list[dict[str, Any]]) -> measure.Table:
    rows = []
    for result in results:
        sizes = [f"{result[size]:,}" for size in ("images", "regions", "dim", "rerank_at")]
        sides = [measure.shown(result["ms_per_query"][side]) for side in SIDES]
        rows.append([result["embeddings"], result["dtype"], *sizes, *sides, measure.shown(result["ratio"])])
    columns = ("embeddings", "stored", "N", "R", "D", "K", "plain, ms", "diml, ms", "plain / diml")
    return measure.table("Re-ranking, milliseconds per query: median, min..max", columns, rows)


def accuracy(results: list[dict[str, Any]]) -> measure.Table:
    rows = []
    for result in results:
        for side in SIDES:
            error, count = result["error"][side], result[f"{side}_iterations"]
            spent = f"{count['mean']:.1f} ({count['low']}..{count['high']})"
            rows.append([f"{result['embeddings']}, {side}", f"{error['max']:.1e}", f"{error['mean']:.1e}", spent])
    columns = ("", "largest error", "mean error", "iterations")
    return measure.table("Scores against the converged solution in float64", columns, rows)


if __name__ == "__main__":
    main()
