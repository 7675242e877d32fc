"""Time of a learned matcher against entropic transport, by CPU time and by the clock, both sides in one run.

    python benchmarks/scorer.py --embeddings hard --threads 1
    python benchmarks/scorer.py --embeddings hard --threads 1 --dim 384 --channels 128 --json runs/scorer.json

A learned matcher reads two numbers off every region of a gallery, once: in the first comparison with an image, or when
an index is built. So there are uses where that is part of the time ("first") and uses where it was done before
("read"): one query at a time against K candidates, many queries at a time against one gallery, and the unordered pairs
of an evaluation in which every image is a query. "from an index" is one query at a time against rows as `diml search`
gets them, which both sides decode first. The scorer is untrained, which takes as long.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import measure
import regimes
from diml.matching import LearnedMatcher, Matcher, QuantizedRegions, Regions
from diml.matching.learned import VoteScorer
from diml.search.build import DEFAULT_STORAGE
from diml.search.store import IndexConfig, Rows, decode_regions, encode_regions

USES = (
    "one query, first",
    "one query, read",
    "one query, from an index",
    "queries, first",
    "queries, read",
    "evaluation, first",
    "evaluation, read",
)
CLOCKS: Mapping[str, Callable[[], float]] = {"cpu": time.process_time, "clock": time.perf_counter}
Images = Regions | QuantizedRegions


def main() -> None:
    made = measure.parser(__doc__)
    regimes.add_arguments(made, images=2000, classes=40)
    made.add_argument("--queries", type=int, default=200, help="Q, drawn at random; default: %(default)s")
    made.add_argument("--rerank-at", type=int, default=100, help="K; default: %(default)s")
    made.add_argument("--channels", type=int, help="of the scorer's map; default: D, or 128 above 400")
    options = measure.read(made)
    results = []
    for name in options.embeddings:
        found = regimes.load(name, options)
        results += [one(found, options, use) for use in USES]
    measure.finish("scorer", options, results, *(times(results, clock) for clock in CLOCKS))


def one(found: regimes.Labelled, options: argparse.Namespace, use: str) -> dict[str, Any]:
    """Time both matchers in one use."""
    count, dim = len(found.regions), found.regions.dim
    drawn = regimes.drawn_queries(options.queries, count, options.seed)
    queries = torch.arange(count) if use.startswith("evaluation") else drawn
    order, _ = regimes.candidates(found.regions, queries, options.rerank_at)
    channels = options.channels or (None if dim <= 400 else 128)
    matchers = {"transport": Matcher(), "votes": LearnedMatcher.of(VoteScorer(dim, channels))}
    gallery = regimes.stored(found, options)
    work = {name: used(use, matcher, found.regions, gallery, queries, order) for name, matcher in matchers.items()}
    seconds = alternate(work, options.runs, options.warmup)
    return {
        "embeddings": found.name,
        "use": use,
        "images": count,
        "regions": found.regions.num_regions,
        "dim": dim,
        "channels": matchers["votes"].scorer.map.out_features,
        "queries": len(queries),
        "rerank_at": order.shape[1],
        "dtype": DEFAULT_STORAGE if use.endswith("index") else options.dtype,
        "ms_per_query": {
            name: {clock: measure.spread(each, 1000 / len(queries)) for clock, each in side.items()}
            for name, side in seconds.items()
        },
        "ratio": {clock: measure.ratios(seconds["votes"][clock], seconds["transport"][clock]) for clock in CLOCKS},
    }


def used(
    use: str, matcher: Matcher, regions: Regions, gallery: Images, queries: Tensor, order: Tensor
) -> Callable[[], None]:
    """All queries in one use of a matcher; `first` gives it another object of the same memory, which is unread."""
    first, asked = use.endswith("first"), regions[queries]
    if use.startswith("evaluation"):
        return lambda: void(matcher.score_unique_pairs(copy.copy(gallery) if first else gallery, queries, order))
    if use.startswith("queries"):
        return lambda: void(matcher.score(asked, copy.copy(gallery) if first else gallery, order))
    alone = [asked[row] for row in range(len(asked))]
    if use.endswith("index"):
        config, rows = indexed(regions, matcher, order)

        def searched() -> None:
            for query, row in zip(alone, rows, strict=True):
                decoded = decode_regions(row, config)
                matcher.score(copy.copy(query), decoded, torch.arange(len(decoded)).unsqueeze(0))

        return searched

    def each() -> None:
        for query, row in zip(alone, order, strict=True):
            matcher.score(copy.copy(query), copy.copy(gallery) if first else gallery, row.unsqueeze(0))

    return each


def void(_: object) -> None:
    """Nothing, of a result that is not looked at."""


def indexed(regions: Regions, matcher: Matcher, order: Tensor) -> tuple[IndexConfig, list[Rows]]:
    """The candidates (Q, K) of each query as rows of an index that was built for this matcher."""
    config = IndexConfig(
        dim=regions.dim,
        num_regions=regions.num_regions,
        grid=regions.grid,
        storage=DEFAULT_STORAGE,
        matcher=matcher,
        scorer=matcher.scorer_id if isinstance(matcher, LearnedMatcher) else "",
    )
    coded, pooled = encode_regions(regions, config, matcher), regions.pooled.float().numpy()
    rows = [Rows(tuple(map(str, row.tolist())), pooled[row], coded[row], ({},) * len(row)) for row in order]
    return config, rows


def alternate(sides: Mapping[str, Callable[[], None]], runs: int, warmup: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each run of each side by each clock, alternating; short work is repeated within a run."""
    for work in sides.values():
        for _ in range(warmup):
            work()
    seconds: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in CLOCKS} for name in sides}
    for run in range(runs):
        for name, work in sides.items():
            with measure.progress.status(f"run {run + 1} of {runs}: {name}"):
                start, calls = {clock: read() for clock, read in CLOCKS.items()}, 0
                while CLOCKS["clock"]() - start["clock"] < measure.LEAST_SECONDS or not calls:
                    work()
                    calls += 1
                for clock, read in CLOCKS.items():
                    seconds[name][clock].append((read() - start[clock]) / calls)
    return seconds


def times(results: list[dict[str, Any]], clock: str) -> measure.Table:
    rows = []
    for result in results:
        sizes = [f"{result[size]:,}" for size in ("images", "regions", "dim", "channels", "queries", "rerank_at")]
        sides = [measure.shown(result["ms_per_query"][side][clock]) for side in ("transport", "votes")]
        rows.append([result["embeddings"], result["use"], *sizes, *sides, measure.shown(result["ratio"][clock])])
    columns = ("embeddings", "use", "N", "R", "D", "d", "Q", "K", "transport, ms", "votes, ms", "votes / transport")
    title = {"cpu": "Milliseconds of CPU time", "clock": "Milliseconds by the clock"}[clock]
    return measure.table(f"{title} per query: median, min..max", columns, rows)


if __name__ == "__main__":
    main()
