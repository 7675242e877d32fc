"""Sums over transport plans on the CPU: plans by the compiled kernel, gradients written out.

Both sides come packed (`pack_regions`): an image is R + 1 vectors, the pooled one being the last. So one matrix product
gives a pair all it needs: a cell of (R + 1, R + 1) cosines holds those of its regions, beside and below them how much
each region agrees with the other image as a whole, which is its weight, and in the corner the pooled cosine.

All pairs of a batch go through strips of one large matrix, of which only the upper half is computed where both sides
are the same images; a list of pairs goes through batched products. Where the kernel does not suit, both are done by way
of torch in `distances`.

Legend: Q and G images on the two sides, B pairs, R regions, D channels, X = (R + 1) * D numbers of a packed image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diml.matching import native

#: Added under the root of a distance, so that its gradient stays finite at distance zero. Source: the released code.
ROOT_EPSILON: Final = 1e-6

#: Rows of the matrix of cosines that are multiplied at a time: few enough to stay near the diagonal and in the cache;
#: and not fewer, as torch's threads wait for each other after each product, which is long on a machine that others use.
_STRIP_ROWS: Final = 256


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
    if not _suits(query, query if gallery is None else gallery):
        return None
    report: dict[str, Any] = {}
    values: Tensor = _PlannedMatrix.apply(query, gallery, regions, settings, report)
    return None if report["too_wide"] else Planned(values, report["unconverged"])


def planned_pairs(packed: Tensor, i: Tensor, j: Tensor, regions: int, settings: PlanSettings) -> Planned | None:
    """Images i (B,) with images j (B,) of `packed` (N, X), as `planned_matrix` does all of them."""
    if not _suits(packed, packed):
        return None
    report: dict[str, Any] = {}
    values: Tensor = _PlannedPairs.apply(packed, i, j, regions, settings, report)
    return None if report["too_wide"] else Planned(values, report["unconverged"])


def _suits(query: Tensor, gallery: Tensor) -> bool:
    return query.dtype == gallery.dtype == torch.float32 and native.suits(query, gallery)


class _PlannedMatrix(torch.autograd.Function):
    """(Q, G) from packed (Q, X) and (G, X), or (Q, Q) from (Q, X) and None."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, gallery: Tensor | None, regions: int, settings: PlanSettings, report: dict[str, Any]
    ) -> Tensor:
        other, cell, symmetric = query if gallery is None else gallery, regions + 1, gallery is None
        queries, images = len(query), len(other)
        vectors_q, vectors_g = (side.view(-1, side.shape[1] // cell) for side in (query, other))
        flat = query.new_empty(len(vectors_q), len(vectors_g))
        for i, first in _strips(queries, cell, symmetric):
            rows, start = slice(i.start * cell, i.stop * cell), first * cell
            torch.mm(vectors_q[rows], vectors_g[start:].T, out=flat[rows, start:])
        cosine = flat.view(queries, cell, images, cell)
        i, j = torch.triu_indices(queries, images) if symmetric else torch.ones(queries, images).nonzero().T
        at = i * cosine.stride(0) + j * cell
        values = cosine[:, -1, :, -1].clone()
        if settings.distance:
            slope = torch.zeros_like(cosine)
            _solve(cosine, at, slope, settings, report)
            _weigh_strips(cosine, slope, values, squared_length(vectors_q), squared_length(vectors_g), symmetric)
        else:
            slope = cosine  # plans take the place of their cosines, which nobody needs afterwards
            values[i, j] += _solve(cosine, at, slope, settings, report)
        ctx.save_for_backward(query, gallery, slope)
        ctx.distance = settings.distance
        return (values.triu() + values.triu(1).T if symmetric else values) / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, gallery, slope = ctx.saved_tensors
        symmetric, cell = gallery is None, slope.shape[1]
        weight = gradients[0] / 2
        weight = weight.triu() + weight.tril(-1).T if symmetric else weight
        side_q = _Side(query, cell, wanted=ctx.needs_input_grad[0])
        side_g = side_q if symmetric else _Side(gallery, cell, wanted=ctx.needs_input_grad[1])
        with torch.autocast("cpu", enabled=False):
            room = slope.new_empty(_strip_images(cell) * slope[0, :-1, :, :-1].numel())
            for i, first in _strips(len(query), cell, symmetric):
                part = slope[i, :-1, first:, :-1]
                weighed = room[: part.numel()].view(part.shape)
                torch.mul(part, weight[i, None, first:, None], out=weighed)
                flat = weighed.view(part.shape[0] * part.shape[1], -1)
                side_q.take(flat, side_g, i.start, first)
                side_g.take(flat.T, side_q, first, i.start)
            pooled = weight * slope[:, -1, :, -1] if ctx.distance else weight
            side_q.take_pooled(pooled, side_g)
            side_g.take_pooled(pooled.T, side_q)
        return side_q.gradient(), None if symmetric else side_g.gradient(), None, None, None


class _PlannedPairs(torch.autograd.Function):
    """(B,) of the images i and j (B,) of packed (N, X)."""

    @staticmethod
    def forward(
        ctx: Any,
        packed: Tensor,
        i: Tensor,
        j: Tensor,
        regions: int,
        settings: PlanSettings,
        report: dict[str, Any],
    ) -> Tensor:
        vectors = vectors_of(packed, regions)
        left, right = vectors.index_select(0, i), vectors.index_select(0, j)
        cosine = torch.bmm(left, right.mT)
        at = torch.arange(len(i)) * (regions + 1) ** 2
        if settings.distance:
            slope = torch.zeros_like(cosine)
            _solve(cosine.unsqueeze(2), at, slope, settings, report)
            slope[:, -1, -1] = 1
            lengths = squared_length(vectors)
            values = _weigh_distances(cosine, slope, lengths[i].unsqueeze(2), lengths[j].unsqueeze(1)).sum(dim=(1, 2))
        else:
            slope, values = cosine, cosine[:, -1, -1].clone()
            values += _solve(cosine.unsqueeze(2), at, slope, settings, report)
            slope[:, -1], slope[:, :, -1] = 0, 0
            slope[:, -1, -1] = 1
        ctx.save_for_backward(left, right, slope, i, j)
        ctx.shape = packed.shape
        return values / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        left, right, slope, i, j = ctx.saved_tensors
        gradient = left.new_zeros(ctx.shape)
        with torch.autocast("cpu", enabled=False):
            weighed = slope * (gradients[0] / 2)[:, None, None]
            gradient.index_add_(0, i, torch.bmm(weighed, right).flatten(1))
            gradient.index_add_(0, j, torch.bmm(weighed.mT, left).flatten(1))
        return gradient, None, None, None, None, None


class _Side:
    """Images of one side and what gradient they have got so far: regions (N * R, D) and pooled vectors (N, D)."""

    def __init__(self, packed: Tensor, cell: int, *, wanted: bool) -> None:
        vectors = vectors_of(packed, cell - 1)
        self._shape, self._wanted, self._regions = vectors.shape, wanted, cell - 1
        self.dense, self.pooled = vectors[:, :-1].flatten(0, 1), vectors[:, -1]
        self._of_dense, self._of_pooled = torch.zeros_like(self.dense), torch.zeros_like(self.pooled)

    def take(self, weighed: Tensor, other: _Side, image: int, others: int) -> None:
        """Add to the regions from `image` on what those of `other` from its image `others` on weigh for them."""
        if self._wanted:
            to, start = image * self._regions, others * self._regions
            self._of_dense[to : to + len(weighed)].addmm_(weighed, other.dense[start : start + weighed.shape[1]])

    def take_pooled(self, weight: Tensor, other: _Side) -> None:
        """The same for the pooled vectors."""
        if self._wanted:
            self._of_pooled.addmm_(weight, other.pooled)

    def gradient(self) -> Tensor | None:
        """Of the packed images (N, X); None where it is not wanted."""
        if not self._wanted:
            return None
        images, _, dim = self._shape
        return torch.cat([self._of_dense.view(images, -1, dim), self._of_pooled.unsqueeze(1)], dim=1).flatten(1)


def _strip_images(cell: int) -> int:
    return max(1, _STRIP_ROWS // cell)


def _strips(images: int, cell: int, symmetric: bool) -> Iterator[tuple[slice, int]]:
    """Images of the first side, few at a time, and from which image of the second on they are compared."""
    for start in range(0, images, _strip_images(cell)):
        yield slice(start, min(images, start + _strip_images(cell))), start if symmetric else 0


def _solve(cosine: Tensor, at: Tensor, plan: Tensor, settings: PlanSettings, report: dict[str, Any]) -> Tensor:
    """Write plans to the cells at flat index `at` (B,) of `plan`; return their structural similarities (B,).

    `cosine` (Q, R + 1, G, R + 1) may be the same memory as `plan`. Of a cell only the plan's own (R, R) is written.
    """
    _, cell, images, _ = cosine.shape
    regions, stride = cell - 1, cell * max(1, images)
    mass, mass_q_at, mass_g_at, steps = cosine, at + regions, at + regions * stride, (stride, 1)
    if settings.marginals == "uniform":
        mass, mass_q_at, mass_g_at, steps = torch.ones(regions), torch.zeros_like(at), torch.zeros_like(at), (1, 1)
    problems = native.Problems(
        cosine=cosine,
        cosine_at=at,
        stride=stride,
        mass_q=mass,
        mass_q_at=mass_q_at,
        mass_q_stride=steps[0],
        mass_g=mass,
        mass_g_at=mass_g_at,
        mass_g_stride=steps[1],
        regions=(regions, regions),
    )
    found = native.solve(problems, settings.epsilon, settings.tolerance, settings.max_iterations, plan=plan)
    report |= {"too_wide": bool(found.too_wide.any()), "unconverged": int((~found.converged).sum())}
    return found.structural


def _weigh_strips(
    cosine: Tensor, slope: Tensor, values: Tensor, length_q: Tensor, length_g: Tensor, symmetric: bool
) -> None:
    """Turn plans in `slope` (Q, R + 1, G, R + 1) into slopes of distances, and write the sums to `values` (Q, G)."""
    cell = cosine.shape[1]
    slope[:, -1, :, -1] = 1
    rows, columns = length_q.view(-1, cell, 1, 1), length_g.view(-1, cell)
    for i, first in _strips(len(cosine), cell, symmetric):
        terms = _weigh_distances(cosine[i, :, first:], slope[i, :, first:], rows[i], columns[first:])
        values[i, first:] = terms.sum(dim=(1, 3))


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
