"""Record the numbers of the code before its refactoring.

    cd /where/that/code/is && .venv/bin/python .../tests/reference/record_numbers_old.py OUT.json

These functions alone know its API. `number_cases` says what they are given, `number_runs` calls them.
"""

# ruff: noqa: I001 (which modules are our own depends on the code beside this file, and this is for older code)

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diml
from diml import matching
from diml.data import PictureSet
from diml.evaluation import Report, evaluate_regions
from diml.evaluation.extra import extra_metrics as old_extra_metrics
from diml.matching import QuantizedRegions, Regions, native
from diml.objectives import StructuralDistance, StructuralSimilarity, build_objective, pack_regions
from diml.training.distributed import evaluate_shared, join_team
from reference.number_cases import Images, of_report
from reference.number_runs import TEAM_GROUP, main


def stored(images: Images, storage: str) -> Any:
    """Regions, of unit length, in a type of storage."""
    dtype = getattr(torch, storage)
    exact = torch.float64 if storage == "float64" else torch.float32
    regions = Regions.normalized(images.dense.to(exact), images.pooled.to(exact), images.grid)
    return regions.to(dtype) if dtype.is_floating_point else regions.quantized(dtype)


def vectors(*, images: Images, storage: str) -> dict[str, Any]:
    """Vectors as they are stored, codes with their scales."""
    regions = stored(images, storage)
    if isinstance(regions, QuantizedRegions):
        return {"dense": regions.codes, "scale": regions.scale, "pooled": regions.pooled}
    return {"dense": regions.dense, "scale": None, "pooled": regions.pooled}


def _of_report(report: Report) -> dict[str, Any]:
    return of_report(
        rows=report.rows,
        intervals=report.intervals,
        comparisons=[(c.rerank, c.against, c.metric, c.difference, c.low, c.high) for c in report.comparisons],
        per_query=report.per_query,
        queries=report.queries,
        without_relevant=report.without_relevant,
        hits=report.hits,
        gallery_size=report.gallery_size,
        unfinished_pairs=report.unfinished_pairs,
    )


def evaluate(*, images: Images, storage: str, settings: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Report; options are rerank, queries, gallery, score, without_relevant, resamples, seed."""
    return _of_report(evaluate_regions(stored(images, storage), images.labels, **options, **settings))


def evaluate_in_team(
    *,
    images: Images,
    storage: str,
    queries: Any,
    gallery: Any,
    rerank: tuple[int, ...],
    resamples: int,
    seed: int,
    **usual: Any,
) -> dict[str, Any]:
    """The same report by the processes of the group; `usual` are options that have their default values."""
    pictures = PictureSet(
        name="recorded",
        paths=tuple(Path(str(row)) for row in range(len(images.labels))),
        labels=images.labels,
        class_names=tuple(str(number) for number in range(images.labels.max() + 1)),
        queries=queries,
        gallery=gallery,
    )
    with join_team("cpu") as team:
        regions = stored(images, storage)
        return _of_report(evaluate_shared(regions, pictures, team, rerank=rerank, seed=seed, resamples=resamples))


def rerank(
    *,
    query: Images,
    query_storage: str,
    gallery: Images,
    storage: str,
    candidates: Tensor,
    score: str,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Scores (Q, K) of the candidates of each query."""
    sides = stored(query, query_storage), stored(gallery, storage)
    return {"scores": matching.rerank(*sides, candidates, score=score, **settings)}


def match(*, query: Images, gallery: Images, storage: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that is known of the pairs."""
    found = matching.match(stored(query, storage), stored(gallery, storage), **settings)
    parts = ("score", "structural", "pooled", "marginal_error", "iterations", "converged")
    return {name: getattr(found, name) for name in (*parts, "plan", "cosine", "weight_q", "weight_g")}


def sinkhorn(*, cost: Tensor, weight_q: Tensor, weight_g: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
    """Plans and how good they are."""
    return dict(vars(matching.sinkhorn(cost, weight_q, weight_g, **settings)))


def objective(
    *, maps: Tensor, labels: Tensor, name: str, similarity: str, given: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Loss of a batch, its gradient with respect to the maps and the parameters, and what was counted."""
    torch.manual_seed(0)
    module = build_objective(
        name,
        num_classes=8,
        embedding_dim=maps.shape[1],
        similarity=similarity,
        num_regions=maps.shape[2] * maps.shape[3],
        generator=torch.Generator().manual_seed(0),
        **options,
    ).to(maps.dtype)
    maps = maps.clone().requires_grad_()
    torch.manual_seed(0)
    loss = module(maps.mean(dim=(2, 3)) if given == "tensor" else Regions.from_maps(maps), labels)
    loss.backward()
    parameters = {label.removeprefix("loss."): part.grad for label, part in module.named_parameters()}
    return {"loss": loss, "gradient": maps.grad, "parameters": parameters, "statistics": module.statistics}


def distance(
    *,
    kind: str,
    left: Images,
    right: Images | None,
    form: str,
    storage: str,
    weight: Tensor,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Values of a structural similarity or distance, and the gradient of their weighed sum on either side."""
    measure = {"similarity": StructuralSimilarity, "distance": StructuralDistance}[kind](16, **options)
    sides = [pack_regions(stored(side, storage)).requires_grad_() for side in (left, right) if side is not None]
    if form == "map":
        assert right is not None
        sides[1] = right.dense.flatten(1).to(sides[0].dtype).requires_grad_()
    take = measure.pairwise_distance if form == "rows" else measure
    values = take(sides[0], sides[-1])
    (values * weight).sum().backward()
    gradients = {f"gradient {place}": side.grad for place, side in zip(("left", "right"), sides, strict=False)}
    return {"values": values, "unconverged_pairs": measure.unconverged_pairs} | gradients


def explanation(
    *, query: Images, gallery: Images, other: Images, storage: str, top: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """Ledger of a pair, and its contrast with another pair of the same query, as plain values."""
    query_regions = stored(query, storage)
    first, second = (matching.match(query_regions, stored(side, storage), **settings) for side in (gallery, other))
    contrast = first.contrast(second)
    return {"ledger": first.ledger().to_dict(top), "contrast": contrast.to_dict(), "most": contrast.top(top)}


def extra_metrics(*, images: Images, storage: str, queries: Any, gallery: Any, seed: int) -> dict[str, Any]:
    """Further metrics by name."""
    regions = stored(images, storage)
    return old_extra_metrics(regions, images.labels, queries=queries, gallery=gallery, seed=seed)


def about() -> dict[str, Any]:
    """Instruction set of the kernel, and which code this is."""
    place = Path(diml.__file__).parent
    commit = subprocess.run(["git", "-C", str(place), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    library = importlib.metadata.version("pytorch-metric-learning")
    return {
        "dispatch": native.info()["dispatch"],
        "pytorch-metric-learning": library,
        "scikit-learn": importlib.metadata.version("scikit-learn"),
        "commit": commit.stdout.strip(),
    }


ADAPTERS = {
    "vectors": vectors,
    "evaluate": evaluate,
    TEAM_GROUP: evaluate_in_team,
    "rerank": rerank,
    "match": match,
    "sinkhorn": sinkhorn,
    "objective": objective,
    "distance": distance,
    "explanation": explanation,
    "extra_metrics": extra_metrics,
}

if __name__ == "__main__":
    main(ADAPTERS, about)
