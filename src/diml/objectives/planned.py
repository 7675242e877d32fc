"""Sums over transport plans on the CPU: pairs and gradients by the compiled kernel.

Both sides come packed (`pack_regions`): an image is R + 1 vectors, the pooled one being the last. A batch with itself
is the list of its pairs i <= j. What is kept of a pair for the way back is its slopes (R, R): how much its value moves
with each cosine, which is its plan where cosines are weighed. Where the kernel does not suit, `distances` goes by way
of torch.

Legend: Q and G images on the two sides, B pairs, R regions, D channels, X = (R + 1) * D numbers of a packed image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diml.matching import native

#: Added under the root of a distance, so that its gradient stays finite at distance zero. Source: the released code.
ROOT_EPSILON: Final = 1e-6

#: Pairs whose distances are weighed at a time, so that what comes and goes stays in the cache.
_PAIRS_AT_ONCE: Final = 1024


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """How plans are made: see `diml.matching.match`; and whether what they weigh are distances or cosines."""

    marginals: str
    epsilon: float
    tolerance: float
    max_iterations: int
    distance: bool


@dataclass(frozen=True, eq=False)
class Planned:
    """Half the sum of what the plan of each pair weighs and of what the pooled vectors add, differentiable.

    `values` is (Q, G) or (B,); `unconverged` says how many plans stopped above the tolerance.
    """

    values: Tensor
    unconverged: int


def planned_matrix(query: Tensor, gallery: Tensor | None, regions: int, settings: PlanSettings) -> Planned | None:
    """All pairs of two sides, or of one with itself; None where the kernel cannot do it.

    Args:
        query, gallery: packed images (Q, X) and (G, X); without `gallery` those of `query`, and pair (j, i) is then
            the mirror image of (i, j) and not solved again.
        regions: R of both sides.
        settings: of the plans.

    Gradients flow through cosines and distances and not through the plans.
    """
    other = query if gallery is None else gallery
    queries, images = len(query), len(other)
    if gallery is None:
        i, j = torch.triu_indices(queries, queries)
    else:
        i, j = (index.flatten() for index in torch.meshgrid(torch.arange(queries), torch.arange(images), indexing="ij"))
    found = planned_pairs(query, gallery, i, j, regions, settings)
    if found is None:
        return None
    if gallery is not None:
        return Planned(found.values.view(queries, images), found.unconverged)
    place = torch.empty(queries, queries, dtype=torch.int64)
    place[i, j] = place[j, i] = torch.arange(len(i))
    return Planned(found.values.index_select(0, place.flatten()).view(queries, queries), found.unconverged)


def planned_pairs(
    query: Tensor, gallery: Tensor | None, i: Tensor, j: Tensor, regions: int, settings: PlanSettings
) -> Planned | None:
    """Images i (B,) of `query` with images j (B,) of `gallery`, or of `query`, as `planned_matrix` does all of them."""
    if not _suits(query, query if gallery is None else gallery):
        return None
    report: dict[str, Any] = {}
    values: Tensor = _PlannedPairs.apply(query, gallery, i, j, regions, settings, report)
    return None if report["too_wide"] else Planned(values, report["unconverged"])


def _suits(query: Tensor, gallery: Tensor) -> bool:
    return query.dtype == gallery.dtype == torch.float32 and native.suits(query, gallery)


class _PlannedPairs(torch.autograd.Function):
    """(B,) of images i of packed (Q, X) and images j of (G, X), or of (Q, X) itself where None stands."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        gallery: Tensor | None,
        i: Tensor,
        j: Tensor,
        regions: int,
        settings: PlanSettings,
        report: dict[str, Any],
    ) -> Tensor:
        vectors = vectors_of(query, regions)
        others = vectors if gallery is None else vectors_of(gallery, regions)
        solver = (settings.epsilon, settings.tolerance, settings.max_iterations)
        uniform = settings.marginals == "uniform"
        found = native.compare(vectors, others, i, j, uniform, *solver, cosine=settings.distance)
        scores, slope, pooled_slope = found.scores, found.plan, torch.ones(len(i))
        values = scores.structural + scores.pooled
        if found.cosine is not None:
            length_q, length_g = squared_length(vectors), squared_length(others)
            for start in range(0, len(i), _PAIRS_AT_ONCE):
                span = slice(start, start + _PAIRS_AT_ONCE)
                rows, columns = length_q[i[span]], length_g[j[span]]
                masses = rows[:, :-1].unsqueeze(2), columns[:, :-1].unsqueeze(1)
                terms = _weigh_distances(found.cosine[span], slope[span], *masses)
                pooled = _weigh_distances(scores.pooled[span], pooled_slope[span], rows[:, -1], columns[:, -1])
                values[span] = terms.sum(dim=(1, 2)) + pooled
        report |= {"too_wide": bool(scores.too_wide.any()), "unconverged": int((~scores.converged).sum())}
        ctx.save_for_backward(query, gallery, i, j, slope, pooled_slope)
        return values / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, gallery, i, j, slope, pooled_slope = ctx.saved_tensors
        sides = (query, query if gallery is None else gallery)
        vectors_q, vectors_g = (vectors_of(side, slope.shape[k]) for k, side in enumerate(sides, start=1))
        weight = gradients[0] / 2
        pull = partial(native.pull, slope, weight, weight * pooled_slope, i, j)
        of_query = of_gallery = None
        if ctx.needs_input_grad[0]:
            side: Literal["query", "both"] = "both" if gallery is None else "query"
            of_query = pull(vectors_g, vectors_q.shape, side=side).flatten(1)
        if ctx.needs_input_grad[1]:
            of_gallery = pull(vectors_q, vectors_g.shape, side="gallery").flatten(1)
        return of_query, of_gallery, None, None, None, None, None


def _weigh_distances(cosine: Tensor, slope: Tensor, length_q: Tensor, length_g: Tensor) -> Tensor:
    """Plans times distances; `slope`, the plans, becomes what a cosine moves them by. Lengths are squared."""
    square = (length_q + length_g).sub(cosine, alpha=2)
    beyond = square <= 0
    distance = square.clamp_(min=0).add_(ROOT_EPSILON).sqrt_()
    terms = slope * distance
    slope.div_(distance).masked_fill_(beyond, 0).neg_()
    return terms


def vectors_of(packed: Tensor, regions: int) -> Tensor:
    """(N, R + 1, D) of packed images (N, X): their regions, then the pooled vector."""
    return packed.reshape(len(packed), regions + 1, packed.shape[1] // (regions + 1))


def squared_length(vectors: Tensor) -> Tensor:
    """Squared length of unit or zero vectors (..., D): (...) of exact ones and zeros."""
    return (vectors.detach().abs().amax(dim=-1) > 0).to(vectors.dtype)
