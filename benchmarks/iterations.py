"""Iterations of the solver at equal accuracy: plain Sinkhorn, mixed, and over-relaxed in several ways.

    python benchmarks/iterations.py --embeddings orl orl-whitened
    python benchmarks/iterations.py --embeddings grocery grocery-whitened --data ../shared/datasets --epsilon 0.0125

Candidates of randomly drawn queries are solved in float64 by the torch solver with changed constants. "block" is the
mean over blocks of 8 pairs of the largest number of iterations in a block, which is the work of a kernel with 8 lanes.
Not in use: Sinkhorn started from the final potentials of other candidates of the query, and steps of Newton's method
after a few sweeps, each of which solves a system of 2 R - 1 equations.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

import measure
import regimes
from diml.matching import Matcher, Regions, transport
from other_starts import FIRST, SWEEPS_BEFORE_NEWTON, Problem, newton_finish, warm_start

NEVER: Final = 10**9
#: Name -> changed constants of `diml.matching.transport`. The first is plain Sinkhorn, the second the one in use.
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "Sinkhorn": {"MIXING": 0, "FIRST_ESTIMATE": NEVER},
    "in use": {},
    "mixed each time": {"MIX_EVERY": 1},
    "2 mixed": {"MIXED": 2},
    "8 mixed": {"MIXED": 8},
    "over-relaxed": {"MIXING": 0},
    "one estimate": {"MIXING": 0, "ESTIMATE_EVERY": NEVER},
    "estimates every 2": {"MIXING": 0, "ESTIMATE_EVERY": 2},
}


def main() -> None:
    made = measure.parser(__doc__, runs=None)
    regimes.add_arguments(made)
    made.add_argument("--queries", type=int, default=20, help="randomly drawn queries; default: %(default)s")
    made.add_argument("--rerank-at", type=int, default=100, help="K; default: %(default)s")
    made.add_argument("--epsilon", type=float, default=Matcher().epsilon, help="default: %(default)s")
    measure.add_tolerance(made)
    options = measure.read(made)
    if options.rerank_at <= FIRST:
        made.error(f"--rerank-at: need more than {FIRST}, whose potentials others start from, got {options.rerank_at}")
    results = [result for name in options.embeddings for result in of_embeddings(name, options)]
    columns = ("embeddings", "solver", "mean", "block", "95 %", "max", "not converged")
    rows = [
        [
            result["embeddings"],
            result["solver"],
            *(f"{result[part]:.1f}" for part in ("mean", "block", "high", "most")),
            str(result["unconverged"]),
        ]
        for result in results
    ]
    title = f"Iterations to a marginal error of {options.tolerance:g} at epsilon {options.epsilon:g}"
    measure.finish("iterations", options, results, measure.table(title, columns, rows))


def of_embeddings(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All variants on the candidates of randomly drawn queries of one set of embeddings."""
    found = regimes.load(name, options)
    regions = found.regions.to(torch.float64)
    queries = regimes.drawn_queries(options.queries, len(regions), options.seed)
    rows, _ = regimes.candidates(found.regions, queries, options.rerank_at)
    results = []
    for variant, constants in VARIANTS.items():
        with measure.progress.status(f"{name}: {variant}"), changed(constants):
            counts = counted(regions, queries, rows, options)
        results.append({"embeddings": name, "solver": variant} | counts)
    with measure.progress.status(f"{name}: other starts and finishes"):
        results += others(name, regions, queries, rows, options)
    return results


def others(
    name: str, regions: Regions, queries: torch.Tensor, rows: torch.Tensor, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Sinkhorn started from other candidates' potentials, and finished by Newton's method."""
    problems = []
    for query, row in zip(queries.tolist(), rows, strict=True):
        found = Matcher(max_iterations=1).match(regions[query], regions[row])  # for its cosines and weights
        problems.append(Problem.of(found.cosine, found.weight_q, found.weight_g, options.epsilon))
    ways = {
        "Sinkhorn, warm": (warm_start, 5000),
        f"Newton after {SWEEPS_BEFORE_NEWTON}": (newton_finish, 100),
    }
    return [
        {"embeddings": name, "solver": way}
        | summary(torch.cat([count(problem, options.tolerance, most) for problem in problems]), most)
        for way, (count, most) in ways.items()
    ]


def summary(counts: torch.Tensor, most: int) -> dict[str, float | int]:
    """Statistics of (B,) iterations, in the order in which a kernel would solve the pairs."""
    counts = counts.double()
    return {
        "pairs": len(counts),
        "mean": float(counts.mean()),
        "block": float(torch.stack([block.max() for block in counts.split(8)]).mean()),
        "high": float(counts.quantile(0.95)),
        "most": float(counts.max()),
        "unconverged": int((counts >= most).sum()),
    }


def counted(
    regions: Regions, queries: torch.Tensor, rows: torch.Tensor, options: argparse.Namespace
) -> dict[str, float | int]:
    """Statistics of the iterations of the solver as it is configured now."""
    matcher = Matcher(epsilon=options.epsilon, tolerance=options.tolerance, max_iterations=5000)
    compared = [matcher.match(regions[int(q)], regions[row]) for q, row in zip(queries, rows, strict=True)]
    counts = torch.cat([one.iterations for one in compared])
    unconverged = sum(int((~one.converged).sum()) for one in compared)
    return summary(counts, NEVER) | {"unconverged": unconverged}


@contextmanager
def changed(constants: dict[str, Any]) -> Iterator[None]:
    """Within this block the solver has these constants."""
    before = {name: getattr(transport, name) for name in constants}
    for name, value in constants.items():
        setattr(transport, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(transport, name, value)


if __name__ == "__main__":
    main()
