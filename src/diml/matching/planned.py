"""Structural similarities and distances of training on the CPU: values and gradients by the compiled kernel.

Both sides come packed (`diml.objectives.pack_regions`): an image is R + 1 vectors, the pooled one being the last. A
batch against itself is the list of its pairs i <= j. The forward pass keeps the slopes (R, R) of each pair for the
backward pass: the derivative of the value with respect to each cosine, which is the plan itself where cosines are
summed. Where the kernel cannot be used, these functions return None, and `diml.objectives.distances` computes the same
in torch.

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
from diml.matching.matcher import Matcher

#: Added under the root of a distance, so that its gradient stays finite at distance zero. Source: the released code.
ROOT_EPSILON: Final = 1e-6

#: Pairs whose distances are summed at a time, so that intermediate results stay in the cache.
_PAIRS_PER_BLOCK: Final = 1024


@dataclass(frozen=True, eq=False)
class Planned:
    """Values of pairs (`training_value` of what each plan and the pooled vectors contribute), differentiable.

    `values` is (Q, G) or (B,); `unconverged` is the number of plans that stopped above the tolerance.
    """

    values: Tensor
    unconverged: int


def training_value(structural: Tensor, pooled: Tensor, matcher: Matcher) -> Tensor:
    """The value that losses see: (structural_weight * structural + pooled) / (structural_weight + 1).

    The mean of both at weight 1, as in the paper's training; `pooled` alone at 0; `structural` alone at infinity.
    """
    return matcher.combine(pooled, structural) / sum(_factors(matcher))


def _factors(matcher: Matcher) -> tuple[float, float]:
    """Factors of the structural and of the pooled part in `Matcher.combine`."""
    only = matcher.structural_weight == float("inf")
    return (1.0, 0.0) if only else (matcher.structural_weight, 1.0)


def planned_matrix(
    query: Tensor, gallery: Tensor | None, regions: int, matcher: Matcher, *, distance: bool
) -> Planned | None:
    """All pairs of two sides, or of one side with itself; None where the kernel cannot be used.

    Args:
        query, gallery: packed images (Q, X) and (G, X); without `gallery` those of `query`. Pair (j, i) is then the
            mirror image of (i, j) and not solved again, unless the matcher is not symmetric.
        regions: R of both sides.
        matcher: settings of the plans.
        distance: whether plans weigh distances; otherwise they weigh cosines.

    Gradients flow through cosines and distances and not through the plans.
    """
    other = query if gallery is None else gallery
    queries, images = len(query), len(other)
    mirrored = gallery is None and matcher.symmetric
    if mirrored:
        i, j = torch.triu_indices(queries, queries)
    else:
        i, j = (index.flatten() for index in torch.meshgrid(torch.arange(queries), torch.arange(images), indexing="ij"))
    found = planned_pairs(query, gallery, i, j, regions, matcher, distance=distance)
    if found is None:
        return None
    if not mirrored:
        return Planned(found.values.view(queries, images), found.unconverged)
    place = torch.empty(queries, queries, dtype=torch.int64)
    place[i, j] = place[j, i] = torch.arange(len(i))
    return Planned(found.values.index_select(0, place.flatten()).view(queries, queries), found.unconverged)


def planned_pairs(
    query: Tensor, gallery: Tensor | None, i: Tensor, j: Tensor, regions: int, matcher: Matcher, *, distance: bool
) -> Planned | None:
    """Images i (B,) of `query` with images j (B,) of `gallery`, or of `query`; otherwise as `planned_matrix`."""
    if not _suits(query, query if gallery is None else gallery):
        return None
    report: dict[str, Any] = {}
    values: Tensor = _PlannedPairs.apply(query, gallery, i, j, regions, matcher, distance, report)
    return None if report["too_wide"] else Planned(values, report["unconverged"])


def _suits(query: Tensor, gallery: Tensor) -> bool:
    return query.dtype == gallery.dtype == torch.float32 and native.suits(query, gallery)


class _PlannedPairs(torch.autograd.Function):
    """(B,) of images i of packed (Q, X) and images j of (G, X), or of (Q, X) itself where `gallery` is None."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        gallery: Tensor | None,
        i: Tensor,
        j: Tensor,
        regions: int,
        matcher: Matcher,
        distance: bool,
        report: dict[str, Any],
    ) -> Tensor:
        vectors = vectors_of(query, regions)
        others = vectors if gallery is None else vectors_of(gallery, regions)
        pairs, solver = native.PairIndices(i, j), native.SolverSettings(**matcher.solver, matching=matcher.matching)
        uniform = matcher.weights == "uniform"
        found = native.compare(vectors, others, pairs, solver, uniform=uniform, keep_cosine=distance)
        scores, slope, pooled_slope = found.scores, found.plan, torch.ones(len(i))
        structural, pooled = scores.structural, scores.pooled
        if found.cosine is not None:
            structural, pooled = torch.empty_like(structural), torch.empty_like(pooled)
            length_q, length_g = squared_length(vectors), squared_length(others)
            for start in range(0, len(i), _PAIRS_PER_BLOCK):
                span = slice(start, start + _PAIRS_PER_BLOCK)
                rows, columns = length_q[i[span]], length_g[j[span]]
                lengths = rows[:, :-1].unsqueeze(2), columns[:, :-1].unsqueeze(1)
                terms = _sum_distances(found.cosine[span], slope[span], *lengths)
                structural[span] = terms.sum(dim=(1, 2))
                pooled[span] = _sum_distances(scores.pooled[span], pooled_slope[span], rows[:, -1], columns[:, -1])
        report |= {"too_wide": bool(scores.too_wide.any()), "unconverged": int((~scores.converged).sum())}
        ctx.save_for_backward(query, gallery, i, j, slope, pooled_slope)
        ctx.factors = _factors(matcher)
        return training_value(structural, pooled, matcher)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, gallery, i, j, slope, pooled_slope = ctx.saved_tensors
        sides = (query, query if gallery is None else gallery)
        vectors_q, vectors_g = (vectors_of(side, slope.shape[k]) for k, side in enumerate(sides, start=1))
        weight = gradients[0] / sum(ctx.factors)
        slopes = native.PairSlopes(slope, weight * ctx.factors[0], weight * ctx.factors[1] * pooled_slope)
        accumulate = partial(native.accumulate_gradients, slopes, native.PairIndices(i, j))
        of_query = of_gallery = None
        if ctx.needs_input_grad[0]:
            side: Literal["query", "both"] = "both" if gallery is None else "query"
            of_query = accumulate(vectors_g, vectors_q.shape, side=side).flatten(1)
        if ctx.needs_input_grad[1]:
            of_gallery = accumulate(vectors_q, vectors_g.shape, side="gallery").flatten(1)
        return of_query, of_gallery, None, None, None, None, None, None


def _sum_distances(cosine: Tensor, slope: Tensor, length_q: Tensor, length_g: Tensor) -> Tensor:
    """Plans times distances. `slope` holds the plans and is overwritten by the derivatives; lengths are squared."""
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
