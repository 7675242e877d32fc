"""This checkout against another one of this repository: the same work on the same inputs, alternating.

    python benchmarks/against_commit.py --other ../old
    python benchmarks/against_commit.py --other ../old --runs 15 --json runs/against_commit.json

Needs the other checkout with its own `.venv`, for instance `git worktree add ../old COMMIT` and `make venv` there.
Every run starts one process per checkout, with the Python of that checkout, in which each task is warmed up, repeated,
and counted with its median: re-ranking (the best K of drawn queries), a whole evaluation, and two training losses
(forward and backward). "equal" says whether the results of both checkouts are bit-identical. Ratios below 1 mean
that this checkout is faster.

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

import measure

Floats = NDArray[np.float32]

HERE = Path(__file__).resolve().parents[1]
SIDES = ("other", "this")

#: Scales of the vectors of a part, a class and a region itself, and the number of parts: those of regime `hard`.
PART, CLASS, NOISE, PARTS = 0.9, 0.25, 0.7, 64


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
    """All arrays of `commit_work.tasks`."""
    generator = np.random.default_rng(options.seed)
    sizes = (options.regions, options.dim)
    dense, pooled = embeddings(generator, np.arange(options.images) % 100, *sizes)
    queries = generator.permutation(options.images)[: options.queries]
    cosine = pooled[queries] @ pooled.T
    cosine[np.arange(len(queries)), queries] = -np.inf
    candidates = np.argsort(-cosine, axis=1, kind="stable")[:, : min(options.rerank_at, options.images - 1)]
    found = {"rerank_dense": dense, "rerank_pooled": pooled, "queries": queries, "candidates": candidates}
    labels = np.arange(options.evaluation_images) % options.classes
    dense, pooled = embeddings(generator, labels, *sizes)
    found |= {"evaluate_dense": dense, "evaluate_pooled": pooled, "evaluate_labels": labels}
    labels = np.arange(options.batch) // 2
    return found | {"loss_features": embeddings(generator, labels, *sizes)[0], "loss_labels": labels}


def embeddings(
    generator: np.random.Generator, labels: NDArray[np.int64], regions: int, dim: int
) -> tuple[Floats, Floats]:
    """Unit vectors of regions (N, R, D) and pooled vectors (N, D), float32."""
    images = len(labels)
    parts = PART * generator.standard_normal((PARTS, dim), dtype=np.float32)
    centres = CLASS * generator.standard_normal((int(labels.max()) + 1, 1, dim), dtype=np.float32)
    dense = NOISE * generator.standard_normal((images, regions, dim), dtype=np.float32)
    dense += parts[generator.integers(PARTS, size=(images, regions))] + centres[labels]
    return unit(dense), unit(dense.mean(axis=1))


def unit(vectors: Floats) -> Floats:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


# ---- Runs ------------------------------------------------------------------------------------------------------------


def alternate(checkouts: dict[str, Path], inputs: Path, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """What `commit_work` prints, of each run of each side; which side goes first alternates."""
    script = str(Path(__file__).with_name("commit_work.py"))
    arguments = [str(inputs), "--rerank-at", str(options.rerank_at)]
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
