"""This checkout against another one of this repository: the same work on the same inputs, alternating.

    python benchmarks/against_commit.py --other ../old
    python benchmarks/against_commit.py --other ../old --runs 15 --json runs/against_commit.json
    python benchmarks/against_commit.py --other ../old --tasks rerank maxsim --regions 196 --images 300 --threads 1

Needs the other checkout with its own `.venv`, for instance `git worktree add ../old COMMIT` and `make venv` there.
Every run starts one process per checkout, with the Python of that checkout, in which each task is warmed up, repeated,
and counted with its median: re-ranking (the best K of drawn queries) by transport and MaxSim, a whole evaluation, and
two training losses (forward and backward). "equal" says whether the results of both checkouts are bit-identical.
Ratios below 1 mean that this checkout is faster.

Legend: N images, Q queries, K candidates, R regions, D channels.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import commit_work
import measure
import regimes

Floats = NDArray[np.float32]

HERE = Path(__file__).resolve().parents[1]
SIDES = ("other", "this")


def main() -> None:
    made = measure.parser(__doc__, runs=9, warmup=0)
    made.add_argument("--other", type=Path, required=True, help="root of the other checkout")
    for name, default, what in (
        ("images", 3000, "N of re-ranking"),
        ("queries", 100, "Q of re-ranking"),
        ("rerank-at", 100, "K of re-ranking and evaluation"),
        ("evaluation-images", 5924, "N of the evaluation"),
        ("classes", 100, "classes of the evaluation"),
        ("batch", 112, "N of the training losses, two of each class"),
        ("regions", 16, "R"),
        ("dim", 128, "D"),
    ):
        made.add_argument(f"--{name}", type=int, default=default, help=f"{what}; default: %(default)s")
    made.add_argument("--embeddings", choices=regimes.REGIMES, default="hard", help="default: %(default)s")
    made.add_argument("--tasks", nargs="+", choices=commit_work.TASKS, default=commit_work.TASKS, help="default: all")
    options = measure.read(made)
    checkouts = {"other": options.other.resolve(), "this": HERE}
    for side, folder in checkouts.items():
        if not python_of(folder).exists():
            made.error(
                f"--{side}: need a checkout with a virtual environment, {python_of(folder)} is missing; run make venv"
            )
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        np.savez(inputs, **make_inputs(options))
        runs = alternate(checkouts, inputs, options)
    commits = {side: commit_of(checkout) for side, checkout in checkouts.items()}
    results = [{"commits": commits} | result(task, runs) for task in runs["this"][0]["tasks"]]
    measure.finish("against_commit", options, results, table(results))


def python_of(checkout: Path) -> Path:
    return checkout / ".venv" / "bin" / "python"


def commit_of(checkout: Path) -> str:
    """The commit, with "-dirty" where files were changed since."""
    words = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


# ---- Inputs ----------------------------------------------------------------------------------------------------------


def make_inputs(options: argparse.Namespace) -> dict[str, NDArray[Any]]:
    """The arrays that `commit_work.tasks` needs for the tasks of the options."""
    found: dict[str, NDArray[Any]] = {}
    if {"rerank", "maxsim"} & set(options.tasks):
        dense, pooled, _ = embeddings(options, options.images, 100)
        queries = np.random.default_rng(options.seed).permutation(options.images)[: options.queries]
        cosine = pooled[queries] @ pooled.T
        cosine[np.arange(len(queries)), queries] = -np.inf
        candidates = np.argsort(-cosine, axis=1, kind="stable")[:, : min(options.rerank_at, options.images - 1)]
        found |= {"rerank_dense": dense, "rerank_pooled": pooled, "queries": queries, "candidates": candidates}
    if "evaluate" in options.tasks:
        dense, pooled, labels = embeddings(options, options.evaluation_images, options.classes)
        found |= {"evaluate_dense": dense, "evaluate_pooled": pooled, "evaluate_labels": labels}
    if "loss" in options.tasks:
        features, _, labels = embeddings(options, options.batch, options.batch // 2)
        found |= {"loss_features": features, "loss_labels": labels}
    return found


def embeddings(options: argparse.Namespace, images: int, classes: int) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Unit vectors of regions (N, R, D) and pooled vectors (N, D), float32, and classes (N,)."""
    sizes = {"regions": options.regions, "dim": options.dim, "seed": options.seed}
    made = regimes.generate(options.embeddings, images=images, classes=classes, **sizes)
    return made.regions.dense.numpy(), made.regions.pooled.numpy(), made.labels.numpy()


# ---- Runs ------------------------------------------------------------------------------------------------------------


def alternate(checkouts: dict[str, Path], inputs: Path, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """What `commit_work` prints, of each run of each side; which side goes first alternates."""
    script = str(Path(__file__).with_name("commit_work.py"))
    arguments = [str(inputs), "--rerank-at", str(options.rerank_at), "--tasks", *options.tasks]
    arguments += ["--threads", str(options.threads)] if options.threads else []
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for run in range(options.warmup + options.runs):
        for side in SIDES if run % 2 else reversed(SIDES):
            with measure.progress.status(f"run {run + 1} of {options.warmup + options.runs}: {side}"):
                found = measure.in_own_process(script, arguments, python_of(checkouts[side]))
            if not Path(found["diml"]).is_relative_to(checkouts[side]):
                raise RuntimeError(f"{side}: need diml of {checkouts[side]}, got {found['diml']}; unset PYTHONPATH")
            if run >= options.warmup:
                runs[side].append(found)
    return runs


def result(task: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Seconds of both sides on one task, their ratio run by run, and whether the results are equal."""
    seconds = {side: [run["tasks"][task]["seconds"] for run in runs[side]] for side in SIDES}
    digests = {run["tasks"][task]["digest"] for side in SIDES for run in runs[side]}
    spreads = {side: measure.spread(seconds[side]) for side in SIDES}
    ratio = measure.ratios(seconds["this"], seconds["other"])
    return {"task": task, "seconds": spreads, "ratio": ratio, "equal": len(digests) == 1}


def table(results: list[dict[str, Any]]) -> measure.Table:
    rows = []
    for each in results:
        sides = [measure.shown(measure.spread(each["seconds"][side]["values"], 1000)) for side in SIDES]
        rows.append(
            [each["task"].replace(", ", ",\n"), *sides, measure.shown(each["ratio"]), "yes" if each["equal"] else "no"]
        )
    columns = ("task", "other, ms", "this, ms", "this / other", "equal")
    title = "This checkout ({this}) against the other ({other}), milliseconds: median, min..max"
    return measure.table(title.format(**results[0]["commits"]), columns, rows)


if __name__ == "__main__":
    main()
