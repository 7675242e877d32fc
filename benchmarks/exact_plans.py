"""Time of exact plans (epsilon 0): per pair, against POT's `emd` and the entropic plan, and of re-ranking.

    python benchmarks/exact_plans.py --threads 2
    python benchmarks/exact_plans.py --embeddings orl orl-whitened --json runs/exact_plans.json
    python benchmarks/exact_plans.py --shares 0.8 0.5 auto

The pairs are queries and their best K candidates. Per pair: "embedded" starts from regions and computes costs and
weights; "given costs" starts from both in float64 and also returns potentials, as POT does. These run on one thread.
Re-ranking takes the threads of the command line. The gap is the largest difference of the cost from that of POT.
With `--shares`, plans that leave mass unmatched are timed against those that transport everything, run by run.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import ot
import torch
from torch import Tensor

import measure
import regimes
from diml.matching import Matcher, Regions
from diml.matching.partial import Share
from diml.matching.transport import exact_transport

EXACT, ENTROPIC = Matcher(epsilon=0), Matcher()

#: What is timed per pair, and its name in the table.
SIDES = {"embedded": "embedded", "given": "given costs", "entropic": "entropic, embedded", "pot": "POT emd"}


def main() -> None:
    made = measure.parser(__doc__, runs=3)
    regimes.add_arguments(made, images=1000)
    made.add_argument("--queries", type=int, default=50, help="Q, drawn at random; default: %(default)s")
    made.add_argument("--rerank-at", type=int, default=100, help="K; default: %(default)s")
    made.add_argument("--pairs", type=int, default=300, help="pairs that POT solves; default: %(default)s")
    made.add_argument(
        "--shares", nargs="+", type=share_of, default=[], help="shares of the mass, or auto; default: only all of it"
    )
    options = measure.read(made)
    results = [one(regimes.load(name, options), options) for name in options.embeddings]
    tables = [per_pair(results), reranking(results), *([of_partial(results)] if options.shares else [])]
    measure.finish("exact_plans", options, results, *tables)


def share_of(word: str) -> Share:
    """A share from the command line."""
    return "auto" if word == "auto" else float(word)


def one(found: regimes.Labelled, options: argparse.Namespace) -> dict[str, Any]:
    """Time all sides on the same pairs."""
    queries = regimes.drawn_queries(options.queries, len(found.regions), options.seed)
    order, _ = regimes.candidates(found.regions, queries, options.rerank_at)
    query, gallery = found.regions[queries], regimes.stored(found, options)
    problems = problems_of(found.regions, queries, order, options)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sides = {
        "embedded": lambda: EXACT.score(query, gallery, order),
        "given": lambda: exact_transport(*problems),
        "entropic": lambda: ENTROPIC.score(query, gallery, order),
        "pot": lambda: by_pot(problems),
    }
    counts = dict.fromkeys(SIDES, order.numel()) | dict.fromkeys(("given", "pot"), len(problems[0]))
    seconds = measure.alternate(sides, options.runs, options.warmup)
    of_shares = timed_shares(query, gallery, order, options)
    torch.set_num_threads(threads)
    reranked = {side: sides[side] for side in ("embedded", "entropic")}
    together = measure.alternate(reranked, options.runs, options.warmup)
    gap = ((exact_transport(*problems).plan - by_pot(problems)) * problems[0]).sum(dim=(1, 2)).abs().max()
    return {
        "embeddings": found.name,
        "dtype": options.dtype,
        "regions": found.regions.num_regions,
        "dim": found.regions.dim,
        "rerank_at": order.shape[1],
        "threads": threads,
        "pairs": counts,
        "gap": float(gap),
        "us_per_pair": {side: measure.spread(seconds[side], 1e6 / counts[side]) for side in SIDES},
        "ms_per_query": {side: measure.spread(together[side], 1000 / len(queries)) for side in reranked},
        "shares": of_shares,
    }


def timed_shares(
    query: Regions, gallery: Regions, order: Tensor, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Of exact and entropic plans with each share: microseconds per pair, and the ratio to all of the mass."""
    found: dict[str, dict[str, Any]] = {}
    for kind, plain in {"exact": EXACT, "entropic": ENTROPIC}.items() if options.shares else ():
        sides = {
            str(share): partial(replace(plain, share=share).score, query, gallery, order)
            for share in (1, *options.shares)
        }
        seconds = measure.alternate(sides, options.runs, options.warmup)
        found[kind] = {
            share: {
                "us_per_pair": measure.spread(values, 1e6 / order.numel()),
                "ratio": measure.ratios(values, seconds["1"]),
            }
            for share, values in seconds.items()
        }
    return found


def problems_of(
    regions: Regions, queries: Tensor, order: Tensor, options: argparse.Namespace
) -> tuple[Tensor, Tensor, Tensor]:
    """Costs and weights in float64 of a sample of the pairs."""
    generator = torch.Generator().manual_seed(options.seed)
    chosen = torch.randperm(order.numel(), generator=generator)[: options.pairs]
    left, right = queries[chosen // order.shape[1]], order.flatten()[chosen]
    found = EXACT.match(regions[left].to(torch.float64), regions[right].to(torch.float64))
    return 1 - found.cosine, found.weight_q, found.weight_g


def by_pot(problems: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Plans of POT's network simplex, pair by pair."""
    parts = zip(*(part.numpy() for part in problems), strict=True)
    return torch.from_numpy(np.stack([ot.emd(weight_q, weight_g, cost) for cost, weight_q, weight_g in parts]))


def per_pair(results: list[dict[str, Any]]) -> measure.Table:
    rows = []
    for result in results:
        times = [measure.shown(result["us_per_pair"][side]) for side in SIDES]
        rows.append([result["embeddings"], str(result["regions"]), str(result["dim"]), *times, f"{result['gap']:.0e}"])
    columns = ("embeddings", "R", "D", *(f"{name}, us" for name in SIDES.values()), "gap")
    return measure.table("Exact plans, microseconds per pair on one thread: median, min..max", columns, rows)


def reranking(results: list[dict[str, Any]]) -> measure.Table:
    rows = []
    for result in results:
        times = [measure.shown(result["ms_per_query"][side]) for side in ("embedded", "entropic")]
        sizes = [str(result[name]) for name in ("regions", "rerank_at", "threads")]
        rows.append([result["embeddings"], result["dtype"], *sizes, *times])
    columns = ("embeddings", "stored", "R", "K", "threads", "exact, ms", "entropic, ms")
    return measure.table("Re-ranking, milliseconds per query: median, min..max", columns, rows)


def of_partial(results: list[dict[str, Any]]) -> measure.Table:
    rows = []
    for result in results:
        for kind, shares in result["shares"].items():
            sizes = [result["embeddings"], str(result["regions"]), kind]
            for share, times in shares.items():
                rows.append([*sizes, share, measure.shown(times["us_per_pair"]), measure.shown(times["ratio"])])
    columns = ("embeddings", "R", "plan", "share", "us", "share / all")
    return measure.table("Partial transport, microseconds per pair on one thread: median, min..max", columns, rows)


if __name__ == "__main__":
    main()
