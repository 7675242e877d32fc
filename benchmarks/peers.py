"""Ours against other projects at equal work: optimal transport alone, MaxSim, and the search by pooled vectors.

    python benchmarks/peers.py
    python benchmarks/peers.py --pairs 20000 --embeddings hard --tasks transport --json runs/peers.json
    python benchmarks/peers.py --peers pot_batch pot_batch_log --regions 49
    python benchmarks/peers.py --tasks maxsim nearest --embeddings easy --images 60502

Peers that are not installed are named with the line that installs them. All are measured in one run, alternating with
ours. The scores of MaxSim and of the search are compared with ours first; the largest difference stands in the table.

Transport: costs and weights are given: those of queries and their best K candidates, with weights of at least 1e-7, as
several solvers fail at zero. Ours stops each pair at a marginal error of 4e-6. Every other solver gets the least effort
(a number of iterations, or a tolerance where it has a stopping rule) at which the mean marginal error of its plans is
not above that of ours. The error is measured in the same way for all, in float64: the L1 distance of row sums and
column sums from the weights, together. Batched solvers get the best of several batch sizes.

MaxSim: each query against its best K candidates, the query's side alone with equal weights. Ours adds the pooled
cosine, as part of the same call. Search: the `--rerank-at` nearest images of each query by pooled cosine, without
itself; ours sums in float64, so that rankings do not depend on the machine.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch
from torch import Tensor

import measure
import regimes
from diml.matching import Matcher, nearest, sinkhorn
from engines import MAXSIM, NEAREST, Engine, Work
from solvers import EPSILON, PEERS, Peer, Problems

TASKS = ("transport", "maxsim", "nearest")

#: Least weight of a region.
LEAST_WEIGHT = 1e-7

#: Batch sizes that batched peers may choose from, besides all pairs together.
BATCHES = (100, 400, 1600)


def ours(problems: Problems) -> Tensor:
    """Plans (B, R, R) of our solver at its default tolerance."""
    return sinkhorn(*problems, epsilon=EPSILON).plan


def main() -> None:
    made = measure.parser(__doc__)
    regimes.add_arguments(made, images=2000)
    made.add_argument("--pairs", type=int, default=5000, help="B; default: %(default)s")
    made.add_argument("--rerank-at", type=int, default=100, help="K, candidates per query; default: %(default)s")
    made.add_argument("--tasks", choices=TASKS, nargs="+", default=list(TASKS), help="default: all")
    known = (*PEERS, *MAXSIM, *NEAREST)
    made.add_argument("--peers", choices=known, nargs="+", default=list(known), help="default: all")
    options = measure.read(made)
    results = []
    for name in options.embeddings:
        found = regimes.load(name, options)
        if "transport" in options.tasks:
            results += compare(found, options)
        for task, peers in (("maxsim", MAXSIM), ("nearest", NEAREST)):
            if task in options.tasks:
                results += compare_engines(found, options, task, peers)
    solvers = [result for result in results if result["task"] == "transport"]
    engines = [result for result in results if result["task"] != "transport"]
    tables = ([table(solvers)] if solvers else []) + ([engine_table(engines)] if engines else [])
    measure.finish("peers", options, results, *tables)


def compare(found: regimes.Labelled, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per solver."""
    problems = problems_of(found, options)
    plan = ours(problems)
    wanted = float(marginal_error(plan, problems).mean())
    exact = sinkhorn(*(part.double() for part in problems), epsilon=EPSILON, tolerance=1e-9, max_iterations=50_000)
    rows = [row(found, "diml", {"marginal_error": wanted, "plan_error": plan_error(plan, exact.plan)}, len(plan))]
    for name in (name for name in options.peers if name in PEERS):
        peer = PEERS[name]
        reason = peer.missing()
        if reason:
            rows.append(row(found, name, {"skipped": reason}, 0))
            continue
        some = tuple(part[: min(len(plan), peer.most_pairs)] for part in problems)
        with measure.progress.status(f"{found.name}: effort of {name}"):
            effort = least_effort(peer, some, wanted)
            if effort is None:
                rows.append(row(found, name, {"skipped": "did not reach our marginal error"}, 0))
                continue
            batch = best_batch(peer, some, effort)
        sides = {"peer": lambda: peer.solve(some, effort, batch), "diml": lambda: ours(problems)}  # noqa: B023
        seconds = measure.alternate(sides, options.runs, options.warmup)
        plan = peer.solve(some, effort, batch)
        error = float(marginal_error(plan, some).mean())
        facts = {"effort": effort, "effort_is": peer.effort_is, "batch": batch, "marginal_error": error}
        facts |= {"plan_error": plan_error(plan, exact.plan[: len(plan)])}
        facts |= {"pairs_per_second": measure.spread([len(plan) / s for s in seconds["peer"]])}
        facts |= {"diml_pairs_per_second": measure.spread([len(problems[0]) / s for s in seconds["diml"]])}
        facts |= {"ratio": measure.ratios(seconds["peer"], seconds["diml"], len(problems[0]) / len(plan))}
        rows.append(row(found, name, facts, len(plan)))
    return rows


def row(found: regimes.Labelled, solver: str, facts: dict[str, Any], pairs: int) -> dict[str, Any]:
    about = {"task": "transport", "embeddings": found.name, "regions": found.regions.num_regions}
    return about | {"solver": solver, "pairs": pairs} | facts


def compare_engines(
    found: regimes.Labelled, options: argparse.Namespace, task: str, peers: dict[str, Engine]
) -> list[dict[str, Any]]:
    """One row per engine: what differs from ours, then the time of each side, alternating."""
    images = found.regions.to(torch.float32)
    queries = regimes.drawn_queries(math.ceil(options.pairs / options.rerank_at), len(images), options.seed)
    order, best = regimes.candidates(images, queries, options.rerank_at)
    work = Work(images, queries, order, order.shape[1])
    query, matcher = images[queries], Matcher(matching="maxsim_query", weights="uniform")

    def score() -> Tensor:
        return matcher.score(query, images, order)

    def search() -> Tensor:
        return nearest(query, images, work.depth, exclude=queries).order

    run = score if task == "maxsim" else search
    about = {"task": task, "embeddings": found.name, "regions": images.num_regions, "images": len(images)}
    about |= {"queries": len(queries), "depth": work.depth}
    rows = []
    for name, peer in ((name, peers[name]) for name in options.peers if name in peers):
        if peer.missing():
            rows.append(about | {"solver": name, "skipped": peer.missing()})
            continue
        theirs = peer.prepare(work)
        if task == "maxsim":
            ours_found = score() - best
        else:
            ours_found = (query.pooled.unsqueeze(1) * images.pooled[search()]).sum(dim=2)
        difference = float((theirs() - ours_found).abs().max())
        seconds = measure.alternate({"peer": theirs, "diml": run}, options.runs, options.warmup)
        per_query = 1000 / len(queries)
        facts = {f"{side}_ms_per_query": measure.spread(seconds[side], per_query) for side in ("peer", "diml")}
        facts |= {"largest_difference": difference, "ratio": measure.ratios(seconds["peer"], seconds["diml"])}
        rows.append(about | {"solver": name} | facts)
    return rows


def problems_of(found: regimes.Labelled, options: argparse.Namespace) -> Problems:
    """Cost (B, R, R) and weights (B, R) of queries with their candidates, float32."""
    regions = found.regions.to(torch.float32)
    queries = regimes.drawn_queries(math.ceil(options.pairs / options.rerank_at), len(regions), options.seed)
    order, _ = regimes.candidates(regions, queries, options.rerank_at)
    left = queries.repeat_interleave(order.shape[1])[: options.pairs]
    right = order.flatten()[: options.pairs]
    compared = Matcher(max_iterations=1).match(regions[left], regions[right])  # for its cosines and weights
    weights = [weight.clamp(min=LEAST_WEIGHT) for weight in (compared.weight_q, compared.weight_g)]
    weight_q, weight_g = (weight / weight.sum(dim=1, keepdim=True) for weight in weights)
    return 1 - compared.cosine, weight_q, weight_g


def marginal_error(plan: Tensor, problems: Problems) -> Tensor:
    """(B,) L1 distance of row sums and column sums from the weights, together, in float64."""
    plan, (_, weight_q, weight_g) = plan.double(), problems
    rows = (plan.sum(dim=2) - weight_q.double()).abs().sum(dim=1)
    return rows + (plan.sum(dim=1) - weight_g.double()).abs().sum(dim=1)


def plan_error(plan: Tensor, exact: Tensor) -> float:
    """Mean L1 distance from the converged plan, which shows whether a solver solves the same problem."""
    return float((plan.double() - exact).abs().sum(dim=(1, 2)).mean())


def least_effort(peer: Peer, problems: Problems, wanted: float) -> float | None:
    """The first effort on the peer's scale, by bisection, at which its mean marginal error is at most `wanted`."""
    low, high = 0, len(peer.efforts)
    while low < high:
        middle = (low + high) // 2
        error = float(marginal_error(peer.solve(problems, peer.efforts[middle], 400), problems).mean())
        low, high = (low, middle) if error <= wanted else (middle + 1, high)
    return peer.efforts[low] if low < len(peer.efforts) else None


def best_batch(peer: Peer, problems: Problems, effort: float) -> int:
    """The fastest batch size, by the better of two runs each."""
    if not peer.batched:
        return 1
    sizes = [size for size in BATCHES if size < len(problems[0])] + [len(problems[0])]

    def seconds(size: int) -> float:
        start = time.perf_counter()
        peer.solve(problems, effort, size)
        return time.perf_counter() - start

    return min(sizes, key=lambda size: min(seconds(size), seconds(size)))


def table(results: list[dict[str, Any]]) -> measure.Table:
    rows = []
    for result in results:
        start = [f"{result['solver'].replace('_', ' ')}\n{result['embeddings']}"]
        if "skipped" in result:
            rows.append([*start, "skipped", result["skipped"], "", "", ""])
            continue
        errors = [f"{result['marginal_error']:.1e}", f"{result['plan_error']:.1e}"]
        if "ratio" not in result:
            rows.append([*start, "", "", *errors, ""])
            continue
        rate = measure.shown(result["pairs_per_second"])
        effort = f"{result['effort']:.3g} {result['effort_is']}\nbatch {result['batch']}"
        rows.append([*start, rate, effort, *errors, measure.shown(result["ratio"])])
    columns = ("solver", "pairs/s", "effort", "marginal\nerror", "plan\nerror", "diml / it")
    caption = "Errors: mean L1 distance of row and column sums from the weights, of the plan from the converged one."
    return measure.table("Transport at equal marginal error: median, min..max", columns, rows, caption)


def engine_table(results: list[dict[str, Any]]) -> measure.Table:
    rows = []
    for result in results:
        start = [f"{result['task']}: {result['solver'].replace('_', ' ')}\n{result['embeddings']}"]
        if "skipped" in result:
            rows.append([*start, "skipped", result["skipped"], "", ""])
            continue
        times = [measure.shown(result[f"{side}_ms_per_query"]) for side in ("peer", "diml")]
        rows.append([*start, *times, f"{result['largest_difference']:.1e}", measure.shown(result["ratio"])])
    columns = ("task and engine", "its ms\na query", "ours", "largest\ndifference", "its / ours")
    return measure.table("MaxSim and search: median, min..max", columns, rows, "Difference: of scores, from ours.")


if __name__ == "__main__":
    main()
