"""Sharper plans and their cost: accuracy on known warps, additivity, time, and retrieval by each plan.

    python benchmarks/sharpening.py --data ../shared/datasets --pairs 40
    python benchmarks/sharpening.py --datasets orl --ways "plan that scores" "epsilon 0.02" exact --queries 100

A photo and its mirror image, or two windows of it two cells apart, are compared as by `diml faithfulness --warps flip
shift`, with the same weights and cosines for every plan. Retrieval: the best K of randomly drawn queries are re-ranked
by pooled cosine + sum of plan x cosine; MAP@R is compared with that of the plan that scores, query by query. Ways: a
smaller epsilon; annealed epsilon (each epsilon is half of the one before and starts from its dual potentials);
quadratic regularisation ("quadratic STRENGTH"), also with a limited number of entries per column ("sparse ENTRIES,
STRENGTH"); no regularisation ("exact"); these three by POT. The plan of `diml explain --sharpen` is for display only
and changes neither scores nor rankings.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import measure
import regimes
from diml.cli.options import DataOptions, EmbedderOptions, embedding_cache
from diml.data import ImageSet, load_image
from diml.evaluation.metrics import query_metrics
from diml.evaluation.report import bootstrap_means, interval
from diml.faithfulness.correspondence import plan_accuracy
from diml.faithfulness.pairs import choose_pairs, embed_views
from diml.faithfulness.warps import WARPS, Truth, true_cells
from diml.matching import Match, Matcher, Regions
from diml.models import Embedder
from diml.models.cache import embed_cached
from plans import WAYS, Way

KINDS = ("flip", "shift")

#: Entries below this fraction of the mass of their row count as zero.
NOTHING = 1e-6

#: Pairs that are solved together.
AT_ONCE = 400


@dataclass(frozen=True, eq=False)
class Warped:
    """Pairs of views of one photo each, compared, and the true counterparts of their regions."""

    compared: Match
    truths: list[Truth]


@dataclass(frozen=True, eq=False)
class Search:
    """Q queries and all other images of each by pooled cosine (Q, N - 1), of which the best K are re-ranked."""

    regions: Regions
    labels: Tensor
    queries: Tensor
    order: Tensor
    pooled: Tensor


def main() -> None:
    made = measure.parser(__doc__, runs=None)
    made.add_argument("--datasets", nargs="+", default=["grocery", "orl"], help="default: grocery orl")
    made.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets; default: data")
    made.add_argument("--protocol", default="class_disjoint", help="default: %(default)s")
    made.add_argument("--model", default="mobilenetv2_100", help="default: %(default)s")
    made.add_argument("--grid", type=int, default=7, help="regions per side; default: %(default)s")
    made.add_argument("--pairs", type=int, default=40, help="photos that are warped; default: %(default)s")
    made.add_argument(
        "--queries", type=int, default=100, help="randomly drawn queries; slow ways use fewer; default: %(default)s"
    )
    made.add_argument("--rerank-at", type=int, default=100, help="K; default: %(default)s")
    made.add_argument("--ways", choices=tuple(WAYS), nargs="+", default=list(WAYS), help="default: all")
    options = measure.read(made)
    results = [row for name in options.datasets for row in measured(name, options)]
    measure.finish("sharpening", options, results, *(table(results, name) for name in options.datasets))


def measured(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per way."""
    dataset = DataOptions(data=options.data, protocol=options.protocol).open(name)
    embedder = EmbedderOptions(grid=options.grid).load(options.model)
    with measure.progress.status(f"{name}: embedding"):
        cases = {kind: warped(embedder, dataset.test, kind, options) for kind in KINDS}
        search = searched(embedder, dataset.test, options)
    usual = WAYS["plan that scores"]
    before = map_at_r(search, usual, len(search.queries), options.rerank_at)
    rows = []
    for named in options.ways:
        way = WAYS[named]
        start = {"dataset": name, "way": named}
        if way.missing():
            rows.append(start | {"skipped": way.missing()})
            continue
        with measure.progress.status(f"{name}: {named}"):
            facts = {kind: accuracy(way, case, options.seed) for kind, case in cases.items()}
            rows.append(start | facts | retrieval(search, way, before, options))
    return rows


# ---- Known warps -----------------------------------------------------------------------------------------------------


def warped(embedder: Embedder, images: ImageSet, kind: str, options: argparse.Namespace) -> Warped:
    """The warps that `diml faithfulness --warps flip shift` makes of the same photos with the same seed."""
    rows = [query for query, _ in choose_pairs(images, options.pairs, options.seed)]
    streams = ([options.seed, 10 + KINDS.index(kind), place] for place in range(len(rows)))
    warps = [WARPS[kind](np.random.default_rng(stream)) for stream in streams]
    photos = (embedder.preprocess.view(load_image(images.paths[row]), 2) for row in rows)
    size = embedder.preprocess.size
    sides = [warp.sides(photo, size) for warp, photo in zip(warps, photos, strict=True)]
    query, gallery = (embed_views(embedder, [pair[side] for pair in sides]) for side in (0, 1))
    grid = (options.grid, options.grid)
    return Warped(compared(query, gallery), [true_cells(warp, grid, grid) for warp in warps])


def compared(query: Regions, gallery: Regions) -> Match:
    """Cosines and weights of pairs; the plan after one iteration is ignored."""
    return Matcher(max_iterations=1).match(query, gallery)


def accuracy(way: Way, case: Warped, seed: int) -> dict[str, Any]:
    """Mass on the true cells, errors of the sum and of the weights, sparsity and time of the plans of one way."""
    start = time.process_time()  # processor time: others may use the cores during the minutes that a plan takes
    plan = way.make(case.compared)
    seconds = time.process_time() - start
    found = (plan_accuracy(*rows) for rows in zip(plan, case.compared.weight_q, case.truths, strict=True))
    mass = np.array([numbers.mass for numbers in found if numbers is not None])
    rows, columns = (
        (plan.double().sum(dim=axis) - weight.double()).abs().sum(dim=1)
        for axis, weight in ((2, case.compared.weight_q), (1, case.compared.weight_g))
    )
    filled = (plan > NOTHING * case.compared.weight_q.unsqueeze(2)).sum(dim=(1, 2)) / plan.shape[1]
    ledger = (plan.double() * case.compared.cosine.double()).sum(dim=(1, 2))
    return {
        "mass": shares(mass, seed),
        "additivity": float((ledger - structural(plan, case.compared)).abs().max()),
        "marginal_error": float((rows + columns).mean()),
        "entries_a_region": float(filled.mean()),
        "processor_ms_a_pair": 1000 * seconds / len(plan),
    }


def structural(plan: Tensor, found: Match) -> Tensor:
    """(B,) structural score of a plan, summed in float32 as by `Matcher.match`."""
    return (plan.float() * found.cosine).sum(dim=(1, 2))


def shares(values: Any, seed: int) -> dict[str, float]:
    """A mean and its 95 % bootstrap interval."""
    low, high = interval(bootstrap_means(np.asarray(values)[:, None], 1000, seed)[:, 0])
    return {"value": float(np.mean(values)), "low": low, "high": high}


# ---- Retrieval -------------------------------------------------------------------------------------------------------


def searched(embedder: Embedder, images: ImageSet, options: argparse.Namespace) -> Search:
    """All images embedded, for leave-one-out, and randomly drawn queries with their ranking by pooled cosine."""
    regions = embed_cached(embedder, images.paths, cache_dir=embedding_cache()).regions
    queries = regimes.drawn_queries(options.queries, len(regions), options.seed)
    order, pooled = regimes.candidates(regions, queries, len(regions) - 1)
    return Search(regions, torch.tensor(images.labels), queries, order, pooled)


def map_at_r(search: Search, way: Way, queries: int, k: int) -> Tensor:
    """(Q',) MAP@R of the first queries, their best k re-ranked by pooled cosine + structural score of a way."""
    order, k = search.order[:queries].clone(), min(k, search.order.shape[1])
    left = search.queries[:queries].repeat_interleave(k)
    scores = []
    for rows in zip(left.split(AT_ONCE), order[:, :k].flatten().split(AT_ONCE), strict=True):
        pairs = compared(*(search.regions[side] for side in rows))
        scores.append(pairs.pooled + structural(way.make(pairs), pairs))
    best = torch.cat(scores).reshape(len(order), k).argsort(dim=1, descending=True, stable=True)
    order[:, :k] = order.gather(1, best)
    return of_ranking(search, order)


def of_ranking(search: Search, order: Tensor) -> Tensor:
    """(Q',) MAP@R of rankings (Q', N - 1); queries without a relevant image are NaN."""
    relevant = search.labels[order] == search.labels[search.queries[: len(order)]].unsqueeze(1)
    counts = relevant.sum(dim=1)
    found = query_metrics(relevant, counts, torch.ones_like(counts, dtype=torch.bool))["map@r"]
    return torch.where(counts > 0, found, torch.nan)


def retrieval(search: Search, way: Way, before: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """MAP@R of a way, its differences from the plan that scores and from pooled cosines, and time."""
    queries = min(way.most_queries, len(search.queries))
    if way.keeps_score or not queries:
        return {}
    start = time.process_time()
    after = map_at_r(search, way, queries, options.rerank_at)
    seconds = time.process_time() - start
    plain = of_ranking(search, search.order[:queries])
    there = ~after.isnan()
    return {
        "retrieval": {
            "queries": int(there.sum()),
            "map@r": shares(after[there].numpy(), options.seed),
            "less_scoring_plan": shares((after - before[:queries])[there].numpy(), options.seed),
            "less_plain": shares((after - plain)[there].numpy(), options.seed),
            "processor_seconds": seconds,
        }
    }


# ---- Table -----------------------------------------------------------------------------------------------------------


def table(results: Sequence[dict[str, Any]], dataset: str) -> measure.Table:
    rows = []
    for result in results:
        if result["dataset"] != dataset:
            continue
        name = result["way"].replace(" to ", "\nto ").replace("that ", "that\n")
        if "skipped" in result:
            rows.append([name, result["skipped"], *[""] * 5])
            continue
        sides = [result[kind] for kind in KINDS]
        cells = [percent(side["mass"]) for side in sides]
        most = [max(side[fact] for side in sides) for fact in ("additivity", "marginal_error", "processor_ms_a_pair")]
        entries = "\n".join(f"{side['entries_a_region']:.1f}" for side in sides)
        cells += [f"{most[0]:.0e}\n{most[1]:.0e}", entries, measure.number(most[2])]
        rows.append([name, *cells, searched_cell(result)])
    columns = ("plan", "flip", "shift", "errors", "cells", "ms", "MAP@R")
    caption = (
        "Percent of the mass on the true cell; errors (of the sum, and marginal) and processor ms per pair, the larger "
        "of both warps; cells that a region sends mass to, flip and shift. MAP@R (number of queries), and below it the "
        "difference from the plan that scores."
    )
    return measure.table(f"{dataset}: sharper plans", columns, rows, caption)


def percent(found: dict[str, float], sign: str = "") -> str:
    value, low, high = (f"{100 * found[name]:{sign}.1f}" for name in ("value", "low", "high"))
    return f"{value}\n{low}..{high}"


def searched_cell(result: dict[str, Any]) -> str:
    """MAP@R, the number of queries, and the difference from the plan that scores."""
    found = result.get("retrieval")
    if found is None:
        return "as scored" if WAYS[result["way"]].keeps_score else ""
    return f"{100 * found['map@r']['value']:.1f} ({found['queries']})\n{percent(found['less_scoring_plan'], '+')}"


if __name__ == "__main__":
    main()
