"""Run the cases of `number_cases` through this code: the adapters of the comparison in test_recorded_numbers.py.

    .venv/bin/python tests/reference/record_numbers.py OUT.json

`recorded_numbers.json` was recorded so by the code before the refactoring of November 2026 (commit 81f394d), whose own
adapters are in the history of this file's folder (record_numbers_old.py). Names of settings and results in the cases
are those of that code; the adapters translate them.
"""

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
from diml.distributed import process_group
from diml.evaluation import Report, evaluate_regions
from diml.evaluation.extra import extra_metrics as further_metrics
from diml.matching import Matcher, QuantizedRegions, Regions, native
from diml.objectives import StructuralDistance, StructuralSimilarity, build_objective, pack_regions
from reference.number_cases import Images, of_report
from reference.number_runs import TEAM_GROUP, main

#: Keys of explanations that were recorded.
CONTRAST = {"score", "pooled", "structural", "grid_q", "regions"}
LEDGER = CONTRAST - {"regions"} | {"grid_g", "top", "total_q", "total_g", "plan", "cosine"}

#: What ranked, by the structural weight that ranks so.
WEIGHT_OF = {"both": 1.0, "structural": float("inf"), "pooled": 0.0}


def divided(options: dict[str, Any]) -> tuple[Matcher, dict[str, Any]]:
    """The matcher among recorded options, and the other options."""
    names = ("marginals", "epsilon", "tolerance", "max_iterations")
    others = {name: value for name, value in options.items() if name not in names}
    return matcher_of({name: options[name] for name in names if name in options}), others


def matcher_of(settings: dict[str, Any], score: str = "both") -> Matcher:
    """The matcher of recorded settings."""
    named = {{"marginals": "weights"}.get(name, name): value for name, value in settings.items()}
    return Matcher(**named, structural_weight=WEIGHT_OF[score])


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
        rows=[{"rerank": row["rerank_at"]} | row for row in report.rows],
        intervals=report.intervals,
        comparisons=[(c.rerank_at, c.against, c.metric, c.difference, c.low, c.high) for c in report.comparisons],
        per_query=report.per_query,
        queries=report.queries,
        without_relevant=report.without_relevant,
        hits=report.hits,
        gallery_size=report.gallery_size,
        unfinished_pairs=report.unconverged_pairs,
    )


def evaluate(
    *,
    images: Images,
    storage: str,
    settings: dict[str, Any],
    rerank: tuple[int, ...],
    score: str = "both",
    **options: Any,
) -> dict[str, Any]:
    """Report; options are queries, gallery, without_relevant, resamples, seed."""
    matcher = matcher_of(settings, score)
    return _of_report(
        evaluate_regions(stored(images, storage), images.labels, rerank_at=rerank, matcher=matcher, **options)
    )


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
    options: dict[str, Any] = {"queries": queries, "gallery": gallery, "resamples": resamples, "seed": seed}
    with process_group("cpu") as processes:
        regions = stored(images, storage)
        return _of_report(evaluate_regions(regions, images.labels, rerank_at=rerank, processes=processes, **options))


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
    given = settings.get("marginals") if isinstance(settings.get("marginals"), tuple) else None
    matcher = matcher_of({} if given is not None else settings, score)
    return {"scores": matcher.score(*sides, candidates, weights=given)}


def match(*, query: Images, gallery: Images, storage: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that is known of the pairs."""
    given = settings.get("marginals") if isinstance(settings.get("marginals"), tuple) else None
    matcher = matcher_of({} if given is not None else settings)
    found = matcher.match(stored(query, storage), stored(gallery, storage), weights=given)
    parts = ("score", "structural", "pooled", "marginal_error", "iterations", "converged")
    return {name: getattr(found, name) for name in (*parts, "plan", "cosine", "weight_q", "weight_g")}


def sinkhorn(*, cost: Tensor, weight_q: Tensor, weight_g: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
    """Plans and how good they are."""
    found = vars(matching.sinkhorn(cost, weight_q, weight_g, **settings))
    return {name: value for name, value in found.items() if value is not None}  # potentials are of exact plans


def objective(
    *, maps: Tensor, labels: Tensor, name: str, similarity: str, given: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Loss of a batch, its gradient with respect to the maps and the parameters, and what was counted."""
    matcher, options = divided(options)
    torch.manual_seed(0)
    module = build_objective(
        name,
        num_classes=8,
        embedding_dim=maps.shape[1],
        similarity=similarity,
        num_regions=maps.shape[2] * maps.shape[3],
        generator=torch.Generator().manual_seed(0),
        matcher=matcher,
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
    matcher, options = divided(options)
    measure = {"similarity": StructuralSimilarity, "distance": StructuralDistance}[kind](16, matcher, **options)
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
    matcher = matcher_of(settings)
    first, second = (matcher.match(query_regions, stored(side, storage)) for side in (gallery, other))
    contrast = first.contrast(second)
    ledger, difference = first.ledger().to_dict(top), contrast.to_dict()
    for found, names in ((ledger, LEDGER), (difference, CONTRAST)):
        for name in found.keys() - names:  # what was not recorded, as the code had it not
            del found[name]
    return {"ledger": ledger, "contrast": difference, "most": contrast.top(top)}


def extra_metrics(*, images: Images, storage: str, queries: Any, gallery: Any, seed: int) -> dict[str, Any]:
    """Further metrics by name."""
    regions = stored(images, storage)
    return further_metrics(regions, images.labels, queries=queries, gallery=gallery, seed=seed)


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
