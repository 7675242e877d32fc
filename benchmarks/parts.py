"""Parts of pairs of one class: how much of the score they hold, whether they land where they should, their stability.

    python benchmarks/parts.py --datasets orl grocery --data ../shared/datasets --pairs 100 --json runs/parts.json

Test images of the class-disjoint protocol, exact plans; "whiten" is fitted on training images. All methods group the
regions for the same plan: "parts" by `Ledger.parts`, "k-means" by the features of both images, "argmax" gives each
gallery region to the part of the most similar region of the query, "division" cuts both images into rectangles. "auto"
are parts whose number `Ledger.parts` chooses. Means with 95 % bootstrap intervals over pairs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import measure
from diml.cli.options import DataOptions
from diml.data import DataSet, ImageSet, load_image
from diml.evaluation.intervals import bootstrap_means, interval
from diml.faithfulness.pairs import choose_pairs, embed_views
from diml.faithfulness.part_measures import (
    PART_METHODS,
    PART_QUANTITIES,
    held_shares,
    part_accuracies,
    part_stability,
    row_shares,
)
from diml.faithfulness.stability import as_jpeg
from diml.faithfulness.warps import WARPS
from diml.matching import Match, Matcher
from diml.models import Embedder, load_embedder

HEADS = ("identity", "whiten")
KINDS = ("crop", "flip", "shift", "rotation", "homography")
EXACT = Matcher(epsilon=0)
RESAMPLES, FITTED_ON = 1000, 600


def main() -> None:
    made = measure.parser(__doc__, runs=None)
    made.add_argument("--datasets", nargs="+", default=["orl", "grocery"], help="default: %(default)s")
    made.add_argument("--data", type=Path, help="folder with the data sets")
    made.add_argument(
        "--models",
        nargs="+",
        default=list(HEADS),
        help="identity, whiten (heads of the frozen network), or folders of trained models; default: %(default)s",
    )
    made.add_argument("--grid", type=int, default=7, help="regions per side; default: %(default)s")
    made.add_argument("--pairs", type=int, default=100, help="pairs of one class; default: %(default)s")
    made.add_argument("--warped", type=int, default=50, help="queries under known warps; default: %(default)s")
    made.add_argument("--counts", type=int, nargs="+", default=[4, 6], help="numbers of parts; default: %(default)s")
    options = measure.read(made)
    results: list[dict[str, Any]] = []
    for name in options.datasets:
        dataset = DataOptions(data=options.data, protocol="class_disjoint").open(name)
        results += [one(dataset, name, head, options) for head in options.models]
    tables = (held_table(results), quality_table(results), rows_table(results))
    measure.finish("parts", options, results, *tables)


def one(dataset: DataSet, name: str, head: str, options: argparse.Namespace) -> dict[str, Any]:
    """All values of one data set and head: (B,) each."""
    embedder = opened(dataset, head, options)
    images, pairs = dataset.test, choose_pairs(dataset.test, options.pairs, options.seed)
    with measure.progress.status(f"{name}, {head}: embedding"):
        views = [[embedder.preprocess.view(loaded(images, row)) for row in pair] for pair in pairs]
        query, gallery = (embed_views(embedder, [pair[side] for pair in views], shares=True) for side in (0, 1))
        compressed = [as_jpeg(pair[0], np.random.default_rng(0)) for pair in views]
        changed = embed_views(embedder, compressed, shares=True)
    found = EXACT.match(query, gallery)
    values: dict[str, list[float]] = {}
    for n in (*options.counts, None):
        with measure.progress.status(f"{name}, {head}: {n or 'auto'} parts"):
            add_held(values, found, n)
            for method, numbers in part_stability(found, EXACT.match(changed, gallery), n).items():
                values[f"stability/{method_name(method, n)}"] = numbers.tolist()
    for (method, quantity), numbers in row_shares(found).items():
        values[f"{quantity}/{method}"] = numbers.tolist()
    by_method: dict[str, list[Any]] = {}
    for number, kind in enumerate(KINDS):
        with measure.progress.status(f"{name}, {head}: {kind}"):
            for method, rows in warped(embedder, images, pairs[: options.warped], (number, kind), options).items():
                by_method.setdefault(method, []).append(rows)
                for column, quantity in enumerate(PART_QUANTITIES):
                    values[f"{quantity} {kind}/{method} 4"] = rows[:, column].tolist()
    for method, kinds in by_method.items():  # the warps of one photo are not independent: their mean counts once
        for column, quantity in enumerate(PART_QUANTITIES):
            values[f"{quantity}/{method} 4"] = np.mean(kinds, axis=0)[:, column].tolist()
    summary = {key: summarised(numbers, options.seed) for key, numbers in values.items()}
    facts = {"pairs": len(pairs), "warped": min(options.warped, len(pairs)), "grid": options.grid}
    return {"dataset": name, "head": head, **facts, "values": summary}


def opened(dataset: DataSet, head: str, options: argparse.Namespace) -> Embedder:
    """The frozen network, whose head is fitted on a sample of the training images, or a trained model."""
    if head not in HEADS:
        return load_embedder(head, grid=options.grid)
    embedder = load_embedder("mobilenetv2_100", grid=options.grid, head=head, dim=128)  # type: ignore[arg-type]
    if head == "whiten":
        order = np.random.default_rng(options.seed).permutation(len(dataset.train))[:FITTED_ON]
        embedder.fit_head([dataset.train.images[row] for row in sorted(order.tolist())])
    return embedder


def loaded(images: ImageSet, row: int) -> Any:
    return load_image(images.images[row], name=images.image_name(row))


def add_held(values: dict[str, list[float]], found: Match, n: int | None) -> None:
    """Shares inside parts of all methods; of our parts also whether they are connected, their number and their time."""
    for method, shares in held_shares(found, n).items():
        name = method_name(method, n)
        values[f"held/{name}"], values[f"held whole/{name}"] = shares[:, 0].tolist(), shares[:, 1].tolist()
    name = method_name("parts", n)
    for pair in range(len(found)):
        ledger = found.ledger(pair)
        start = time.process_time()
        parts = ledger.parts(n)
        spent = time.process_time() - start
        sides = [row.connected_q and row.connected_g for row in parts.rows]
        quantities = {
            "ms": 1000 * spent,
            "count": len(parts),
            "connected": float(np.mean(sides)),
            "all connected": float(all(sides)),
            "at least 0.9": float(parts.structural_share >= 0.9),
        }
        for quantity, value in quantities.items():
            values.setdefault(f"{quantity}/{name}", []).append(float(value))


def warped(
    embedder: Embedder,
    images: ImageSet,
    pairs: list[tuple[int, int]],
    kind: tuple[int, str],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Method -> (B', 3) accuracies of the queries under one kind of warp."""
    made = [WARPS[kind[1]](np.random.default_rng([options.seed, 10 + kind[0], pair])) for pair in range(len(pairs))]
    sides: list[list[Any]] = [[], []]
    for warp, (row, _) in zip(made, pairs, strict=True):
        photo = embedder.preprocess.view(loaded(images, row), 2)
        for side, view in zip(sides, warp.sides(photo, embedder.preprocess.size), strict=True):
            side.append(view)
    query, gallery = (embed_views(embedder, side) for side in sides)
    return part_accuracies(EXACT.match(query, gallery), made)


def method_name(method: str, n: int | None) -> str:
    return f"{method} {n}" if n is not None else "parts auto"


def summarised(numbers: list[float], seed: int) -> dict[str, Any]:
    """Mean with its interval, and all values."""
    values = np.array([number for number in numbers if not np.isnan(number)])
    if not len(values):
        return {"mean": None, "low": None, "high": None, "values": []}
    low, high = interval(bootstrap_means(values[:, None], RESAMPLES, seed)[:, 0])
    return {"mean": float(values.mean()), "low": low, "high": high, "values": values.tolist()}


# ---- Tables ----------------------------------------------------------------------------------------------------------


def cell(result: dict[str, Any], key: str, form: Callable[[float], str] = lambda value: f"{100 * value:.1f}") -> str:
    found = result["values"].get(key)
    if found is None or found["mean"] is None:
        return ""
    return f"{form(found['mean'])}\n({form(found['low'])}..{form(found['high'])})"


def named(result: dict[str, Any]) -> str:
    return f"{result['dataset']}, {result['head']}"


def methods(results: list[dict[str, Any]]) -> list[str]:
    return [key.removeprefix("held/") for key in results[0]["values"] if key.startswith("held/")]


def held_table(results: list[dict[str, Any]]) -> measure.Table:
    columns = (
        "embeddings",
        "method",
        "structural",
        "whole",
        "stability",
        "connected",
        "pairs all connected",
        "n",
        "ms",
    )
    rows = []
    for result in results:
        for method in methods(results):
            numbers = [cell(result, f"{quantity}/{method}") for quantity in ("held", "held whole", "stability")]
            numbers += [cell(result, f"{quantity}/{method}") for quantity in ("connected", "all connected")]
            numbers += [
                cell(result, f"{quantity}/{method}", lambda value: f"{value:.1f}") for quantity in ("count", "ms")
            ]
            rows.append([named(result), method, *numbers])
    return measure.table("Percent of the score inside parts; stability under JPEG", columns, rows)


def quality_table(results: list[dict[str, Any]]) -> measure.Table:
    kinds = ("", *(f" {kind}" for kind in KINDS))
    columns = ("embeddings", "method", "purity", "agreement", "landing, all", *KINDS)
    rows = [
        [named(result), f"{method} 4"]
        + [cell(result, f"{quantity}/{method} 4") for quantity in ("purity", "agreement")]
        + [cell(result, f"landing{kind}/{method} 4") for kind in kinds]
        for result in results
        for method in PART_METHODS
    ]
    return measure.table("Parts under known warps, percent", columns, rows)


def rows_table(results: list[dict[str, Any]]) -> measure.Table:
    quantities = ("structural top 3", "structural top 5", "whole top 3", "whole top 5")
    rows = [
        [named(result), method, *(cell(result, f"{quantity}/{method}") for quantity in quantities)]
        for result in results
        for method in ("cells", "parts")
    ]
    return measure.table("Percent of the score on the largest rows", ("embeddings", "rows", *quantities), rows)


if __name__ == "__main__":
    main()
