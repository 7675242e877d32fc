"""The work that benchmarks/against_commit.py times, in one checkout: run by the Python of that checkout.

    CHECKOUT/.venv/bin/python benchmarks/commit_work.py INPUTS.npz --rerank-at 100 --tasks rerank maxsim

Prints JSON: the seconds of each task, a digest of its result, and where diml was imported from. Uses torch, numpy and
diml only, and works with the interface of diml before and after `Matcher`.

Legend: N images, Q queries, K candidates, R regions, D channels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diml
from diml import matching
from diml.evaluation import evaluate_regions
from diml.matching import Regions
from diml.objectives import build_objective

#: Whether this checkout has `Matcher`; before it, `rerank` returned scores and the list of K was called `rerank`.
HAS_MATCHER = hasattr(matching, "Matcher")

#: What can be timed; `maxsim` needs `Matcher`.
TASKS = ("rerank", "maxsim", "evaluate", "loss")

#: A task is repeated at least this often and this long; it counts with the median.
LEAST_CALLS, LEAST_SECONDS = 3, 1.0

#: A task: returns arrays that its result is identified by.
Task = Callable[[], Iterable[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, help="file of arrays, written by against_commit.py")
    parser.add_argument("--rerank-at", type=int, default=100, help="K of the evaluation; default: %(default)s")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="default: all")
    parser.add_argument("--threads", type=int, help="torch threads; default: chosen by torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with np.load(options.inputs) as arrays:
        inputs = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    warnings.simplefilter("ignore")  # pairs that have not converged
    found = {name: timed(task) for name, task in tasks(inputs, options.rerank_at, options.tasks).items()}
    print(json.dumps({"diml": diml.__file__, "threads": torch.get_num_threads(), "tasks": found}))


def tasks(inputs: dict[str, Tensor], rerank_at: int, wanted: Sequence[str] = TASKS) -> dict[str, Task]:
    """Name -> task, on the arrays of `against_commit.make_inputs`."""
    found: dict[str, Task] = {}
    if {"rerank", "maxsim"} & set(wanted):
        gallery = Regions(inputs["rerank_dense"], inputs["rerank_pooled"])
        query, candidates, coded = gallery[inputs["queries"]], inputs["candidates"], gallery.quantized(torch.int16)
    if "rerank" in wanted:
        found["re-ranking, float32"] = lambda: [score(query, gallery, candidates)]
        found["re-ranking, int16"] = lambda: [score(query, coded, candidates)]
    if "maxsim" in wanted:
        found["re-ranking by MaxSim, float32"] = lambda: [
            matching.Matcher(matching="maxsim").score(query, gallery, candidates)
        ]
    if "evaluate" in wanted:
        images = Regions(inputs["evaluate_dense"], inputs["evaluate_pooled"])
        found["evaluation, float32"] = lambda: evaluate(images, inputs["evaluate_labels"], rerank_at)
    if "loss" in wanted:
        for name in ("multisimilarity_diml", "margin_diml"):
            found[f"{name}, forward and backward"] = loss_step(name, inputs["loss_features"], inputs["loss_labels"])
    return found


def score(query: Regions, gallery: Any, candidates: Tensor) -> Tensor:
    """(Q, K) scores."""
    return (
        matching.Matcher().score(query, gallery, candidates)
        if HAS_MATCHER
        else matching.rerank(query, gallery, candidates)
    )


def evaluate(images: Regions, labels: Tensor, k: int) -> list[Any]:
    """The metrics of every query of a whole evaluation, plain and re-ranked, leave-one-out."""
    report = evaluate_regions(images, labels, **{"rerank_at" if HAS_MATCHER else "rerank": (0, k)})
    return [report.per_query[at][name] for at in (0, k) for name in sorted(report.per_query[at])]


def loss_step(name: str, features: Tensor, labels: Tensor) -> Task:
    """Forward and backward of a training loss on features (N, R, D): its value and the gradient."""
    generator, leaf = torch.Generator(), features.clone().requires_grad_()
    classes = int(labels.max()) + 1
    objective = build_objective(name, num_classes=classes, embedding_dim=features.shape[2], generator=generator)

    def step() -> list[Any]:
        leaf.grad = None
        generator.manual_seed(0)  # the same triplets in every run
        loss = objective(Regions.normalized(leaf, leaf.mean(dim=1)), labels)
        loss.backward()
        return [loss.detach(), leaf.grad]

    return step


def timed(task: Task) -> dict[str, Any]:
    """Median seconds of a call after a warm-up, and a digest of the result."""
    result = task()
    seconds: list[float] = []
    while len(seconds) < LEAST_CALLS or sum(seconds) < LEAST_SECONDS:
        started = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - started)
    digest = hashlib.sha256()
    for part in result:
        digest.update(np.ascontiguousarray(part).tobytes())
    return {"seconds": statistics.median(seconds), "calls": len(seconds), "digest": digest.hexdigest()[:16]}


if __name__ == "__main__":
    main()
