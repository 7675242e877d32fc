"""Compressed regions: bytes per image, and how far the best hits agree with those of float32.

    python benchmarks/storage.py --embeddings orl orl-whitened
    python benchmarks/storage.py --embeddings grocery grocery-whitened --data ../shared/datasets

Every image is a query against all others: the best K by pooled cosine are re-ranked from a gallery stored as float32,
float16, int16, int8 (one scale per region) and 1kb (codes of 32 bytes a region, fitted on all images). Agreement is the
fraction of the ten best hits of float32 that are among the ten best. Queries are stored in the same way, and in float32
with 1kb, as in a search. Pooled vectors are float32, and float16 where regions are float16.
"""

from __future__ import annotations

from typing import Any, get_args

import torch

import measure
import regimes
from diml.evaluation import evaluate_regions
from diml.evaluation.evaluate import Storage, stored_as
from diml.matching import QuantizedRegions, Regions
from diml.matching.codebooks import LEAST_REGIONS

BEST = 10


def main() -> None:
    made = measure.parser(__doc__, runs=None)
    regimes.add_arguments(made)
    made.add_argument("--rerank-at", type=int, default=100, help="K; default: %(default)s")
    options = measure.read(made)
    results = []
    for name in options.embeddings:
        found = regimes.load(name, options)
        with measure.progress.status(f"searching {name}"):
            results += one(found, options.rerank_at)
    columns = ("embeddings", "N", "stored as", "bytes per image", "top 10 as float32, %", "first hit, %", "MAP@R, %")
    rows = [
        [
            f"{result['embeddings']}",
            f"{result['images']:,}",
            result["stored"],
            f"{result['bytes']:,}",
            f"{100 * result['top10']:.2f}",
            f"{100 * result['first']:.2f}",
            f"{100 * result['map@r']:.2f}",
        ]
        for result in results
    ]
    measure.finish("storage", options, results, measure.table("Compressed galleries", columns, rows))


def one(found: regimes.Labelled, k: int) -> list[dict[str, Any]]:
    """Every type of storage of one set of embeddings, float32 first."""
    regions = found.regions.to(torch.float32)
    few = int(regions.dense.any(dim=2).sum()) < LEAST_REGIONS  # too few to fit codes on
    stores = {name: stored_as(regions, name) for name in get_args(Storage) if not (few and name == "1kb")}
    results, best = [], torch.empty(0)
    for name, stored in stores.items():
        originals = regions if name == "1kb" else None
        report = evaluate_regions(stored, found.labels, originals=originals, rerank_at=(0, k), resamples=1)
        hits = torch.from_numpy(report.hits[k][:, :BEST])
        best = hits if name == "float32" else best
        shared = (hits.unsqueeze(2) == best.unsqueeze(1)).any(dim=2).double().mean()
        results.append(
            {
                "embeddings": found.name,
                "images": len(regions),
                "regions": regions.num_regions,
                "dim": regions.dim,
                "stored": name,
                "bytes": bytes_of(stored),
                "top10": float(shared),
                "first": float((hits[:, 0] == best[:, 0]).double().mean()),
                "map@r": report.row(k)["map@r"],
            }
        )
    return results


def bytes_of(stored: Regions | QuantizedRegions) -> int:
    """Bytes per image, including the pooled vector."""
    values, scale, _ = stored.stored  # centroids belong to the gallery
    parts = [part for part in (values, scale, stored.pooled) if part is not None]
    return sum(part[0].numel() * part.element_size() for part in parts)


if __name__ == "__main__":
    main()
