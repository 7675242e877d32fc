"""Time of re-ranking from compressed galleries: int8 against every other type of storage, in one run.

    python benchmarks/storage_speed.py --threads 1
    python benchmarks/storage_speed.py --threads 1 --embeddings hard --regions 49

The best K of each query by pooled cosine are re-ranked from galleries in int8, int16, float16, float32 and 1kb (codes
of 32 bytes a region, fitted on all images), with transport plans and by MaxSim. Times are CPU time, which other
processes change least; the sides alternate. Ratio: int8 / this, the median of the runs and, below it, the fourth
smallest and the fourth largest, or all where there are fewer than eight.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import measure
import regimes
from diml.evaluation.evaluate import stored_as
from diml.matching import Matcher

STORAGES = ("int8", "int16", "float16", "float32", "1kb")
MATCHERS = {"transport": Matcher(), "maxsim": Matcher(matching="maxsim")}


def main() -> None:
    made = measure.parser(__doc__, runs=11)
    regimes.add_arguments(made)
    made.add_argument("--queries", type=int, default=20, help="drawn queries; default: %(default)s")
    made.add_argument("--rerank-at", type=int, default=100, help="K; default: %(default)s")
    options = measure.read(made)
    results = [result for name in options.embeddings for result in of_embeddings(name, options)]
    columns = ("embeddings, plan", "R", "D", "stored as", "ms per query", "int8 / this")
    rows = [
        [
            f"{result['embeddings']}, {result['plan']}",
            *(f"{result[size]:,}" for size in ("regions", "dim")),
            result["stored"],
            measure.shown(result["milliseconds"]),
            measure.shown(result["ratio"]),
        ]
        for result in results
    ]
    measure.finish("storage_speed", options, results, measure.table("CPU time of re-ranking", columns, rows))


def of_embeddings(name: str, options: Any) -> list[dict[str, Any]]:
    """Every plan and type of storage on the embeddings of this name."""
    regions = regimes.load(name, options).regions.to(torch.float32)
    drawn = regimes.drawn_queries(options.queries, len(regions), options.seed)
    rows, _ = regimes.candidates(regions, drawn, options.rerank_at)
    queries, stores = regions[drawn], {storage: stored_as(regions, storage) for storage in STORAGES}
    results = []
    for plan, matcher in MATCHERS.items():
        sides = {storage: of_side(matcher, queries, stored, rows) for storage, stored in stores.items()}
        seconds = measure.alternate(sides, options.runs, options.warmup, clock=time.process_time)
        for storage, values in seconds.items():
            results.append(
                {
                    "embeddings": name,
                    "plan": plan,
                    "regions": regions.num_regions,
                    "dim": regions.dim,
                    "stored": storage,
                    "milliseconds": inner(values, 1000 / len(queries)),
                    "ratio": inner([a / b for a, b in zip(seconds["int8"], values, strict=True)]),
                }
            )
    return results


def of_side(matcher: Matcher, queries: Any, stored: Any, rows: Any) -> Callable[[], object]:
    return lambda: matcher.score(queries, stored, rows)


def inner(values: Sequence[float], factor: float = 1.0) -> dict[str, Any]:
    """As `measure.spread`, but without the three smallest and the three largest of eight values or more."""
    ordered = sorted(factor * value for value in values)
    kept = ordered[3:-3] if len(ordered) >= 8 else ordered
    return {"median": statistics.median(ordered), "low": kept[0], "high": kept[-1], "values": ordered}


if __name__ == "__main__":
    main()
