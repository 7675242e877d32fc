"""Time of a learned matcher against entropic transport, both sides in one run.

    python benchmarks/scorer.py
    python benchmarks/scorer.py --dim 384 --threads 1 --json runs/scorer.json
    python benchmarks/scorer.py --embeddings hard --regions 49

A learned matcher keeps what it mapped of a gallery that is still in use. So each of three uses (one query with K
candidates, many queries with candidates of one gallery, the unordered pairs of an evaluation) is timed twice: with
images never mapped before ("new"), as read from an index or in a first evaluation, where mapping is part of the time;
and with images mapped before ("kept"). The scorer is untrained, which takes as long.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch

import measure
import regimes
from diml.matching import LearnedMatcher, Matcher, QuantizedRegions, Regions
from diml.matching.learned import VoteScorer

USES = tuple(f"{use}, {images}" for use in ("one query", "queries", "evaluation") for images in ("new", "kept"))


def main() -> None:
    made = measure.parser(__doc__)
    regimes.add_arguments(made, images=2000, classes=40)
    made.add_argument("--queries", type=int, default=200, help="Q, drawn at random; default: %(default)s")
    made.add_argument("--rerank-at", type=int, default=100, help="K; default: %(default)s")
    options = measure.read(made)
    results = [one(regimes.load(name, options), options, use) for name in options.embeddings for use in USES]
    measure.finish("scorer", options, results, times(results))


def one(found: regimes.Labelled, options: argparse.Namespace, use: str) -> dict[str, Any]:
    """Time both matchers in one use."""
    queries = regimes.drawn_queries(
        1 if use.startswith("one query") else options.queries, len(found.regions), options.seed
    )
    order, _ = regimes.candidates(found.regions, queries, options.rerank_at)
    mapped = None if found.regions.dim <= 400 else 128
    matchers = {"transport": Matcher(), "votes": LearnedMatcher.of(VoteScorer(found.regions.dim, mapped))}
    gallery, asked = regimes.stored(found, options), found.regions[queries]

    def used() -> Regions | QuantizedRegions:
        return copy.copy(gallery) if use.endswith("new") else gallery  # another object, the same memory

    def work(matcher: Matcher) -> Callable[[], torch.Tensor]:
        if use.startswith("evaluation"):
            return lambda: matcher.score_unique_pairs(used(), queries, order).scores
        return lambda: matcher.score(asked, used(), order)

    seconds = measure.alternate({name: work(each) for name, each in matchers.items()}, options.runs, options.warmup)
    return {
        "embeddings": found.name,
        "use": use,
        "images": len(found.regions),
        "regions": found.regions.num_regions,
        "dim": found.regions.dim,
        "queries": len(queries),
        "rerank_at": order.shape[1],
        "dtype": options.dtype,
        "ms_per_query": {name: measure.spread(each, 1000 / len(queries)) for name, each in seconds.items()},
        "ratio": measure.ratios(seconds["votes"], seconds["transport"]),
    }


def times(results: list[dict[str, Any]]) -> measure.Table:
    rows = []
    for result in results:
        sizes = [f"{result[size]:,}" for size in ("images", "regions", "dim", "queries", "rerank_at")]
        sides = [measure.shown(result["ms_per_query"][side]) for side in ("transport", "votes")]
        rows.append([result["embeddings"], result["use"], *sizes, *sides, measure.shown(result["ratio"])])
    columns = ("embeddings", "use", "N", "R", "D", "Q", "K", "transport, ms", "votes, ms", "votes / transport")
    return measure.table("Milliseconds per query: median, min..max", columns, rows)


if __name__ == "__main__":
    main()
