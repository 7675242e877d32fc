"""Time and memory of the training losses, forward and backward: the authors' algorithm against `diml.objectives`.

    python benchmarks/loss.py
    python benchmarks/loss.py --objectives margin_diml --embeddings hard --runs 20
    python benchmarks/loss.py --batch 32 --per-class 4 --regions 49 --json runs/loss.json
    python benchmarks/loss.py --profile --threads 1

Peak memory is that of forward and backward above what was resident before, each in a process of its own. Both sides of
the margin loss mine the same triplets, the plain one an anchor at a time. "The loss alone" excludes mining and
normalisation: it is given unit vectors and, for the margin loss, triplets. With --keep-memory freed memory is reused
rather than returned to the system, as in the commands of diml.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import measure
import plain
import regimes
from diml.allocator import keep_freed_memory
from diml.matching import Matcher, Regions
from diml.objectives import Objective, build_objective

OBJECTIVES = ("multisimilarity_diml", "margin_diml")
SIDES = ("plain", "diml")
ALONE = "alone"

#: Matcher of the reference in float64.
EXACT = Matcher(tolerance=1e-9)

#: A step of one side: the loss and the gradient of the embeddings.
Step = Callable[[], tuple[float, Tensor]]


def main() -> None:
    made = measure.parser(__doc__, runs=9)
    made.add_argument("--objectives", choices=OBJECTIVES, nargs="+", default=list(OBJECTIVES), help="default: both")
    made.add_argument(
        "--embeddings", choices=tuple(regimes.REGIMES), nargs="+", default=["easy", "hard"], help="default: easy hard"
    )
    made.add_argument("--batch", type=int, default=112, help="images; default: %(default)s")
    made.add_argument("--per-class", type=int, default=2, help="images of each class; default: %(default)s")
    made.add_argument("--regions", type=int, default=16, help="R; default: %(default)s")
    made.add_argument("--dim", type=int, default=128, help="D; default: %(default)s")
    measure.add_tolerance(made)
    made.add_argument("--keep-memory", action="store_true", help="reuse freed memory on both sides, as our commands do")
    made.add_argument("--profile", action="store_true", help="show only which operations our side spends its time in")
    made.add_argument("--measure", help=argparse.SUPPRESS)  # side, objective, embeddings: memory of one step
    options = measure.read(made)
    if options.keep_memory and not keep_freed_memory():
        made.error("--keep-memory: needs a system with glibc; omit it")
    if options.measure:
        print(json.dumps(memory(*options.measure.split(","), options)))
        return
    if options.profile:
        profile(options)
        return
    results = [one(name, kind, options) for name in options.objectives for kind in options.embeddings]
    measure.finish("loss", options, results, costs(results), alone(results), agreement(results))


def one(name: str, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides of one objective: seconds, alternating, memory, each in its own process, and their agreement."""
    steps = {side: step(side, name, kind, options.batch, options) for side in SIDES}
    steps |= {f"{side}, {ALONE}": step(side, name, kind, options.batch, options, alone=True) for side in SIDES}
    seconds = measure.alternate(steps, options.runs, options.warmup)
    (released, released_gradient), (ours, gradient) = (steps[side]() for side in SIDES)
    exact, exact_gradient = step("diml", name, kind, options.batch, options, exact=True)()
    flags = ("batch", "per_class", "regions", "dim", "seed", "tolerance")
    arguments = [word for flag in flags for word in (f"--{flag.replace('_', '-')}", str(getattr(options, flag)))]
    arguments += ["--threads", str(torch.get_num_threads()), *(["--keep-memory"] if options.keep_memory else [])]
    megabytes = {}
    for side in SIDES:
        with measure.progress.status(f"memory of {name}, {kind}: {side}"):
            megabytes[side] = measure.in_own_process(__file__, [*arguments, "--measure", f"{side},{name},{kind}"])
    return {
        "objective": name,
        "embeddings": kind,
        "batch": options.batch,
        "regions": options.regions,
        "dim": options.dim,
        "ms": {side: measure.spread(seconds[side], 1000) for side in SIDES},
        "ratio": measure.ratios(seconds["plain"], seconds["diml"]),
        "alone_ms": {side: measure.spread(seconds[f"{side}, {ALONE}"], 1000) for side in SIDES},
        "alone_ratio": measure.ratios(*(seconds[f"{side}, {ALONE}"] for side in SIDES)),
        "megabytes": megabytes,
        "memory_ratio": megabytes["plain"] / megabytes["diml"] if megabytes["diml"] else None,
        "loss": {"plain": released, "diml": ours},
        "gradient_difference": float((gradient - released_gradient).norm() / released_gradient.norm()),
        "loss_error": abs(ours / exact - 1),
        "gradient_error": float((gradient - exact_gradient).norm() / exact_gradient.norm()),
    }


def step(
    side: str,
    name: str,
    kind: str,
    batch: int,
    options: argparse.Namespace,
    *,
    alone: bool = False,
    exact: bool = False,
) -> Step:
    """Forward and backward of one batch, from the feature maps of a head; or the loss `alone`.

    With `exact` in float64, and to a tolerance whose error is negligible.
    """
    classes = max(2, batch // options.per_class)
    sizes = {"images": batch, "classes": classes, "regions": options.regions, "dim": options.dim}
    made = regimes.generate(kind, **sizes, seed=options.seed)
    features, labels = made.regions.dense.clone(), made.labels.sort().values
    features = features[made.labels.argsort(stable=True)].to(torch.float64 if exact else torch.float32).requires_grad_()
    objective = build_objective(
        name,
        num_classes=classes,
        embedding_dim=options.dim,
        generator=(generator := torch.Generator()),
        matcher=EXACT if exact else Matcher(tolerance=options.tolerance),
    )
    leaves = [features]
    if alone:
        unit = Regions.normalized(features.detach(), features.detach().mean(dim=1))
        leaves = [unit.dense.requires_grad_(), unit.pooled.requires_grad_()]
        if name == "margin_diml":
            generator.manual_seed(options.seed)
            objective.miner = Given(objective.miner(unit.pooled.detach(), labels))

    def run() -> tuple[float, Tensor]:
        for leaf in leaves:
            leaf.grad = None
        generator.manual_seed(options.seed)  # the same triplets in every run and on both sides
        loss = value(side, objective, unit if alone else Regions.normalized(features, features.mean(dim=1)), labels)
        loss.backward()
        assert leaves[0].grad is not None
        return loss.item(), leaves[0].grad

    return run


def value(side: str, objective: Objective, regions: Regions, labels: Tensor) -> Tensor:
    """The loss of one side."""
    if side == "diml":
        return objective(regions, labels)
    if objective.name == "multisimilarity_diml":
        return plain.multisimilarity_diml(regions, labels)
    return plain.margin_diml(regions, plain_triplets(objective.miner, regions, labels), objective.loss.beta, labels)


def plain_triplets(miner: nn.Module, regions: Regions, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The triplets that `miner` would draw, drawn by the plain side; or those that were given."""
    if isinstance(miner, Given):
        return miner.triplets
    return plain.distance_weighted(regions.pooled.detach(), labels, miner.cutoff, miner.upper_cutoff, miner.generator)


class Given(nn.Module):
    """In place of a miner: triplets that were drawn before."""

    def __init__(self, triplets: tuple[Tensor, Tensor, Tensor]) -> None:
        super().__init__()
        self.triplets = triplets

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same triplets for every batch."""
        return self.triplets


def memory(side: str, name: str, kind: str, options: argparse.Namespace) -> float:
    """Megabytes of one step above what was resident before, once a step of a few images has loaded all libraries."""
    step(side, name, kind, 2 * options.per_class, options)()
    return measure.memory_above(step(side, name, kind, options.batch, options))


def profile(options: argparse.Namespace) -> None:
    """Print the operations that our side spends most time in; our kernel counts as the function that calls it."""
    for name in options.objectives:
        for kind in options.embeddings:
            run = step("diml", name, kind, options.batch, options)
            run()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
                for _ in range(options.runs):
                    run()
            found = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
            milliseconds = [event.self_cpu_time_total / 1000 / options.runs for event in found]
            rows = [[event.key, f"{spent:.2f}"] for event, spent in zip(found[:12], milliseconds, strict=False)]
            rows.append(["all", f"{sum(milliseconds):.2f}"])
            title = f"{name}, {kind}: milliseconds per step, mean of {options.runs}"
            measure.progress.print(measure.table(title, ("operation", "self, ms"), rows))


def costs(results: list[dict[str, Any]]) -> measure.Table:
    rows = []
    for result in results:
        sides = [measure.shown(result["ms"][side]) for side in SIDES]
        megabytes = "\n".join(f"{result['megabytes'][side]:.0f}" for side in SIDES)
        less = f"{result['memory_ratio']:.3g}" if result["memory_ratio"] else "-"
        name = f"{result['objective'].replace('_', ' ')}\n{result['embeddings']}"
        rows.append([name, *sides, measure.shown(result["ratio"]), megabytes, less])
    columns = ("objective", "plain, ms", "diml, ms", "ratio", "MB, plain\nand diml", "ratio")
    first = results[0]
    title = f"Forward and backward, batch {first['batch']}, R {first['regions']}, D {first['dim']}: median, min..max"
    return measure.table(title, columns, rows)


def alone(results: list[dict[str, Any]]) -> measure.Table:
    rows = []
    for result in results:
        sides = [measure.shown(result["alone_ms"][side]) for side in SIDES]
        rows.append([f"{result['objective']}, {result['embeddings']}", *sides, measure.shown(result["alone_ratio"])])
    columns = ("objective", "plain, ms", "diml, ms", "ratio")
    return measure.table("The loss alone: unit vectors, and the triplets of the margin loss, are given", columns, rows)


def agreement(results: list[dict[str, Any]]) -> measure.Table:
    rows = []
    for result in results:
        losses = [f"{result['loss'][side]:.6f}" for side in SIDES]
        errors = [f"{result[name]:.1e}" for name in ("gradient_difference", "loss_error", "gradient_error")]
        rows.append([f"{result['objective'].removesuffix('_diml')}\n{result['embeddings']}", *losses, *errors])
    columns = ("objective", "loss, plain", "loss, diml", "gradients\ndiffer by", "diml: error\nof loss", "of gradient")
    title = "Agreement; errors are relative, against float64. The plain solver stops before it has converged"
    return measure.table(title, columns, rows)


if __name__ == "__main__":
    main()
